"""The evidence's arms: settings that exist, data that may lie anywhere, and what the list says."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import evidence  # noqa: E402

from pulse_hf.artifacts import ArtifactError, sha256_of_text  # noqa: E402
from pulse_hf.evaluation.outcomes import load_outcome  # noqa: E402

ARMS = sorted(evidence.ARMS.glob("*.json"))


@pytest.mark.parametrize("path", ARMS, ids=lambda path: path.stem)
def test_every_arm_is_valid_and_its_hash_does_not_depend_on_where_the_data_lies(path, tmp_path):
    settings, folder = evidence.settings_of_arm(path, tmp_path)
    assert folder.parent == tmp_path
    assert Path(settings.prepare.reviews).parent == folder
    elsewhere, _ = evidence.settings_of_arm(path, tmp_path / "other")
    assert settings != elsewhere
    assert evidence.facts_of(settings) == evidence.facts_of(elsewhere)
    later, _ = evidence.settings_of_arm(path, tmp_path, later=True)
    # What later seeds leave out changes no system that they have.
    systems = replace(later.recommender, systems=settings.recommender.systems)
    assert replace(later, baselines=settings.baselines, evaluate=settings.evaluate, recommender=systems) == settings
    assert set(later.baselines.systems) <= set(settings.baselines.systems)
    assert {"pulse"} <= set(later.recommender.systems) <= set(settings.recommender.systems)


def test_an_arm_that_did_not_run_says_so_with_its_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evidence, "REPORTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--list", "--data", str(tmp_path)])
    evidence.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{path.stem}: no data here; python scripts/evidence.py {path.stem}"
        for path in sorted(ARMS, key=lambda path: path.stem)
    ]


def test_an_unknown_arm_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evidence.py", "books"])
    with pytest.raises(SystemExit):
        evidence.main()
    assert "no arm books; there are" in capsys.readouterr().err


def test_a_seed_that_is_kept_is_not_run_again_unless_its_settings_changed(small_run, monkeypatch, tmp_path):
    path = ARMS[0]
    monkeypatch.setattr(evidence, "REPORTS", tmp_path)
    ran = []

    def run_road(folder, settings):
        ran.append(settings.seed)
        shutil.copytree(small_run, folder)

    monkeypatch.setattr(evidence, "run_road", run_road)
    asked = (path.stem, 4, tmp_path, tmp_path / "runs")
    made = evidence.outcome_of_seed(*asked, later=False, keep=True)
    again = evidence.outcome_of_seed(*asked, later=True, keep=True)
    assert ran == [4]
    assert again.chosen_sha256 == made.chosen_sha256
    assert {**again.report} == {**made.report}
    shutil.rmtree(tmp_path / "runs")
    evidence.outcome_of_seed(*asked, later=False, keep=False)
    assert ran == [4, 4]  # unless asked for, every seed is run here
    facts_of = evidence.facts_of
    monkeypatch.setattr(evidence, "facts_of", lambda settings: {**facts_of(settings), "seed": "another"})
    with pytest.raises(ArtifactError, match="other settings"):
        evidence.outcome_of_seed(*asked, later=False, keep=True)


@pytest.mark.parametrize("kept", sorted((evidence.REPORTS / "seeds").glob("*")), ids=lambda path: path.name)
def test_every_kept_seed_is_of_the_arm_as_it_is(kept):
    name = kept.name.rpartition("-s")[0]
    settings = [
        evidence.settings_of_arm(evidence.ARMS / f"{name}.json", evidence.DATA, later=one)[0] for one in (0, 1)
    ]
    known = [sha256_of_text([json.dumps(evidence.facts_of(one), sort_keys=True)]) for one in settings]
    assert load_outcome(kept).settings_sha256 in known
