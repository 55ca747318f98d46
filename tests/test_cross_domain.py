"""Another shop: systems see its texts and each person's own history; what needs no more scores as it does at home."""

import json
import shutil
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_road import small_settings

from pulse_hf.artifacts import ArtifactError, read_json, read_manifest, read_table, write_json, write_table
from pulse_hf.data.world.shop import WorldSettings
from pulse_hf.data.world.stage import world
from pulse_hf.evaluation.baselines import sasrec
from pulse_hf.evaluation.protocol import load_study
from pulse_hf.evaluation.score_book import ScoreBook
from pulse_hf.evaluation.systems import systems
from pulse_hf.models.sasrec import PulseSASRecModel
from pulse_hf.pipeline import run_road
from pulse_hf.training.baselines import BaselineSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import cross_domain  # noqa: E402
import cross_domain_shop  # noqa: E402
import render_readme  # noqa: E402

USERS, SEED = 10, 7
SHOP = WorldSettings(num_users=30, items_per_kind=1, max_events=6)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    small = small_settings()
    settings = replace(
        small,
        seed=SEED,
        world=SHOP,
        sequential=replace(small.sequential, epochs=1),
        candidates=replace(
            small.candidates, max_test_users=USERS, training_decisions_per_user=1, max_train_users=12, num_negatives=9
        ),
        rationales=replace(small.rationales, engine="extractive"),
        thought_space=replace(small.thought_space, titles=True, epochs=1, num_folds=0),
        thoughts=replace(small.thoughts, engine="extractive"),
        recommender=replace(small.recommender, title_agreement=True),
        baselines=BaselineSettings(systems=("encoder-tuned",)),
    )
    return run_road(tmp_path_factory.mktemp("source") / "run", settings, until="baselines")


@pytest.fixture(scope="module")
def other_shop(tmp_path_factory):
    """Another seed: other items and people, under the very ids of the source."""
    return world(tmp_path_factory.mktemp("other"), SHOP, seed=SEED + 1)


def asked(source, shop, work):
    files = {"reviews": shop / "reviews.jsonl", "metadata": shop / "items.jsonl"}
    return Namespace(source=source, target="other", users=USERS, seed=SEED, work=work, **files)


@pytest.fixture(scope="module")
def measured(source, other_shop, tmp_path_factory):
    given = asked(source, other_shop, tmp_path_factory.mktemp("cross"))
    return given, cross_domain.study_of(given)


def kept(work):
    """Every kept score by system, every reason, and the candidates."""
    (folder,) = work.glob("scores-*")
    scores = {path.stem: read_table(path)["scores"].to_pylist() for path in (folder / "test").glob("*.parquet")}
    return (
        scores,
        read_json(folder / "trees.json")["trees"],
        read_manifest(work / "candidates")["counts"]["candidates_sha256"],
    )


def test_only_the_marked_row_changes_when_all_other_people_choose_something_else(
    measured, source, other_shop, tmp_path
):
    given, report = measured
    mine = {one.user_id for one in load_study(given.work).split("test")}
    rows = [json.loads(line) for line in (other_shop / "reviews.jsonl").read_text().splitlines()]
    others = [row for row in rows if row["user_id"] not in mine]
    assert len(mine) == USERS
    assert len(others) > 100
    # The same choices dealt anew among the others: the catalogue stays, nobody's events do.
    shuffled = np.random.default_rng(0).permutation([row["item_id"] for row in others])
    for row, item_id in zip(others, shuffled.tolist(), strict=True):
        row |= {"item_id": item_id, "review": "I only want what glows in the dark.", "rating": 1}
    changed = tmp_path / "shop"
    shutil.copytree(other_shop, changed)
    (changed / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cross_domain.study_of(asked(source, changed, tmp_path / "work"))
    before, after = kept(given.work), kept(tmp_path / "work")
    assert before[2]["test"] == after[2]["test"]
    assert before[1] == after[1]
    assert before[0].keys() == after[0].keys() == report["systems"].keys()
    differ = {name for name in before[0] if before[0][name] != after[0][name]}
    assert (
        differ
        == {cross_domain.POPULARITY}
        == {name for name, row in report["systems"].items() if row["sees_the_shop"]}
    )


def test_systems_are_given_the_sampled_people_and_nothing_from_the_test_event_on(measured):
    given, _ = measured
    shop = load_study(given.work)
    study = cross_domain_shop.abroad(given.source, shop)
    decisions = shop.split("test")
    assert study.split("test") == decisions == list(study.decisions.values())
    assert study.sequences.keys() == {one.user_id for one in decisions} < shop.sequences.keys()
    for one in decisions:
        assert study.sequences[one.user_id].item_ids == shop.sequences[one.user_id].item_ids[: one.position]
        assert one.position == len(shop.sequences[one.user_id]) - 1  # the validation event is history


def test_at_home_what_needs_no_neighbours_and_no_ids_scores_as_in_the_run_itself(source, tmp_path):
    shop = cross_domain_shop.prepared(source, asked(source, source / "world", tmp_path / "work"))
    study, home = cross_domain_shop.abroad(source, shop), load_study(source)
    decisions = home.split("test")
    assert study.candidates(decisions) == home.candidates(decisions)
    assert study.targets(decisions) == home.targets(decisions)
    np.testing.assert_allclose(study.item_vectors, home.item_vectors, atol=1e-6)
    known = systems(ScoreBook(tmp_path, home), l2=1.0)
    for name in ("title-similarity", "bm25", "encoder-tuned", "thought-space", "slm+sft"):
        np.testing.assert_allclose(
            known[name].scores(study, decisions), known[name].scores(home, decisions), atol=1e-5
        )
    fitted = PulseSASRecModel.from_pretrained(source / "sequential" / "sasrec+text").eval()
    own = sasrec.scores_by(fitted, home, decisions)
    torch.nn.init.zeros_(fitted.item_embedding.weight)  # as if no id had been learnt
    found = cross_domain_shop.by_text(study, decisions)
    np.testing.assert_allclose(found, sasrec.scores_by(fitted, home, decisions), atol=1e-5)
    assert np.abs(np.array(found) - own).max() > 1e-3


def test_no_rationale_of_the_source_votes_for_an_item_that_bears_the_same_id(measured):
    given, _ = measured
    shop, home = load_study(given.work), load_study(given.source)
    study = cross_domain_shop.abroad(given.source, shop)
    decision = study.split("test")[0]
    history, items = study.histories([decision])[0], study.candidates([decision])[0]
    point = home.shared.vectors[0]
    assert np.any(home.shared.evidence(point, items, 0.15, 0.3))  # the source would vote for these ids
    assert not np.any(study.shared.evidence(point, items, 0.15, 0.3))
    found = study.shared.votes("For rain.", history, study.items, items, temperature=0.15, smoothing=0.3, titles=True)
    assert not np.array(found)[:, :2].any()
    assert np.array(found)[:, 2:].all()


def test_reasons_are_quotes_of_the_person_and_lend_nothing(measured):
    given, report = measured
    shop = load_study(given.work)
    _, trees, _ = kept(given.work)
    quoted = 0
    for one in shop.split("test"):
        words = " ".join(shop.sequences[one.user_id].before(one.position).reviews)
        texts = [node[2] for node in trees[one.decision_id]["nodes"]]
        quotes = [quote for text in texts for quote in text.split('"')[1::2]]
        assert all(quote in words for quote in quotes)
        quoted += bool(quotes)
        assert not any("similar taste" in text for text in texts)
    assert quoted == USERS
    assert report["reasons"] == {**report["reasons"], "engine": "extractive", "given": USERS}


def test_the_leaf_is_chosen_by_agreement_and_equal_rows_are_left_out(measured):
    given, _ = measured
    decisions = load_study(given.work).split("test")
    _, trees, _ = kept(given.work)
    told = cross_domain_shop.reasons(trees, decisions)
    for key, tree in trees.items():
        deepest = max(node[0] for node in tree["nodes"])
        assert told["pulse-text"][key].agreement == max(node[3] for node in tree["nodes"] if node[0] == deepest)
        assert told[cross_domain_shop.BASE][key].reason == tree["nodes"][0][2]
    assert told[cross_domain_shop.NONE] == {}
    one_text = {
        key: {**tree, "nodes": [[*node[:2], "the same", *node[3:]] for node in tree["nodes"]]}
        for key, tree in trees.items()
    }
    assert cross_domain_shop.reasons(one_text, decisions).keys() == {"pulse-text", cross_domain_shop.NONE}


def test_the_report_has_known_rows_pairs_and_no_figure_of_another_pair_of_shops(measured):
    _, report = measured
    found = report["systems"]
    assert set(found) >= {"title-similarity", "encoder-tuned", "sasrec+text", "slm+sft", "pulse-text", "pulse"}
    for name in ("random", "sasrec"):
        assert found[name]["hr@1"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    assert report["protocol"]["negatives"] == 9
    assert report["protocol"]["users"] == USERS
    assert {row["paper_hr@1"] for row in found.values()} == {None}
    assert set(report["left_out"]) >= {"morec", "ctrl"}
    assert not set(report["left_out"]) & set(found)
    pairs = {(row["system"], row["baseline"]) for row in report["comparisons"]}
    assert pairs >= {
        ("pulse-text", "slm+sft"),
        ("thought-space", "encoder-tuned"),
        ("pulse-text", cross_domain_shop.NONE),
    }
    for row in report["comparisons"]:
        gap = found[row["system"]][row["metric"]]["value"] - found[row["baseline"]][row["metric"]]["value"]
        assert row["difference"] == pytest.approx(gap)
        assert row["p_holm"] >= row["p"]


def test_a_finished_study_scores_nothing_again_and_says_the_same(measured, monkeypatch):
    given, report = measured

    def never(*_, **__):
        raise AssertionError("scored again")

    for module, name in ((cross_domain, "slm_scores"), (cross_domain, "grown"), (cross_domain_shop, "encode_texts")):
        monkeypatch.setattr(module, name, never)
    assert cross_domain.study_of(given) == report


def test_several_sources_are_averaged_by_user_and_must_rank_the_same_candidates(measured, tmp_path):
    given, report = measured
    twin = tmp_path / "twin"  # the same models under another name, with one row less
    shutil.copytree(given.source, twin)
    shutil.rmtree(twin / "recommender" / "slm+sft")
    work = tmp_path / "work"
    shutil.copytree(given.work, work)
    (scores,) = work.glob("scores-*/test/bm25.parquet")  # and, as another fit would, one that ranks otherwise
    rows = read_table(scores).to_pylist()
    write_table(scores, "scores", [{**row, "scores": [-one for one in row["scores"]]} for row in rows])
    second = Namespace(**{**vars(given), "source": twin, "work": work})
    both, other = cross_domain.study_of(given, second), cross_domain.study_of(second)
    assert both["protocol"]["source"] == [given.source.name, "twin"]
    assert both["systems"].keys() == report["systems"].keys()
    for name, row in both["systems"].items():
        having = [one["systems"][name]["hr@1"]["value"] for one in (report, other) if name in one["systems"]]
        assert len(having) == (1 if name == "slm+sft" else 2)
        assert row["by_source"] == pytest.approx(having)
        assert row["hr@1"]["value"] == pytest.approx(np.mean(having))
    assert both["systems"]["bm25"]["by_source"][0] != both["systems"]["bm25"]["by_source"][1]
    assert "slm+sft" not in both["left_out"]
    with pytest.raises(ArtifactError, match="ranked other candidates"):
        cross_domain.study_of(given, Namespace(**{**vars(second), "seed": SEED + 1, "work": tmp_path / "elsewhere"}))


def test_a_source_without_a_stage_or_with_other_prompts_is_refused_by_name(source, tmp_path):
    damaged = tmp_path / "run"
    shutil.copytree(source, damaged, ignore=shutil.ignore_patterns("*.safetensors"))
    path = damaged / "thoughts" / "manifest.json"
    manifest = read_json(path)
    manifest["fingerprint"]["prompts.refine"] = '"0"'
    write_json(path, manifest)
    with pytest.raises(ArtifactError, match=r"thoughts: made with other prompts \(prompts.refine\)"):
        cross_domain.checked(damaged)
    path.unlink()
    with pytest.raises(ArtifactError, match="thoughts"):
        cross_domain.checked(damaged)


def test_the_block_shows_every_row_once_and_marks_the_one_that_sees_the_shop(measured, tmp_path, monkeypatch):
    _, report = measured
    (tmp_path / "hub_cards" / "reports").mkdir(parents=True)
    write_json(tmp_path / "hub_cards" / "reports" / "cross-domain-a-to-b.json", report)
    monkeypatch.setattr(render_readme, "REPORTS", tmp_path / "hub_cards" / "reports")
    text = render_readme.render("<!-- results:cross-domain-a-to-b -->\nold\n<!-- end -->")
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.endswith("| – |")]
    assert sorted(name.strip("*").partition(":")[0] for name in rows) == sorted(report["systems"])
    assert [name for name in rows if "sees" in name] == ["*popularity: sees the shop's interactions*"]
    assert "morec (not fitted in the source run" in text
    assert "| pulse-text against slm+sft |" in text
    assert "old" not in text
