"""Artefacts: whole or not at all, skipped when nothing changed, refused by name when something did."""

import json

import pytest

from pulse_hf.artifacts import (
    ArtifactError,
    Fingerprint,
    Shards,
    build,
    content_sha256,
    read_json,
    read_manifest,
    read_table,
    sha256_of_text,
    verify,
    write_json,
    write_table,
)
from pulse_hf.schema import Sequence, fold_of, stable_hash

ROW = {"decision_id": "u#1", "user_id": "u", "position": 1, "split": "test"}


def fingerprint(**changes):
    values = {
        "stage": "toy",
        "settings": {"size": 3},
        "seed": 1,
        "parents": {"a": "x"},
        "model": {"id": "m"},
        "prompts": {"p": "h"},
    }
    return Fingerprint(**{**values, **changes})


def make(work):
    write_json(work / "rows.json", [1, 2])
    return {"read": 2, "kept": 2}


def test_build_writes_once_and_then_skips(tmp_path):
    folder = tmp_path / "toy"
    assert build(folder, fingerprint(), make) is True
    manifest = read_manifest(folder)
    assert manifest["counts"] == {"read": 2, "kept": 2}
    assert set(manifest["files"]) == {"rows.json"}
    assert build(folder, fingerprint(), lambda work: pytest.fail("made again")) is False
    verify(folder)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("stage", {"stage": "game"}),
        ("settings.size: was 3, asked 4", {"settings": {"size": 4}}),
        ("settings.size: was 3, asked 3.0", {"settings": {"size": 3.0}}),
        ("settings.depth: was absent, asked 2", {"settings": {"size": 3, "depth": 2}}),
        ("settings.size: was 3, asked absent", {"settings": {}}),
        ("seed: was 1, asked 2", {"seed": 2}),
        ("parents.a", {"parents": {"a": "y"}}),
        ("parents.b: was absent", {"parents": {"a": "x", "b": "x"}}),
        ("model.id", {"model": {"id": "n"}}),
        ("model.revision: was absent", {"model": {"id": "m", "revision": "1"}}),
        ("prompts.p", {"prompts": {"p": "other"}}),
        ('prompts.p: was "h", asked absent', {"prompts": {}}),
    ],
)
def test_a_changed_fingerprint_is_refused_by_name_unless_forced(tmp_path, key, changes):
    folder = tmp_path / "toy"
    build(folder, fingerprint(), make)
    with pytest.raises(ArtifactError, match=key):
        build(folder, fingerprint(**changes), make)
    assert build(folder, fingerprint(**changes), make, force=True) is True


def test_what_an_older_version_made_is_refused_by_name_and_made_anew_if_forced(tmp_path, monkeypatch):
    folder = tmp_path / "toy"

    def fail(work):
        Shards(work, "written", "decisions").append([ROW])
        raise RuntimeError("killed")

    with monkeypatch.context() as older:
        older.setattr("pulse_hf.artifacts.building.FORMAT_VERSION", 1)
        build(folder, fingerprint(), make)
        with pytest.raises(RuntimeError):
            build(tmp_path / "half", fingerprint(), fail)
    for made in (folder, tmp_path / "half"):
        with pytest.raises(ArtifactError, match=r"(?s)format_version: was 1, .*--force"):
            build(made, fingerprint(), make)
        assert build(made, fingerprint(), make, force=True) is True
        verify(made)


def test_a_failing_stage_leaves_the_old_artefact(tmp_path):
    folder = tmp_path / "toy"
    build(folder, fingerprint(), make)
    before = content_sha256(folder)

    def fail(work):
        write_json(work / "rows.json", [])
        raise RuntimeError("evil")

    with pytest.raises(RuntimeError, match="evil"):
        build(folder, fingerprint(seed=9), fail, force=True)
    assert content_sha256(folder) == before
    verify(folder)


def test_half_made_work_of_other_settings_is_refused(tmp_path):
    folder = tmp_path / "toy"

    def fail(work):
        Shards(work, "written", "decisions").append([ROW])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        build(folder, fingerprint(), fail)
    with pytest.raises(ArtifactError, match=r"settings\.size"):
        build(folder, fingerprint(settings={"size": 5}), make)
    assert build(folder, fingerprint(), make) is True


def test_half_made_work_without_shards_is_made_again(tmp_path):
    def fail(work):
        write_json(work / "half.json", 1)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        build(tmp_path / "toy", fingerprint(), fail)
    assert build(tmp_path / "toy", fingerprint(seed=2), make) is True
    assert set(read_manifest(tmp_path / "toy")["files"]) == {"rows.json"}


def test_verify_names_every_kind_of_damage(tmp_path):
    folder = tmp_path / "toy"
    build(folder, fingerprint(), make)
    (folder / "rows.json").write_text("[9]")
    (folder / "extra.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"(?s)extra\.txt: not in the manifest.*rows\.json: sha256 differs"):
        verify(folder)
    (folder / "rows.json").unlink()
    with pytest.raises(ArtifactError, match=r"rows\.json: missing"):
        verify(folder)


def test_same_content_has_the_same_sha256_wherever_it_is_made(tmp_path):
    build(tmp_path / "a", fingerprint(), make)
    build(tmp_path / "b", fingerprint(), make)
    assert content_sha256(tmp_path / "a") == content_sha256(tmp_path / "b")


def test_shards_resume_without_loss_or_repetition(tmp_path):
    shards = Shards(tmp_path, "written", "decisions")
    shards.append([ROW])
    again = Shards(tmp_path, "written", "decisions")
    assert again.done() == {"u#1"}
    again.append([{**ROW, "decision_id": "u#2"}])
    assert again.read()["decision_id"].to_pylist() == ["u#1", "u#2"]


def test_errors_name_the_file(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ArtifactError, match=r"bad\.parquet"):
        read_table(tmp_path / "bad.parquet")
    with pytest.raises(ArtifactError, match="not a finished artefact"):
        read_manifest(tmp_path)


def test_tables_keep_records_and_none(tmp_path):
    sequence = Sequence("007", ("a",), (5,), (None,), ("",))
    write_table(tmp_path / "s.parquet", "sequences", [sequence])
    (row,) = read_table(tmp_path / "s.parquet").to_pylist()
    assert row == {
        "user_id": "007",
        "item_ids": ["a"],
        "timestamps": [5],
        "ratings": [None],
        "reviews": [""],
        "cut": None,
    }


def test_text_hash_sees_borders_and_the_manifest_is_json(tmp_path):
    assert sha256_of_text(["ab", "c"]) != sha256_of_text(["a", "bc"])
    build(tmp_path / "toy", fingerprint(), make)
    assert json.loads((tmp_path / "toy" / "manifest.json").read_text())["stage"] == "toy"


def test_the_split_and_the_folds():
    sequence = Sequence("u", tuple("abcde"), (), (None,) * 5, ("",) * 5)
    assert [sequence.split_of(position) for position in range(5)] == ["train", "train", "train", "validation", "test"]
    assert sequence.training().item_ids == ("a", "b", "c")
    assert sequence.before(4).item_ids == ("a", "b", "c", "d")
    assert Sequence("u", ("a", "b"), (), (None,) * 2, ("",) * 2).num_train == 2
    folds = [fold_of(f"user {number}", 2, 0) for number in range(1000)]
    assert 400 < sum(folds) < 600
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
