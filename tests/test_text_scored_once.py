"""``pulse`` reads no text that ``pulse-text`` has read: kept logits and votes give what its own scorer gives."""

from __future__ import annotations

import numpy as np
import pytest

from pulse_hf.artifacts import MANIFEST, read_json, write_json
from pulse_hf.evaluation import our_scores
from pulse_hf.evaluation.our_scores import slm_scores
from pulse_hf.evaluation.protocol import load_study
from pulse_hf.evaluation.score_book import ScoreBook
from pulse_hf.evaluation.systems import systems
from pulse_hf.models.scorer.adapter import read_record
from pulse_hf.reasoning.examples import PromptShape, load_thoughts


@pytest.fixture
def weighed_run(small_run, tmp_path):
    """The small run, its scorer made to weigh the text and every vote."""
    from shutil import copytree

    from pulse_hf.artifacts import read_tensors, write_tensors

    copytree(small_run, tmp_path / "run")
    folder = tmp_path / "run" / "recommender"
    text = read_tensors(folder / "pulse-text" / "score_head.safetensors")
    head = read_tensors(folder / "pulse" / "score_head.safetensors")
    votes = [0.7, 0.4, 0.2, 0.1][: head["feature_score.weight"].shape[1]]
    head |= {name: text[name] * 0.5 for name in ("score.weight", "likelihood_score.weight")}
    head["feature_score.weight"] = head["feature_score.weight"].new_tensor([votes])
    write_tensors(folder / "pulse" / "score_head.safetensors", head)
    manifest = read_json(folder / MANIFEST)
    names = ("text", *PromptShape.from_dict(read_record(folder / "pulse").prompt).features)
    assert set(manifest["counts"]["systems"]["pulse"]["weights"]) == set(names)
    manifest["counts"]["systems"]["pulse"]["weights"] = dict(zip(names, [0.5, *votes], strict=True))
    write_json(folder / MANIFEST, manifest)
    return tmp_path / "run"


def test_kept_logits_and_votes_are_the_scorers_own_scores(weighed_run, tmp_path, monkeypatch):
    study = load_study(weighed_run)
    book = ScoreBook(tmp_path / "scores", study)
    pulse = systems(book, l2=1e-3)["pulse"]
    decisions = study.split("test")
    expected = slm_scores(study, decisions, folder="pulse", thoughts=load_thoughts(weighed_run))
    scored = []
    whole = our_scores.slm_scores
    monkeypatch.setattr(
        our_scores, "slm_scores", lambda *args, **more: scored.append(more["folder"]) or whole(*args, **more)
    )
    for found, wanted in zip(book.rows(pulse, "test"), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert scored == ["pulse-text"]
    assert len({round(float(value), 3) for value in expected[0]}) > 1


def test_without_a_weight_for_text_no_text_is_read(small_run, weighed_run, tmp_path):
    manifest = read_json(weighed_run / "recommender" / MANIFEST)
    manifest["counts"]["systems"]["pulse"]["weights"]["text"] = 0.0
    write_json(weighed_run / "recommender" / MANIFEST, manifest)
    study = load_study(weighed_run)
    book = ScoreBook(tmp_path / "scores", study)
    book.rows(systems(book, l2=1e-3)["pulse"], "test")
    assert not (tmp_path / "scores" / "test" / "pulse-text.parquet").exists()
