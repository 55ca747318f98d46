"""Reason4Rec's prompts as a shop: windows become sequences, rationales end where the model goes astray."""

import gzip
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import digital_music as music  # noqa: E402

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
