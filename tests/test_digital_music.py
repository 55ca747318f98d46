"""Reason4Rec's prompts as a shop: windows become sequences, rationales end where the model goes astray."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_thought_space import save_encoder

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import digital_music as music  # noqa: E402
import real_rationales as real  # noqa: E402

GOOD = "The user cares about lyrics that tell a story, and {} has such lyrics all over it."


def event(title, words):
    return {"title": title, "Positive Aspects": f"good {words}", "User Preference Elements": words}


def prompt(number, target, *history):
    return {"id": number, "target_title": target, "user_history": list(history), "item_history": [event(target, "x")]}


def dump(path, records):
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "reason4rec_rollouts").mkdir()
    a, b, c = (event(title, f"{title} of ann") for title in "abc")
    prompts = [
        prompt(0, "c", a, b),
        prompt(1, "d", b, c),  # ann again: she said the same of b
        prompt(2, "b", event("a", "a of ben")),  # another person, who said something else of a
        prompt(3, "z", event("x", "x of cyd"), event("y", "y of cyd")),
        prompt(4, "w", event("y", "y of cyd"), event("x", "x of cyd")),  # in another order: nobody knows
        prompt(5, "v", event("u", "u of dan")),  # without a usable rationale
    ]
    dump(tmp_path / "reason4rec_rollouts" / "prompts.jsonl.gz", prompts)
    told = [
        (0, GOOD.format("c") + "\nI hope this helps!", -0.5),
        (0, "I would rate it five stars, because it has everything that anybody could ask of it today.", -0.1),
        (0, GOOD.format("the album"), -0.7),
        (1, GOOD.format("d") + " And then the text was cut in the", -0.2),
        (2, GOOD.format("b"), -0.3),
        (3, GOOD.format("z"), -0.3),
        (4, GOOD.format("w"), -0.3),
        (5, "Yes.", -0.0),
    ]
    rows = [{"prompt_id": number, "step": 1, "completion": text, "reward": reward} for number, text, reward in told]
    dump(tmp_path / "reason4rec_rollouts" / "completions.jsonl.gz", rows)
    count = music.convert(tmp_path, tmp_path / "out")
    return count, {path.name: list(music.rows(path)) for path in (tmp_path / "out").iterdir()}


def test_windows_become_sequences_and_everything_left_out_is_counted(shop):
    count, files = shop
    assert count == {
        "prompts": 6,
        "people": 4,
        "people left out: no order, or more than one": 1,
        "choices of a prompt": 4,
        "choices without a usable rationale": 1,
        "events": 8,
        "items": 10,
        "rationales": 3,
    }
    titles = {row["item_id"]: row["title"] for row in files["items.jsonl.gz"]}
    sequences: dict[str, list[tuple[str, str]]] = {}
    for row in files["interactions.jsonl.gz"]:
        mine = sequences.setdefault(row["user_id"], [])
        assert row["position"] == len(mine)
        mine.append((titles[row["item_id"]], row["review"]))
    assert sorted(sequences.values()) == [
        [
            ("a", "a of ann. good a of ann."),
            ("b", "b of ann. good b of ann."),
            ("c", "c of ann. good c of ann."),
            ("d", ""),
        ],
        [("a", "a of ben. good a of ben."), ("b", "")],  # what ben said of b is not known, ann's words are not his
        [("u", "u of dan. good u of dan."), ("v", "")],
    ]


def test_the_best_rationale_that_is_one_is_taken_up_to_its_last_whole_sentence(shop):
    _, files = shop
    titles = {row["item_id"]: row["title"] for row in files["items.jsonl.gz"]}
    why = {titles[row["item_id"]]: row["text"] for row in files["rationales.jsonl.gz"]}
    assert why == {"c": GOOD.format("c"), "d": GOOD.format("d"), "b": GOOD.format("b")}
    # The control is about the same choices, in the words of others about the album.
    choices = [
        [(row["user_id"], row["item_id"]) for row in files[f"{name}.jsonl.gz"]]
        for name in ("rationales", "item_words")
    ]
    assert choices[0] == choices[1]
    assert {row["text"] for row in files["item_words.jsonl.gz"]} == {"c: good x.", "d: good x.", "b: good x."}


def many(folder, people=60):
    """People with five albums each, of twenty; the last choice of each was explained."""
    (folder / "reason4rec_rollouts").mkdir(parents=True)
    albums = [f"m{number % 24} f{number}" for number in range(20)]
    prompts, told = [], []
    for number in range(people):
        mine = [albums[(number * 7 + step * 3) % 20] for step in range(5)]
        history = [event(title, f"{title} of {number}") for title in mine[:4]]
        prompts.append(prompt(number, mine[4], *history))
        text = f"The user of number {number} likes it because it is m{number % 24} like all the others were before."
        told.append({"prompt_id": number, "step": 1, "completion": text, "reward": 0.0})
    dump(folder / "reason4rec_rollouts" / "prompts.jsonl.gz", prompts)
    dump(folder / "reason4rec_rollouts" / "completions.jsonl.gz", told)


def test_what_rationales_add_is_judged_on_people_that_no_fit_saw(tmp_path, monkeypatch):
    settings = replace(
        real.SETTINGS, encoder=save_encoder(tmp_path / "encoder", "bert"), epochs=1, precision="float32"
    )
    monkeypatch.setattr(real, "SETTINGS", replace(settings, validation_share=0.2))
    monkeypatch.setattr(real, "FEW", {"epochs": 2})
    monkeypatch.setattr(real, "SHARES", {"validation_share": 0.1, "test_share": 0.3})
    many(tmp_path / "data")
    asked = ["real_rationales.py", "--data", str(tmp_path / "data"), "--out", str(tmp_path), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [*asked, "--work", str(tmp_path / "work"), "--threads", "1"])
    real.main()
    report = json.loads((tmp_path / "real-rationales.json").read_text())
    shop = real.Shop(tmp_path / "data", tmp_path / "work")
    trained = {one.user_id for one in shop.sequences if one.num_train}
    assert report["people"] == len(shop.sets) == sum(one.cut[2] >= 0 for one in shop.sequences)
    assert report["training_choices"] == {"all": 4 * len(trained), "explained": len(trained)}
    assert not {one.decision_id.rpartition("#")[0] for one in shop.sets} & trained
    rows = {(row.get("among"), row["space"]): row for row in report["rows"]}
    assert len(rows) == 1 + 2 * 4
    for among in real.AMONG:
        assert [rows[among, kind]["further_pairs"] for kind in (real.TITLES, *real.MORE)] == [0, *[len(trained)] * 3]
        against = rows[among, "the rationale"]["over"]
        assert set(against) == {real.TITLES, *real.MORE[1:]}
        mine = rows[among, "the rationale"]["hr@1"]["value"]
        for other, found in against.items():
            assert found["hr@1"]["difference"] == pytest.approx(mine - rows[among, other]["hr@1"]["value"])
            assert found["hr@1"]["p"] <= found["hr@1"]["p_holm"] <= 1
    dealt = shop.more("another's rationale", seed=0)
    assert sorted(dealt.values()) == sorted(shop.rationales.values())
    assert all(text != shop.rationales[key] for key, text in dealt.items())
    # The fits are kept: a second call only judges, and says the same.
    monkeypatch.setattr(real, "Fitting", None)
    real.main()
    assert json.loads((tmp_path / "real-rationales.json").read_text())["rows"] == report["rows"]
