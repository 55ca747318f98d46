"""Kills, signals, full disks and torn files: the old artefact or the new one, and a fit that goes on bit by bit."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import in_child
from small_road import small_settings, untimed
from test_scorer_training import SHAPE, base_folder, settings_for, toy_examples
from test_sequential import SMALL, ring
from test_thought_space import SETTINGS, encoder_folder, some_pairs, space_on

from pulse_hf.artifacts import (
    ArtifactError,
    Checkpoints,
    DiskFullError,
    Fingerprint,
    Shards,
    build,
    content_sha256,
    finish_replacing,
    read_json,
    read_tensors,
    replacing,
    sealed,
    unfinished,
    verify,
    whole_batch,
    write_json,
    write_table,
    write_tensors,
)
from pulse_hf.evaluation import leakage
from pulse_hf.evaluation.evaluate import evaluate
from pulse_hf.evaluation.score_book import ScoreBook
from pulse_hf.models.sasrec import PulseSASRecModel
from pulse_hf.reasoning.examples import ScorerExample
from pulse_hf.training import thought_space_fit
from pulse_hf.training.candidate_trainer import newest_checkpoint
from pulse_hf.training.sasrec import fit_sasrec
from pulse_hf.training.scorer import RecommenderSettings, _keep_fitted
from pulse_hf.training.scorer_fit import make_processor, train_scorer
from pulse_hf.training.thought_space_fit import fit

__all__ = ["base_folder", "encoder_folder"]  # fixtures of other rooms
ROW = {"decision_id": "u#1", "user_id": "u", "position": 1, "split": "test"}


def fingerprint(version: int) -> Fingerprint:
    return Fingerprint("toy", {"version": version}, 0)


def making(version: int) -> Callable[[Path], dict[str, int]]:
    """A stage with rows that resume, a table and a text."""

    def make(work: Path) -> dict[str, int]:
        shards = Shards(work, "written", "decisions")
        for number in range(3):
            if f"u#{number}" not in shards.done():
                shards.append([{**ROW, "decision_id": f"u#{number}"}])
        write_table(work / "rows.parquet", "decisions", shards.read().to_pylist())
        write_json(work / "sub" / "version.json", version)
        return {"version": version}

    return make


def killed_at(point: int, action: Callable[[], Any]) -> int:
    """Do something in a child that dies before its n-th call that changes the disk; its exit code."""
    return in_child(lambda: _killing(point, action))


def _killing(point: int, action: Callable[[], Any]) -> None:
    calls = [0]

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)

        return call

    for room, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "rename")):
        setattr(room, name, wrapped(getattr(room, name)))
    shutil.rmtree.avoids_symlink_attacks = False  # type: ignore[attr-defined]
    Path.write_text = wrapped(Path.write_text)  # type: ignore[method-assign]
    action()


def test_a_kill_at_every_point_leaves_the_old_artefact_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    build(folder, fingerprint(1), making(1))
    old = content_sha256(folder)
    build(tmp_path / "new", fingerprint(2), making(2))
    new = content_sha256(tmp_path / "new")
    points = 0
    while True:
        points += 1
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        copy = tmp_path / "run" / "toy"
        shutil.copytree(folder, copy)
        code = killed_at(points, lambda copy=copy: build(copy, fingerprint(2), making(2), force=True))
        # What a reader sees now: nothing mixed. Between two renames it sees nothing; the next command mends that,
        # since the new one lies there whole.
        seen = copy if copy.exists() else copy.with_name("toy.partial")
        verify(seen)
        assert content_sha256(seen) in ((old, new) if copy.exists() else (new,))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        build(copy, fingerprint(2), making(2), force=True)
        verify(copy)
        assert content_sha256(copy) == new
        left = sorted(path.name for path in copy.parent.iterdir())
        assert [name for name in left if not name.endswith((".lock", ".owner"))] == ["toy"]
        assert not [path for path in copy.rglob(".*")]
    assert points > 30, "the calls were not counted"


def test_every_file_is_on_the_disk_before_the_manifest_that_vouches_for_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    build(tmp_path / "toy", fingerprint(1), lambda work: (work / "plain.bin").write_bytes(b"x") and {})
    names = [Path(path).name for path in synced]
    last = names.index(".manifest.json.tmp")
    assert names[last - 2 : last] == ["plain.bin", "toy.partial"]


def test_a_fitted_system_is_on_the_disk_before_the_note_that_vouches_for_it(tmp_path, monkeypatch):
    (tmp_path / "pulse" / "adapter").mkdir(parents=True)
    (tmp_path / "pulse" / "adapter" / "weights").write_bytes(b"x")
    (tmp_path / "pulse-text").mkdir()
    (tmp_path / "pulse-text" / "record").write_bytes(b"x")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    _keep_fitted(tmp_path / "pulse", tmp_path / "pulse-text", {"batches": 1})
    names = [Path(path).name for path in synced]
    note = names.index("..fitted.json.tmp")
    assert {"weights", "adapter", "pulse", "record", "pulse-text"} <= set(names[:note])
    assert read_json(tmp_path / "pulse" / ".fitted.json") == {"batches": 1}


def saved(folder: Path, version: int) -> None:
    """Three entries, one of which only the first version has, another only the second."""
    finish_replacing(folder)
    earlier = [path.name for path in folder.iterdir() if path.name[0] != "."]
    with replacing(folder, lambda: earlier, last="seal") as new:
        for name in ("both", f"only-{version}", "seal"):
            (new / name).mkdir()
            (new / name / "file").write_text(str(version))


def contents(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.glob("[!.]*/file")}


@pytest.mark.parametrize("reader", ["the next save", "a load"])
def test_a_save_killed_at_every_point_leaves_the_old_entries_or_the_new_ones(tmp_path, reader):
    old = {"both": "1", "only-1": "1", "seal": "1"}
    new = {"both": "2", "only-2": "2", "seal": "2"}
    points, finished = 0, 0
    while True:
        points += 1
        folder = tmp_path / str(points)
        folder.mkdir()
        saved(folder, 1)
        code = killed_at(points, lambda folder=folder: saved(folder, 2))
        before = contents(folder)
        finish_replacing(folder)  # what a load does first
        after = contents(folder)
        assert after in (old, new)
        finished += before != after
        if reader == "the next save":
            saved(folder, 2)
            assert contents(folder) == new
            assert not list(folder.glob(".*"))
        if code == 0:
            break
    assert points > 15
    assert finished >= 4, "no kill fell between two moves"


def test_a_save_that_fails_while_moving_is_finished_by_whoever_comes_next(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    moved = []

    def failing(source: Path, target: Path) -> None:
        moved.append(source)
        if len(moved) == 6:  # after the plan, three old entries and a new one
            raise OSError("the server of this mount went away")
        os.rename(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="went away"):
            saved(tmp_path, 2)
    assert contents(tmp_path) == {"both": "2"}  # no seal, so no reader takes it for whole
    finish_replacing(tmp_path)
    assert contents(tmp_path) == {"both": "2", "only-2": "2", "seal": "2"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "plan", [{"earlier": ["../mine"], "new": []}, {"earlier": [], "new": ["/etc/x"]}, {"earlier": [".."]}, [], "x"]
)
def test_a_plan_that_came_with_somebodys_folder_moves_nothing_outside_it(tmp_path, plan):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "shop" / ".saving" / "old").mkdir(parents=True)
    write_json(tmp_path / "shop" / ".saving" / "plan.json", plan)
    with pytest.raises(ArtifactError, match="names other than entries of its folder"):
        finish_replacing(tmp_path / "shop")
    assert (tmp_path / "mine").read_text() == "mine"


def test_two_processes_do_not_save_into_one_folder_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("pulse_hf.artifacts.swapping._PATIENCE_S", 0.1)
    with replacing(tmp_path, list, last="seal") as new:
        (new / "seal").write_text("first")
        code = in_child(lambda: saved(tmp_path, 2))
        assert code == 1
    assert (tmp_path / "seal").read_text() == "first"


SAVING = """
import sys, time
from pathlib import Path
from pulse_hf.artifacts import replacing

folder, number = Path(sys.argv[1]), sys.argv[2]
for turn in range(8):
    with replacing(folder, lambda: [path.name for path in folder.glob("a*")], last="seal") as new:
        (new / f"a{number}-{turn}").mkdir()
        (new / f"a{number}-{turn}" / "data").write_text("1" * 1000)
        (new / "seal").write_text(f"a{number}-{turn}")
        time.sleep(0.02)
"""


def test_who_waits_for_another_save_comes_next(tmp_path):
    """Two processes save again and again into one folder: each save is whole, and nobody is refused."""
    both = [
        subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path), number], stderr=subprocess.PIPE, text=True)
        for number in "12"
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(path.name for path in tmp_path.iterdir()) == [(tmp_path / "seal").read_text(), "seal"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    build(folder, fingerprint(1), making(1))
    sha256 = content_sha256(folder)
    folder.rename(tmp_path / ".toy.old")
    assert build(folder, fingerprint(1), lambda work: pytest.fail("made again")) is False
    assert content_sha256(folder) == sha256


def test_one_process_at_a_time_and_the_lock_of_a_dead_one_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "toy"

    def second(work: Path) -> dict[str, int]:
        code = in_child(lambda: build(folder, fingerprint(1), making(1)))
        assert code == 1
        with pytest.raises(ArtifactError, match=f"being made by process {os.getpid()}"):
            build(folder, fingerprint(1), making(1))
        return {}

    build(folder, fingerprint(0), second)
    shutil.rmtree(folder)
    assert in_child(lambda: build(folder, fingerprint(1), lambda work: os.kill(os.getpid(), 9))) == -9  # type: ignore[arg-type]
    assert build(folder, fingerprint(1), making(1)) is True


def only(limit: int) -> None:
    """From here on no file of this process may be larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_full_disk_is_told_whoever_wrote(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    many = torch.zeros(1_000_000)

    def tensors(work: Path) -> dict[str, Any]:
        save_file({"many": many}, work / "many.safetensors")  # as a model's save_pretrained does
        return {}

    def spool(work: Path) -> dict[str, Any]:
        (work / "log.arrow").write_bytes(bytes(1_000_000))
        return {}

    def state(work: Path) -> dict[str, Any]:
        torch.save({"many": many}, work / "optimizer.pt")  # as a trainer's checkpoint does
        return {}

    for make in (tensors, spool, state):

        def run(make: Any = make) -> None:
            only(100_000)
            try:
                build(tmp_path / make.__name__, fingerprint(0), make)
            except DiskFullError as error:
                os._exit(7 if f"{make.__name__}: no room" in str(error) else 8)

        assert in_child(run) == 7
        assert not (tmp_path / make.__name__).exists()


@pytest.mark.parametrize("limit", [1, 100, 1_000, 3_000])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "rows.parquet"
    write_table(path, "decisions", [ROW])
    before = path.read_bytes()

    def write() -> None:
        only(limit)
        many = [{**ROW, "decision_id": os.urandom(20).hex()} for _ in range(5_000)]
        try:
            write_table(path, "decisions", many)
        except DiskFullError as error:
            ok = "rows.parquet: no room" in str(error) and "bytes are free" in str(error)
            os._exit(7 if ok else 8)

    assert in_child(write) == 7
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.parquet"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_end_of_the_batch(number: signal.Signals) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StoppedError

    before = signal.signal(number, stop)
    finished = []

    def batch() -> None:
        with whole_batch():
            os.kill(os.getpid(), number)
            finished.append(1)

    try:
        with pytest.raises(StoppedError):
            batch()
        assert finished == [1]
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    monkeypatch.setattr(unfinished, "_SECOND_WISH_S", patience)

    class StoppedError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    reached = []

    def batch() -> None:
        with whole_batch():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("once")
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("twice")

    try:
        with pytest.raises(StoppedError):
            batch()
        assert reached == (["once"] if not patience else ["once", "twice"])  # two at once are one wish
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_shards_of_any_number_keep_their_order_and_missing_rows_are_told(tmp_path: Path) -> None:
    shards = Shards(tmp_path, "written", "decisions")
    shards.append([{**ROW, "decision_id": "u#0"}])
    (shards.folder / "shard-00000.parquet").rename(shards.folder / "shard-99999.parquet")
    for number in (1, 2):
        shards.append([{**ROW, "decision_id": f"u#{number}"}])
    assert shards.read()["decision_id"].to_pylist() == ["u#0", "u#1", "u#2"]
    assert [row["decision_id"] for row in shards.rows_of(["u#2", "u#0", "u#1"])] == ["u#2", "u#0", "u#1"]
    for wrong in (["u#0", "u#1"], ["u#0", "u#1", "u#2", "u#3"]):
        with pytest.raises(ArtifactError, match="differ in 1"):
            shards.rows_of(wrong)


def test_a_torn_shard_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = Shards(tmp_path, "written", "decisions")
    for number in range(3):
        shards.append([{**ROW, "decision_id": f"u#{number}"}])
    torn = sorted(shards.folder.iterdir())[1]
    torn.write_bytes(torn.read_bytes()[:-20])
    (shards.folder / ".shard-00003.parquet.tmp").write_bytes(b"half")
    again = Shards(tmp_path, "written", "decisions")
    assert "shard-00001.parquet cannot be read and is made again" in caplog.text
    assert again.done() == {"u#0", "u#2"}
    again.append([{**ROW, "decision_id": "u#1"}])
    assert again.read()["decision_id"].to_pylist() == ["u#0", "u#2", "u#1"]
    other = Shards(tmp_path, "other", "decisions")
    other.append([ROW])
    again.keep_only(other)
    assert again.done() == {"u#0"}


def test_the_newest_whole_checkpoint_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, "fit")
    assert checkpoints.newest() is None
    assert not checkpoints.due()
    assert Checkpoints(tmp_path, "fit", every_seconds=0).due()
    for step in (1, 2, 11):
        checkpoints.save(step, {"x": torch.tensor([float(step)])}, {"step": step})
    assert [path.name for path in sorted(checkpoints.folder.iterdir())] == ["step-00000002", "step-00000011"]
    path = checkpoints.folder / "step-00000011" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # one bit, which safetensors itself would load
    path.write_bytes(bytes(data))
    found = checkpoints.newest()
    assert found is not None
    assert (found[0], found[1]["x"].item(), found[2]) == (2, 2.0, {"step": 2})
    assert "step-00000011 is torn" in caplog.text
    (checkpoints.folder / "step-00000002" / "seal.json").unlink()
    assert checkpoints.newest() is None


class KilledError(Exception):
    """Stands for a kill."""


class Dying(Checkpoints):
    """Saves after every epoch, and dies after the n-th save."""

    def __init__(self, work: Path, after: int) -> None:
        super().__init__(work, "fit", every_seconds=0)
        self.left = after

    def save(self, step: int, tensors: Any, state: Any) -> None:
        super().save(step, tensors, state)
        self.left -= 1
        if not self.left:
            raise KilledError


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("patience", [2, 30])
def test_a_killed_sasrec_goes_on_bit_by_bit(tmp_path: Path, patience: int) -> None:
    rows = ring(60)
    validation = [(row[:-1], row[-1]) for row in rows[:20]]
    settings = replace(SMALL, epochs=7, patience=patience, loss="gbce", num_negatives=4)
    model, report = fit_sasrec([row[:-1] for row in rows], validation, 25, settings, seed=3)
    for after in range(1, report.epochs + 1):
        torch.manual_seed(after)  # whatever the state of the global generator
        work = tmp_path / str(after)
        with pytest.raises(KilledError):
            fit_sasrec([r[:-1] for r in rows], validation, 25, settings, seed=3, checkpoints=Dying(work, after))
        again, same_report = fit_sasrec(
            [r[:-1] for r in rows], validation, 25, settings, seed=3, checkpoints=Checkpoints(work, "fit")
        )
        assert same_report == report
        assert same(again.state_dict(), model.state_dict())


def test_a_killed_thought_space_goes_on_bit_by_bit(encoder_folder: str, tmp_path: Path) -> None:
    pairs = some_pairs(24)
    settings = replace(SETTINGS, epochs=4, patience=4, batch_size=4, num_negatives=3)
    space = space_on(encoder_folder)
    report = fit(space, pairs[8:], pairs[:8], settings, seed=1)
    for after in range(1, 4):
        work = tmp_path / str(after)
        with pytest.raises(KilledError):
            fit(space_on(encoder_folder), pairs[8:], pairs[:8], settings, seed=1, checkpoints=Dying(work, after))
        again = space_on(encoder_folder)
        checkpoints = Checkpoints(work, "fit")
        assert fit(again, pairs[8:], pairs[:8], settings, seed=1, checkpoints=checkpoints) == report
        assert same(again.trained(), space.trained())


class StoppedError(Exception):
    """What a signal raises here."""


def stopped(number: int, _: Any) -> None:
    raise StoppedError


def signalling(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, step: int) -> list[int]:
    """Send this process a signal within the n-th call of a function; the calls are counted."""
    honest, calls = getattr(owner, name), [0]

    def call(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(*args, **more)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("step", [1, 4, 6, 9])
def test_a_signal_to_a_thought_space_is_kept_at_the_end_of_the_step(
    encoder_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    pairs = some_pairs(24)
    settings = replace(SETTINGS, epochs=4, patience=4, batch_size=4, num_negatives=3)
    space = space_on(encoder_folder)
    report = fit(space, pairs[8:], pairs[:8], settings, seed=1)
    before = signal.signal(signal.SIGTERM, stopped)
    with monkeypatch.context() as patched:
        calls = signalling(patched, thought_space_fit, "info_nce_loss", step)
        with pytest.raises(StoppedError):
            fit(
                space_on(encoder_folder),
                pairs[8:],
                pairs[:8],
                settings,
                seed=1,
                checkpoints=Checkpoints(tmp_path, "fit"),
            )
    signal.signal(signal.SIGTERM, before)
    assert calls == [step]
    again = space_on(encoder_folder)
    with monkeypatch.context() as patched:
        calls = signalling(patched, thought_space_fit, "info_nce_loss", 0)
        assert fit(again, pairs[8:], pairs[:8], settings, seed=1, checkpoints=Checkpoints(tmp_path, "fit")) == report
    assert calls[0] == len(report.losses) - step, "no step is made twice"
    assert same(again.trained(), space.trained())


def scorer_fit(
    settings: RecommenderSettings, train: list[ScorerExample], validation: list[ScorerExample], work: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a fit tells, without its seconds, and the weights it leaves."""
    folder = work / "pulse"
    fitted = train_scorer(train, validation, settings, make_processor(settings), SHAPE, seed=5, folder=folder)
    tensors = read_tensors(folder / "adapter" / "adapter_model.safetensors")
    return {**fitted, "seconds": 0}, {**tensors, **read_tensors(folder / "score_head.safetensors")}


@pytest.mark.parametrize("step", [2, 6, 8])  # 6 is the last of an epoch
def test_a_signal_to_a_scorer_is_kept_at_the_end_of_the_step(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from pulse_hf.training.candidate_trainer import CandidateTrainer

    settings = settings_for(base_folder, epochs=2, patience=9, lora_dropout=0.1, batch_size=4)
    run = partial(scorer_fit, settings, toy_examples(24, 1), toy_examples(12, 2))
    fitted, weights = run(tmp_path / "whole")
    assert (fitted["batches"], len(fitted["validation_hr@1"])) == (12, 2)
    before = signal.signal(signal.SIGTERM, stopped)
    with monkeypatch.context() as patched:
        calls = signalling(patched, CandidateTrainer, "training_step", step)
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped")
    signal.signal(signal.SIGTERM, before)
    assert calls == [step]
    with monkeypatch.context() as patched:
        calls = signalling(patched, CandidateTrainer, "training_step", 0)
        again, same_weights = run(tmp_path / "stopped")
    assert calls == [12 - step], "no step is made twice"
    assert again == fitted
    assert same(same_weights, weights)


def test_large_states_are_kept_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, "fit", every_seconds=30)

    def slowly(*_: Any) -> None:
        now[0] += 2.0

    with monkeypatch.context() as slow:
        slow.setattr(unfinished, "write_tensors", lambda path, tensors: (write_tensors(path, tensors), slowly()))
        checkpoints.save(1, {"x": torch.zeros(1)}, {})
    now[0] += 99.0
    assert not checkpoints.due()
    now[0] += 1.0
    assert checkpoints.due()


@pytest.mark.parametrize("patience", [1, 9])
def test_a_killed_scorer_goes_on_bit_by_bit(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    settings = settings_for(base_folder, epochs=3, patience=patience, lora_dropout=0.1, batch_size=4)
    run = partial(scorer_fit, settings, toy_examples(24, 1), toy_examples(12, 2))
    fitted, weights = run(tmp_path / "whole")
    from pulse_hf.training import candidate_trainer

    seal = candidate_trainer.seal
    for after in range(1, len(fitted["validation_hr@1"]) + 1):
        work = tmp_path / str(after)
        left = [after]

        def dying(folder: Path, left: list[int] = left) -> None:
            seal(folder)
            left[0] -= 1
            if not left[0]:
                raise KilledError

        monkeypatch.setattr(candidate_trainer, "seal", dying)
        with pytest.raises(KilledError):
            run(work)
        monkeypatch.setattr(candidate_trainer, "seal", seal)
        again, same_weights = run(work)
        assert again == fitted
        assert same(same_weights, weights)


def test_a_trainers_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    from pulse_hf.artifacts import seal

    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", step)
    assert not sealed(tmp_path / "checkpoint-10")
    seal(tmp_path / "checkpoint-5")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists(), "the trainer takes the newest folder, whole or not"
    assert read_json(tmp_path / "checkpoint-5" / "trainer_state.json") == 5


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("step", [1, 8, 17])
def test_the_first_number_that_is_not_finite_stops_the_stage_and_nothing_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    """NaN at the first, a middle and the last step; a gradient alone is enough."""
    rows = ring(40)
    settings = replace(SMALL, epochs=1, batch_size=10_000)
    forward, calls = PulseSASRecModel.forward, [0]

    def evil(self: Any, *args: Any, **more: Any) -> Any:
        output = forward(self, *args, **more)
        if output.loss is not None:
            calls[0] += 1
            if calls[0] == step:
                nothing = (next(self.parameters()).sum() * 0).abs().sqrt() * 0  # 0, with a gradient of NaN
                output.loss = output.loss * float("nan") if what == "loss" else output.loss + nothing
        return output

    monkeypatch.setattr(PulseSASRecModel, "forward", evil)
    checkpoints = Checkpoints(tmp_path, "fit", every_seconds=0)
    with pytest.raises(FloatingPointError, match=f"epoch 1, step {step}, .*{what} .* is not finite"):
        fit_sasrec(rows, [], 25, settings, seed=0, checkpoints=checkpoints)
    assert calls[0] == step
    assert checkpoints.newest() is None


def test_an_evaluation_stopped_twice_ends_as_one_that_was_not(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("random", "popularity", "sasrec", "sasrec+text", "title-similarity", "fusion")
    settings = replace(small_settings().evaluate, systems=names, worth_of_a_reason=False, audit_users=1)
    written, audit, write = [], leakage.audit, ScoreBook._write

    def once(run: Path) -> dict[str, Any]:
        folder = evaluate(run, settings, seed=0)
        scores = {path.name: path.read_bytes() for path in folder.rglob("*.parquet")}
        return {"report": untimed(read_json(run / "report.json")), "scores": scores}

    def noted(book: ScoreBook, path: Path, *more: Any) -> None:
        write(book, path, *more)
        written.append(path.name)
        if len(written) == 4:  # its scores are there, what is kept beside them is not
            raise KilledError

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    runs = [tmp_path / "whole", tmp_path / "stopped"]
    for run in runs:
        run.mkdir()
        for folder in small_run.iterdir():
            if folder.is_dir() and folder.name not in ("evaluate", "figures"):
                (run / folder.name).symlink_to(folder)
    whole = once(runs[0])
    monkeypatch.setattr(ScoreBook, "_write", noted)
    with pytest.raises(KilledError):
        once(runs[1])
    monkeypatch.setattr(leakage, "audit", killed)
    with pytest.raises(KilledError):
        once(runs[1])
    assert not (runs[1] / "report.json").exists()
    before = len(written)
    monkeypatch.setattr(leakage, "audit", audit)
    stopped = once(runs[1])
    assert len(written) == before, "all scores were there"
    assert max(Counter(written).values()) <= 3, "one of each split, and the one that was lost"
    assert stopped == whole
    assert stopped["report"]["audit"]["passed"]
