"""Artefacts: whole or not at all, skipped when nothing changed, refused by name when something did."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from pulse_hf.artifacts import (
    ArtifactError,
    DiskFullError,
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
from pulse_hf.cli.faults import known_fault
from pulse_hf.evaluation.evaluate import _publish
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
        for room in ("manifest", "building"):
            older.setattr(f"pulse_hf.artifacts.{room}.FORMAT_VERSION", 1)
        build(folder, fingerprint(), make)
        with pytest.raises(RuntimeError):
            build(tmp_path / "half", fingerprint(), fail)
    for made in (folder, tmp_path / "half"):
        with pytest.raises(ArtifactError, match=r"(?s)format_version: was 1, .*--force"):
            build(made, fingerprint(), make)
        assert build(made, fingerprint(), make, force=True) is True
        verify(made)


def test_what_is_there_already_takes_no_lock_and_writes_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "toy"
    build(folder, fingerprint(), make)
    monkeypatch.setattr("pulse_hf.artifacts.building.FileLock", None)  # a read-only disk has no room for one
    assert build(folder, fingerprint(), make) is False
    (folder.with_name(".toy.old")).mkdir()  # a swap that was cut short is finished under the lock
    with pytest.raises(TypeError):
        build(folder, fingerprint(), make)


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


def test_a_copy_of_an_artefact_beside_it_is_its_owners(tmp_path):
    folder, copy = tmp_path / "toy", tmp_path / "toy.old"
    build(folder, fingerprint(), make)
    shutil.copytree(folder, copy)
    build(folder, fingerprint(), make)
    build(folder, fingerprint(seed=2), make, force=True)
    verify(copy)
    shutil.rmtree(folder)
    assert build(folder, fingerprint(seed=3), make) is True, "a copy is not taken for the artefact"
    assert read_manifest(copy)["fingerprint"]["seed"] == "1"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["toy", "toy.old"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_no_stage_made_is_moved_away_only_if_forced(tmp_path, kind):
    own = tmp_path / "toy" / "notes.txt" if kind == "folder" else tmp_path / "toy"
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    with pytest.raises(ArtifactError, match=r"toy exists, but is not a finished artefact .*elsewhere.*--force"):
        build(tmp_path / "toy", fingerprint(), make)
    assert own.read_text() == "mine"
    assert build(tmp_path / "toy", fingerprint(), make, force=True) is True
    verify(tmp_path / "toy")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".old")]


def test_a_finished_half_does_not_push_aside_what_no_stage_made(tmp_path):
    """As after a kill between the manifest and the rename, when somebody puts files there meanwhile."""
    build(tmp_path / "toy", fingerprint(), make)
    (tmp_path / "toy").rename(tmp_path / "toy.partial")
    (tmp_path / "toy").mkdir()
    assert build(tmp_path / "toy", fingerprint(), make) is False, "an empty folder is nobody's"
    (tmp_path / "toy").rename(tmp_path / "toy.partial")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not a finished artefact"):
        build(tmp_path / "toy", fingerprint(), make)
    assert (tmp_path / "toy" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("where", ["owner", "fsync", "make", "lock"])
def test_a_full_disk_has_its_exit_code_wherever_it_fills(tmp_path, monkeypatch, where):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write, sync, make_folder = Path.write_text, os.fsync, Path.mkdir

    def write_text(path, *args, **more):
        if where == "owner" and path.name.endswith(".owner"):
            raise full
        return write(path, *args, **more)

    def fsync(descriptor):
        if where == "fsync" and os.readlink(f"/proc/self/fd/{descriptor}").endswith("plain.bin"):
            raise full
        sync(descriptor)

    def mkdir(path, *args, **more):
        if where == "lock" and path.name == "run":
            raise full
        make_folder(path, *args, **more)

    def plain(work):
        if where == "make":
            raise full
        (work / "plain.bin").write_bytes(b"x")
        return {}

    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFullError, match="no room") as caught:
        build(tmp_path / "run" / "toy", fingerprint(), plain)
    assert known_fault(caught.value)[0] == 4
    monkeypatch.undo()
    assert build(tmp_path / "run" / "toy", fingerprint(), make) is True


def test_what_earlier_artefacts_do_not_tell_is_not_held_against_them(tmp_path):
    build(tmp_path / "toy", fingerprint(), make)
    told_now = {"model": {"id": "m", "files_sha256": "1"}}
    assert build(tmp_path / "toy", fingerprint(**told_now), make) is False
    build(tmp_path / "new", fingerprint(**told_now), make)
    for other in ({"id": "m", "files_sha256": "2"}, {"id": "m"}):
        with pytest.raises(ArtifactError, match=r"model\.files_sha256: was \"1\", asked"):
            build(tmp_path / "new", fingerprint(model=other), make)


def reported(folder, pictures, text="report"):
    for name in ("report.json", "report.md"):
        (folder / name).write_text(text)
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "figures").mkdir()
    for name in pictures:
        (folder / "figures" / name).write_bytes(b"drawn")


def states(run):
    return {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_report_is_written_again_only_where_it_changed_and_stale_pictures_go(tmp_path, monkeypatch):
    run, folder = tmp_path / "run", tmp_path / "evaluate"
    run.mkdir()
    folder.mkdir()
    reported(folder, ["bars.png", "worth.png"])
    (run / "report.failed.md").write_text("failed")
    _publish(run, folder)
    (run / "figures" / "notes.txt").write_text("mine")
    found = states(run)
    assert sorted(path.name for path in found if path.is_file()) == sorted(
        ["report.json", "report.md", "bars.png", "worth.png", "notes.txt"]
    )
    _publish(run, folder)
    assert states(run) == found
    reported(folder, ["bars.png"], "another")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError):
            _publish(run, folder)
    assert (run / "report.json").read_text() == "report", "a full disk tears nothing"
    _publish(run, folder)
    assert (run / "report.json").read_text() == (run / "report.md").read_text() == "another"
    assert sorted(path.name for path in (run / "figures").iterdir()) == ["bars.png", "notes.txt"]
