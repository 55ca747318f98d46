"""The study against an outside judge: its statistics on groups made by hand, and who is kept from whom."""

import gzip
import json
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertConfig, BertModel

from pulse_hf.models.embedded import MINILM_ID, resolve_model

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "scripts"))

import outside_judge  # noqa: E402
import outside_judge_data as data  # noqa: E402
import outside_judge_rollouts as part  # noqa: E402
import outside_judge_statistics as measures  # noqa: E402
from nano_corpus import held_out_rollout  # noqa: E402
from outside_judge_data import Group  # noqa: E402


def group(prompt, rewards, texts=None, person=None, step=0):
    texts = texts or [f"text {n}" for n in range(len(rewards))]
    return Group(prompt, step, person or f"p{prompt}", "Target", (("Norvik Kettle", "quiet"),), tuple(texts), rewards)


def put(folder, name, rows):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / name, "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def rollout_files(folder, prompts=120, width=4):
    """Prompts 2n and 2n + 1 are one person's: the second's history holds the first's."""

    def event(n):
        return {"title": f"Record {n}", "User Preference Elements": f"taste{n}", "Positive Aspects": f"sound{n}"}

    def history(n):
        return [event(n - n % 2), *([event(n)] if n % 2 else [])]

    asked = [{"id": n, "target_title": f"Album{n} Zorba", "user_history": history(n)} for n in range(prompts)]
    put(folder, "reason4rec_rollouts/prompts.jsonl.gz", asked)
    written = [
        {
            "prompt_id": n,
            "step": 5,
            "completion": f" Album{n} has sound{n} {'good ' * k}for taste{n}.",
            "reward": -0.1 * ((k + n) % width),
        }
        for n in range(prompts)
        for k in range(width)
    ]
    put(folder, "reason4rec_rollouts/completions.jsonl.gz", written)


def xrec_files(folder, users=40):
    for domain in ("amazon", "google"):
        rows = [
            {"uid": n, "iid": n, "title": f"Book{n}", "item_summary": f"Book{n} about theme{n}."}
            | {"user_summary": f"Likes Book{n} and theme{n}.", "explanation": f"Book{n} has theme{n}."}
            for n in range(users)
        ]
        put(folder, f"xrec/{domain}.jsonl.gz", rows)


def test_correlation_and_best_of_n_of_groups_made_by_hand():
    first, second, flat = group(7, (0.0, -1.0, -2.0, -3.0)), group(7, (-1.0, -5.0), step=1), group(8, (-1.0, -1.0))
    third = group(9, (-4.0, 0.0))
    judged = [first, second, flat, third]
    scores = {
        "right": np.array([4.0, 3, 2, 1, 9, 8, 5, 6, 1, 2]),
        "swapped": np.array(
            [3.0, 4, 2, 1, 8, 9, 5, 6, 1, 2]
        ),  # by hand: 1 - 6 * 2 / (4 * 15) = 0.8 in the first group
        "blind": np.zeros(10),
    }
    table, levels = part.judge_scores(judged, scores)
    np.testing.assert_allclose(levels[:, :2], [[(-1.5 - 3) / 2, (0 - 1) / 2], [-2, 0]])  # prompts 7 and 9; 8 is flat
    np.testing.assert_allclose(table["right"][:, 0], [1, 1])
    np.testing.assert_allclose(table["right"][:, 2], [(1.5 + 2) / 2, 2])
    np.testing.assert_allclose(table["swapped"][:, 0], [(0.8 - 1) / 2, 1])
    np.testing.assert_allclose(table["swapped"][:, 2], [(0.5 - 2) / 2, 2])
    np.testing.assert_allclose(table["blind"], 0, atol=1e-12)


def test_a_score_that_is_length_says_nothing_at_equal_length():
    rng = np.random.default_rng(0)
    length = np.arange(16.0)
    reward = length + rng.normal(size=16)
    assert measures.spearman(length, reward) > 0.8
    assert abs(measures.spearman_given(length + 0.5, reward, length)) < 1e-9
    sharp = measures.spearman_given(reward, reward, length)
    assert sharp == pytest.approx(1)


def test_one_of_eleven_is_the_mean_over_all_draws():
    rng = np.random.default_rng(1)
    cosines = rng.integers(0, 4, size=(7, 7)).astype(float)  # with ties
    found = measures.one_of(cosines, 3)
    for row in range(7):
        others = [n for n in range(7) if n != row]
        wins = []
        for drawn in combinations(others, 3):
            best = cosines[row, list(drawn)].max()
            tied = 1 + int((cosines[row, list(drawn)] == cosines[row, row]).sum())
            wins.append(1 / tied if cosines[row, row] >= best else 0.0)
        assert found[row] == pytest.approx(np.mean(wins))


def test_retrieval_of_known_ranks():
    cosines = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.0, 0.9, 0.5]])
    found = measures.retrieval(cosines, 2)
    assert found["r@1"].tolist() == [1, 0, 0]
    assert found["mrr"].tolist() == pytest.approx([1, 1 / 3, 1 / 2])
    assert found["1-of-3"].tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="more than 3"):
        measures.one_of(cosines, 3)


def test_the_fitted_floors_learn_differences_within_groups():
    rng = np.random.default_rng(2)
    texts, rewards, place = [], [], []
    for number in range(60):
        level = float(number % 2)  # prompts with "dull" are rewarded as a whole, which must not count
        for _ in range(8):
            lovely = rng.random() < 0.5
            size = int(rng.integers(1, 9))
            texts.append(" ".join(["dull"] * int(level) + ["lovely"] * lovely + ["word"] * size))
            rewards.append(5 * level + 0.5 * lovely - 0.05 * size)
            place.append(number)
    rule = measures.WordRule(texts, np.array(rewards), np.array(place))
    dull, lovely, plain = rule(["dull word", "lovely word", "word"])
    assert lovely - plain > 0.3
    assert abs(dull - plain) < 0.1
    weights = measures.length_rule(texts, np.array(rewards), np.array(place))
    short, long = measures.length_shape(["word " * 2, "word " * 8]) @ weights
    assert short > long


def test_nobody_who_is_judged_is_trained_on(tmp_path):
    rollout_files(tmp_path)
    training, judged = data.split_groups(data.read_groups(tmp_path))
    assert {one.prompt for one in judged} == {n for n in range(120) if held_out_rollout(n)}
    judged_people = {n // 2 for n in range(120) if held_out_rollout(n)}
    assert {one.prompt // 2 for one in training} == set(range(60)) - judged_people
    assert not {one.person for one in training} & {one.person for one in judged}
    for choice, wanted in (("best", 0.0), ("worst", -0.1 * 3)):
        pairs = data.rollout_pairs(training, choice, part.SETTINGS, seed=0)
        rewards = {
            (one.prompt, text): reward for one in training for text, reward in zip(one.texts, one.rewards, strict=True)
        }
        assert {rewards[int(pair.decision_id.split("@")[0]), pair.rationale] for pair in pairs} == {wanted}
    upper = data.rollout_pairs(training, "above_median", part.SETTINGS, seed=0)
    assert {round(rewards[int(one.decision_id.split("@")[0]), one.rationale], 1) for one in upper} == {0.0, -0.1}
    with pytest.raises(ValueError, match="choice"):
        data.rollout_pairs(training, "middle", part.SETTINGS, seed=0)


def test_masked_texts_hold_no_word_of_a_title_and_no_target():
    one = group(1, (0.0, -1.0), ["They like the Target, as the Norvik.", "A kettle."])
    settings = {"max_events": 6, "review_words": 16}
    assert one.told("titles", **settings) == "Norvik Kettle: quiet"
    assert one.told("titles_masked", **settings) == "quiet"
    assert one.rationales("titles_masked") == ["They like the as the", "A"]
    assert one.rationales("titles") == list(one.texts)


def test_the_control_lends_everybody_somebody_elses_history():
    groups = [group(n, (0.0, -1.0), person=f"p{n // 2}") for n in range(12)]
    order = part.another_person(groups, seed=3)
    assert sorted(order) == list(range(12))
    assert all(here // 2 != there // 2 for here, there in enumerate(order))
    with pytest.raises(ValueError, match="too few people"):
        part.another_person([group(n, (0.0, -1.0), person="p") for n in range(3)], seed=0)


def test_explanations_are_judged_on_other_users_one_row_each(tmp_path):
    xrec_files(tmp_path)
    rows = data.read_explained(tmp_path, "google", "both")
    assert rows[3].query == "Likes and theme3"
    clean = data.read_explained(tmp_path, "google", "explanation")
    assert clean[3].query == "Likes Book3 and theme3."
    assert clean[3].explanation == rows[3].explanation == "has theme3"
    with pytest.raises(ValueError, match="masking"):
        data.read_explained(tmp_path, "google", "query")
    seen, judged = data.split_explained([*rows, *rows], 15, seed=0)
    assert len(judged) == 15
    assert len({row.user for row in judged}) == 15
    assert not {row.user for row in seen} & {row.user for row in judged}
    with pytest.raises(ValueError, match="more than 40"):
        data.split_explained(rows, 40, seed=0)


def test_the_whole_study_on_small_data_goes_on_from_what_is_kept(tmp_path, monkeypatch):
    import outside_judge_fits as fits
    import outside_judge_xrec as xrec

    encoder = BertModel(BertConfig(vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    encoder.save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(resolve_model(MINILM_ID)[0]).save_pretrained(tmp_path / "encoder")
    rollout_files(tmp_path / "data", prompts=80)
    xrec_files(tmp_path / "data", users=30)
    small = replace(part.SETTINGS, encoder=str(tmp_path / "encoder"), epochs=1, trained_layers=1, precision="float32")
    monkeypatch.setattr(part, "SETTINGS", small)
    monkeypatch.setattr(xrec, "SETTINGS", small)
    given = ["--data", "data", "--work", "work", "--out", "out", "--masking", "both", "--candidates", "12"]
    given += ["--choices", "best", "worst"]
    paths = [str(tmp_path / word) if word in ("data", "work", "out") else word for word in given]
    monkeypatch.setattr(sys, "argv", ["outside_judge.py", *paths])
    outside_judge.main()
    report = json.loads((tmp_path / "out" / "outside-judge.json").read_text())
    scorers = {(row["scorer"], row["titles"]) for row in report["rollouts"]["rows"]}
    assert {("frozen", "titles"), ("trained on worst", "titles_masked"), ("longest", "titles")} <= scorers
    chance = next(row for row in report["xrec"]["rows"] if row["scorer"] == "chance")
    assert chance["1-of-11"]["value"] == pytest.approx(1 / 11, abs=1e-4)
    needed = {"command", "settings", "seed", "seconds"}
    assert all(needed <= row.keys() for study in ("rollouts", "xrec") for row in report[study]["rows"])
    assert "theme3" not in json.dumps(report)  # figures only

    def never(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(fits, "start_model", never)
    outside_judge.main()
    again = json.loads((tmp_path / "out" / "outside-judge.json").read_text())
    for study in ("xrec", "rollouts"):
        kept, first = ([{**row, "seconds": 0} for row in one[study]["rows"]] for one in (again, report))
        assert kept == first


def test_without_data_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["outside_judge.py", "--data", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="nowhere is absent"):
        outside_judge.main()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED} (the rated rationales)")
def test_the_real_prompts_that_nano_never_saw_are_judged_and_nobody_of_them_trains():
    training, judged = data.split_groups(data.read_groups(SHARED))
    assert len({one.prompt for one in judged}) == 568
    assert all(held_out_rollout(one.prompt) for one in judged)
    assert not any(held_out_rollout(one.prompt) for one in training)
    histories = [{event for one in side for event in one.history if all(event)} for side in (training, judged)]
    told = {one.history for one in judged}
    assert not any(one.history in told for one in training)
    assert len(histories[0] & histories[1]) <= 0.001 * len(histories[0])  # equal words of two people
