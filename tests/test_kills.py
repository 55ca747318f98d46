"""kill -9 at random moments of real stages, and sizes that do not fit into memory (`make test-slow`)."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_road import untimed
from test_processes import launched, pulse

from pulse_hf.artifacts import content_sha256, read_json, verify

pytestmark = pytest.mark.slow
SHOP = [
    "seed=5",
    "world.num_users=150",
    "sequential.epochs=12",
    "thought_space.epochs=4",
    "rationales.max_new_tokens=24",
    "rationales.batch_size=8",
    "candidates.training_decisions_per_user=1",
    "candidates.max_test_users=40",
    "thoughts.max_new_tokens=24",
    "thoughts.users_per_batch=8",
    "recommender.epochs=2",
    'recommender.systems=["pulse"]',
    'baselines.systems=["sasrec-bce", "encoder-tuned"]',
]
STAGES = {
    "prepare": ("sequences", 20),
    "candidates": ("candidates", 20),
    "sequential": ("sequential", 20),
    "rationales": ("rationales", 100),
    "thought-space": ("thought_space", 20),
    "thoughts": ("thoughts", 100),
    "recommender": ("recommender", 20),
    "baselines": ("baselines", 20),
    "evaluate": ("evaluate", 20),
}

OFTEN = """
from pulse_hf.artifacts import Checkpoints
from pulse_hf.cli.main import main
Checkpoints.due = lambda self: True  # after every epoch, not every half minute: these fits take seconds
main()
"""


def command(run: Path, word: str) -> list[str]:
    return [sys.executable, "-c", OFTEN, *pulse(run, word, SHOP)[2:]]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def content(folder: Path) -> Any:
    """What two artefacts must have in common: everything, but the seconds of a report."""
    if not (folder / "report.json").exists() or folder.name != "evaluate":
        return content_sha256(folder)
    scores = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}
    return scores, untimed(read_json(folder / "report.json"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that nobody killed."""
    run = tmp_path_factory.mktemp("clean")
    for word in (
        "world",
        "prepare",
        "sequential",
        "candidates",
        "rationales",
        "thought-space",
        "thoughts",
        "recommender",
        "baselines",
        "evaluate",
    ):
        subprocess.run(command(run, word), check=True, capture_output=True, env=environment())
    return run


@pytest.mark.parametrize("word", STAGES)
def test_a_stage_killed_at_random_moments_ends_as_if_it_had_not_been(clean: Path, tmp_path: Path, word: str) -> None:
    folder, kills = STAGES[word]
    run = tmp_path / "run"
    shutil.copytree(clean, run)
    seconds = json.loads((clean / folder / "manifest.json").read_text())["seconds"] + 8  # imports and all
    rng = random.Random(word)
    done = 0
    while done < kills:
        shutil.rmtree(run / folder, ignore_errors=True)
        lives = 0
        while True:
            started = time.monotonic()
            process = subprocess.Popen(
                command(run, word), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
            )
            try:
                wait = rng.uniform(0, seconds) if done < kills and lives < 6 else None
                _, errors = process.communicate(timeout=wait)
                assert process.returncode == 0, errors.decode()[-2000:]
                if not lives:  # the clean run may have been made on a busier machine
                    seconds = min(seconds, time.monotonic() - started)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done, lives = done + 1, lives + 1
                sys.stderr.write(f"{word}: {done} of {kills} kills, within {seconds:.0f} s of a start\n")
        verify(run / folder)
        assert content(run / folder) == content(clean / folder)
        assert not list((run / folder).rglob(".*"))


SHOP_OF_TWO = [
    "seed=5",
    "world.num_users=120",
    "sequential.epochs=30",
    "rationales.engine=extractive",
    "thought_space.epochs=8",
    "thought_space.patience=8",
    "thought_space.num_folds=0",
]


def finished(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a launch ended well within some time; if not, its launcher and all ranks are killed at once."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        launcher = psutil.Process(process.pid)
        for member in [*launcher.children(recursive=True), launcher]:
            member.kill()
        process.communicate()
        return False
    assert process.returncode == 0, errors.decode()[-2000:]
    return True


@pytest.mark.parametrize(("word", "folder"), [("sequential", "sequential"), ("thought-space", "thought_space")])
def test_two_processes_killed_at_random_moments_end_as_if_they_had_not_been(
    tmp_path: Path, word: str, folder: str
) -> None:
    """Both ranks of a launch and the launcher die at once; every other time when there is something to go on from."""
    (tmp_path / "often.py").write_text(OFTEN)
    runs = [tmp_path / name for name in ("whole", "killed")]
    for parent in ("world", "prepare", "candidates", "rationales"):
        subprocess.run(
            [sys.executable, *pulse(runs[0], parent, SHOP_OF_TWO)], check=True, capture_output=True, env=environment()
        )
    shutil.copytree(runs[0], runs[1])

    def start(run: Path) -> subprocess.Popen[bytes]:
        command = launched(run, word, 2, SHOP_OF_TWO)
        place = command.index("pulse_hf.cli.main")
        command[command.index("-m", place - 2) : place + 1] = ["--", str(tmp_path / "often.py")]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())

    def kept() -> bool:
        return any(runs[1].glob(f"{folder}.partial/.checkpoints/*/step-*/seal.json"))

    started = time.monotonic()
    assert finished(start(runs[0]), 600)
    usual = time.monotonic() - started
    rng, kills, resumed = random.Random(word), 0, 0
    while kills < 5:
        before, process = kept(), start(runs[1])
        while kills % 2 and not kept() and process.poll() is None:
            time.sleep(0.05)
        resumed += before
        if finished(process, rng.uniform(0, 1) if kills % 2 and not before else rng.uniform(0.3, 1) * usual):
            break
        kills += 1
    assert (runs[1] / folder).exists() or finished(start(runs[1]), 600)
    assert kills
    assert resumed
    sys.stderr.write(f"{word}: {kills} kills, {resumed} lives that went on from a checkpoint\n")
    verify(runs[1] / folder)
    assert content_sha256(runs[1] / folder) == content_sha256(runs[0] / folder)
    assert not list((runs[1] / folder).rglob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_finishes_its_batch_and_goes_on(clean: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    shutil.copytree(clean, run)
    shutil.rmtree(run / "rationales")
    process = subprocess.Popen(
        command(run, "rationales"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
    )
    while not list(run.glob("rationales.partial/.written-0/shard-*.parquet")):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "the same command goes on from here" in errors.decode()
    assert not (run / "rationales").exists()
    subprocess.run(command(run, "rationales"), check=True, capture_output=True, env=environment())
    assert content_sha256(run / "rationales") == content_sha256(clean / "rationales")


def test_memory_follows_users_and_items_not_rows(tmp_path: Path) -> None:
    peaks = {rows: _prepare(tmp_path / str(rows), rows)["peak_mb"] for rows in (1_000_000, 10_000_000)}
    assert peaks[10_000_000] <= 1.1 * peaks[1_000_000], peaks


def test_fifty_million_rows(tmp_path: Path) -> None:
    found = _prepare(tmp_path, 50_000_000)
    assert found["peak_mb"] < 2_000, found
    assert found["rows"] == 50_000_000


def _prepare(folder: Path, rows: int) -> dict[str, float]:
    """Rows of 200,000 users and 50,000 items through ``prepare`` in a process of its own."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv

    folder.mkdir(exist_ok=True)
    path = folder / "log.csv"
    rng = np.random.default_rng(0)
    schema = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()})
    with csv.CSVWriter(path, schema, write_options=csv.WriteOptions(quoting_style="none")) as writer:
        for start in range(0, rows, 1_000_000):
            users = rng.integers(0, 200_000, 1_000_000)
            items = rng.zipf(1.3, 1_000_000) % 50_000
            times = 1_500_000_000 + np.arange(start, start + 1_000_000) // 10
            columns = [pa.array(users).cast(pa.string()), pa.array(items).cast(pa.string()), pa.array(times)]
            writer.write_table(pa.table(columns, schema))
    code = (
        "import json, resource, sys, time; from pathlib import Path\n"
        "from pulse_hf.artifacts import read_json\n"
        "from pulse_hf.data.prepare import PrepareSettings, prepare\n"
        "started = time.perf_counter()\n"
        f"settings = PrepareSettings('table', {str(path)!r}, deduplicate=False)\n"
        f"report = read_json(prepare(Path({str(folder)!r}) / 'run', settings, seed=0) / 'report.json')\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(json.dumps({'peak_mb': peak, 'rows': report['reviews']['read'],"
        " 'seconds': time.perf_counter() - started}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{rows:,} rows: {found}\n")
    shutil.rmtree(folder / "run")
    path.unlink()
    return found
