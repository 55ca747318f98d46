"""The stage ``baselines``: what it learns from, what the report makes of it, and that a leak in it is found."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_road import small_settings

from pulse_hf.artifacts import ArtifactError, read_json, read_manifest, read_table, write_table
from pulse_hf.data.sequences import load_items, load_sequences
from pulse_hf.evaluation import leakage
from pulse_hf.evaluation.baselines import bm25, bm25_reviews, encoder_tuned
from pulse_hf.evaluation.cost import spent
from pulse_hf.evaluation.evaluate import evaluate
from pulse_hf.evaluation.fusion import fusion, gated
from pulse_hf.evaluation.fusion.fusion import INGREDIENTS, REVIEWS
from pulse_hf.evaluation.fusion.stacker import Stacker
from pulse_hf.evaluation.protocol import load_study
from pulse_hf.evaluation.score_book import ScoreBook
from pulse_hf.evaluation.systems import has_reviews, systems
from pulse_hf.models.thought_space import PulseThoughtSpaceModel
from pulse_hf.reasoning.titles import history_titles, title_pairs
from pulse_hf.stages import BASELINES
from pulse_hf.training.baselines import BaselineSettings, baselines

SETTINGS = small_settings()
FITTED = ("encoder-tuned", "sasrec-bce", "duorec", "a-llmrec+reason")  # the others' fits have tests of their own
ROWS = ("random", "bm25", *FITTED, "sasrec", "sasrec+text", "encoder-tuned+sasrec", "gated")


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "learned"
    shutil.copytree(small_run, folder, ignore=shutil.ignore_patterns("evaluate"))
    baselines(folder, BaselineSettings(systems=FITTED), seed=SETTINGS.seed)
    return folder


@pytest.mark.parametrize("fitted", [(), ("encoder-tuned",), ("encoder-tuned", "morec", "ctrl")])
def test_fusion_is_pulse_fused_without_the_thoughts(tmp_path, fitted):
    for name in fitted:
        (tmp_path / "baselines" / name).mkdir(parents=True)
    known = systems(ScoreBook(tmp_path, SimpleNamespace(run=tmp_path)), l2=1e-3)
    fused, ours = known["fusion"], known["pulse-fused"]
    assert fused.parts == (*INGREDIENTS, *(name for name in fitted if name != "ctrl"))
    assert ours.parts == (*fused.parts, "pulse")
    assert set(fused.models) == {path for name in fused.parts for path in known[name].models}
    assert set(fused.stages) == {"sequential", *(("baselines",) if fitted else ())}
    assert set(ours.stages) > set(fused.stages)


def test_pairs_are_training_events_with_the_titles_before_them(small_run):
    sequences = load_sequences(small_run)
    items = {item.item_id: item for item in load_items(small_run)}
    pairs = list(title_pairs(sequences, items, 5))
    assert len(pairs) == sum(max(0, one.num_train - 1) for one in sequences)
    by_user = {one.user_id: one for one in sequences}
    for decision, text, title in pairs[:50]:
        user = by_user[decision.user_id]
        assert decision.position < user.num_train
        assert title == items[user.item_ids[decision.position]].title
        told = [items[item].title for item in user.item_ids[: decision.position]][-5:]
        assert text == ". ".join(reversed(told)) == history_titles(user.before(decision.position), items, 5)


def test_the_report_has_their_rows_and_the_audit_reads_what_they_read(run):
    settings = replace(SETTINGS.evaluate, systems=ROWS, worth_of_a_reason=False)
    report = read_json(evaluate(run, settings, seed=SETTINGS.seed) / "report.json")
    assert set(report["systems"]) == set(ROWS)
    assert report["audit"]["passed"]
    recorded = next(one for one in report["audit"]["checks"] if "recorded inputs" in one["name"])
    assert "baselines" in recorded["detail"]
    fits = read_manifest(run / "baselines")["counts"]["fits"]
    assert fits["encoder-tuned"]["validation"]["after"]["titles"]["mrr"] > 0
    assert set(fits) == set(FITTED) < set(BASELINES)


def test_a_baseline_that_counted_other_targets_is_found(run, monkeypatch):
    honest = leakage.read_manifest

    def with_a_target_too_many(folder):
        manifest = json.loads(json.dumps(honest(folder)))
        if folder.name == "baselines":
            manifest["counts"]["fits"]["duorec"]["targets"] += 1
        return manifest

    monkeypatch.setattr(leakage, "read_manifest", with_a_target_too_many)
    checks = {one["name"]: one for one in leakage.audit(run)["checks"]}
    assert "duorec was fitted on" in checks["fits saw training events only"]["detail"]
    assert not checks["fits saw training events only"]["passed"]


def test_titles_without_a_word_are_no_query(small_run):
    study = load_study(small_run)
    decisions = study.split("test")[:3]
    histories, candidates = study.histories(decisions), study.candidates(decisions)
    nothing = {item_id: replace(item, title="1 X") for item_id, item in study.items.items()}
    worded = {histories[0].item_ids[-1], candidates[0][0]}
    for item_id in worded:
        nothing[item_id] = replace(nothing[item_id], title="Quiet kettle")
    asked = [bool(worded & {*history.item_ids[-bm25.RECENT_EVENTS :]}) for history in histories]
    assert set(asked) == {True, False}
    rows = bm25.scores(replace(study, items=nothing), decisions)
    for has_words, items, row in zip(asked, candidates, rows, strict=True):
        assert (row > 0).tolist() == [has_words and item in worded for item in items]
        assert (row >= 0).all()


def test_every_row_pays_for_the_scorer_it_is_joined_from(run):
    counts = read_manifest(run / "recommender")["counts"]["systems"]
    for names, own in ((("fusion+slm+sft", "sasrec", "slm+sft"), "slm+sft"), (("pulse-fused", "pulse"), "pulse")):
        assert spent(run, "recommender", names)[1] == counts[own]["seconds"]


def test_every_row_pays_for_its_own_fits_among_the_learned_baselines(run):
    manifest = read_manifest(run / "baselines")
    seconds = {name: fit["seconds"] for name, fit in manifest["counts"]["fits"].items()}
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) <= manifest["seconds"]
    assert spent(run, "baselines", ("sasrec-bce",)) == (0, seconds["sasrec-bce"])
    both = seconds["encoder-tuned"] + seconds["sasrec-bce"]
    assert spent(run, "baselines", ("fusion", "sasrec", "encoder-tuned", "sasrec-bce"))[1] == pytest.approx(both)


def test_scores_are_the_cosine_of_titles_and_no_order_changes_them(run):
    study = load_study(run)
    decisions = study.split("test")[:20]
    rows = encoder_tuned.scores(study, decisions)
    backwards = encoder_tuned.scores(study, decisions[::-1])[::-1]
    for row, other in zip(rows, backwards, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-5)
    model = PulseThoughtSpaceModel.from_pretrained(run / "baselines" / "encoder-tuned").eval()
    histories, candidates = study.histories(decisions), study.candidates(decisions)
    for history, items, row in list(zip(histories, candidates, rows, strict=True))[:3]:
        told = history_titles(history, study.items, BaselineSettings().num_titles)
        titles = model.encode_rationales([study.items[item].title for item in items])
        expected = torch.cosine_similarity(model.encode_histories([told]), titles)
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)
        assert row.std() > 1e-3


def test_the_gate_trusts_sasrec_on_popular_items_only(run):
    study = load_study(run)
    decisions = study.split("test")[:40]
    counts = study.training_counts
    mean = sum(counts.values()) / len(study.items)
    for share, items in zip(fusion.events_shares(study, decisions), study.candidates(decisions), strict=True):
        assert share.tolist() == pytest.approx([counts[item] / (counts[item] + mean) for item in items])
    ones = [np.ones(len(items)) for items in study.candidates(decisions)]
    constants = Stacker(gated.PARTS, (0.0, 0.5), (1.0, 0.5), (1.0, 1.0), 1)
    found = gated.sides(study, decisions, {"sasrec": ones, "encoder-tuned": ones}, constants)
    for known, text in zip(found["sasrec"], found["encoder-tuned"], strict=True):
        np.testing.assert_allclose(known + text, 1.0)  # both standardise to 1, and the shares add up
    for known, share in zip(found["sasrec"], fusion.events_shares(study, decisions), strict=True):
        np.testing.assert_allclose(known, share)  # SASRec where there are events, the text elsewhere


def test_bm25_prefers_the_candidate_that_shares_a_rare_word(run):
    study = load_study(run)
    decisions = study.split("test")
    rows = bm25.scores(study, decisions)
    agreed = 0
    for decision, row in zip(decisions, rows, strict=True):
        history = study.sequences[decision.user_id].before(decision.position)
        said = {word for item in history.item_ids[-10:] for word in study.items[item].title.lower().split()}
        titles = [study.items[item].title for item in study.sets[decision.decision_id].item_ids]
        shares = np.array([bool(said & set(title.lower().split())) for title in titles])
        assert ((row > 0) <= shares).all()  # nothing shared, no score
        agreed += int(shares[row.argmax()])
    assert agreed > 0


def test_bm25_reviews_finds_who_wrote_alike_and_reads_no_word_of_a_target(small_run):
    study = load_study(small_run)
    decisions = study.split("test")
    decision, *others = decisions
    target = study.target_items([decision])[0]
    silent = {key: replace(one, reviews=("",) * len(one)) for key, one in study.sequences.items()}
    told = dict(silent)
    writer = next(
        key for key, one in study.sequences.items() if target in one.training().item_ids and key != decision.user_id
    )
    places = [target == item for item in study.sequences[writer].item_ids]
    told[writer] = replace(told[writer], reviews=tuple("wonderfully zebra" if place else "" for place in places))
    person = study.sequences[decision.user_id]
    told[decision.user_id] = replace(
        person, reviews=tuple("zebra please" if place == 0 else "unheard" for place in range(len(person)))
    )
    (row,) = bm25_reviews.scores(replace(study, sequences=told), [decision])
    assert row.argmax() == study.targets([decision])[0]
    assert (np.delete(row, row.argmax()) == 0).all()  # no other candidate has the word
    # What is written of validation and test targets is nobody's document.
    held_out = {
        key: replace(one, reviews=("",) * one.num_train + ("zebra",) * (len(one) - one.num_train))
        for key, one in study.sequences.items()
    }
    held_out[decision.user_id] = told[decision.user_id]
    (row,) = bm25_reviews.scores(replace(study, sequences=held_out), [decision])
    assert (row == 0).all()
    assert all((row == 0).all() for row in bm25_reviews.scores(replace(study, sequences=silent), others[:3]))


def test_reviews_join_the_fusions_where_there_are_any(small_run, tmp_path):
    assert has_reviews(small_run)
    known = systems(ScoreBook(tmp_path, load_study(small_run)), l2=1e-3)
    assert all(REVIEWS in known[name].parts for name in ("fusion", "fusion+slm+sft", "pulse-fused"))
    (tmp_path / "sequences").mkdir()
    rows = [
        {**row, "reviews": [""] * len(row["reviews"])}
        for row in read_table(small_run / "sequences" / "sequences.parquet").to_pylist()
    ]
    write_table(tmp_path / "sequences" / "sequences.parquet", "sequences", rows)
    assert not has_reviews(tmp_path)


def test_a_leak_into_the_pairs_is_found(small_run, tmp_path, monkeypatch):
    run = tmp_path / "leaky"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("evaluate"))

    def leaky(sequences, items, num_titles):
        whole = [replace(one, cut=(len(one), -1, -1)) for one in sequences]
        return title_pairs(whole, items, num_titles)

    monkeypatch.setattr("pulse_hf.training.thought_pairs.title_pairs", leaky)
    baselines(run, BaselineSettings(systems=("encoder-tuned",)), seed=SETTINGS.seed)
    monkeypatch.undo()
    settings = replace(SETTINGS.evaluate, systems=("random", "encoder-tuned"), worth_of_a_reason=False)
    with pytest.raises(ArtifactError, match="baselines read another baselines than its sequences allow"):
        evaluate(run, settings, seed=SETTINGS.seed)


def test_unknown_systems_are_named():
    with pytest.raises(ValueError, match="gru4rec"):
        BaselineSettings(systems=("gru4rec",))
