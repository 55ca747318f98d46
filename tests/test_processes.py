"""Two processes of one launch (CPU, gloo) make what one makes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pulse_hf.artifacts import content_sha256, read_manifest
from pulse_hf.cli import launch as launcher

SHOP = [
    "seed=5",
    "world.num_users=120",
    "sequential.epochs=3",
    "sequential.dropout=0.0",
    "thought_space.epochs=2",
    "thought_space.num_folds=0",
    "rationales.max_new_tokens=24",
    "rationales.batch_size=8",
    "candidates.training_decisions_per_user=1",
    "candidates.max_test_users=24",
    "candidates.max_validation_users=16",
    "thoughts.max_new_tokens=24",
    "thoughts.users_per_batch=8",
    "recommender.epochs=2",
    "recommender.bf16=false",
    "recommender.batch_size=8",  # 120 rows in whole steps: a shorter last one is filled up with rows of the first
    'recommender.systems=["pulse"]',
]


def pulse(run: Path, word: str, settings: list[str]) -> list[str]:
    """What follows the interpreter, or the launcher, to run one stage."""
    command = ["-m", "pulse_hf.cli.main", word, "--run", str(run), "--preset", "demo"]
    return command + [part for one in settings for part in ("--set", one)]


def logs_of(run: Path, word: str) -> Path:
    """Where a launch of several processes writes what each of them says, in a folder named by its number."""
    return run.with_name(f"{run.name}-logs") / word


def launched(run: Path, word: str, processes: int, settings: list[str]) -> list[str]:
    """The whole command of one stage in one or several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable]
    if processes > 1:
        # `accelerate launch --cpu --num_processes 2` starts a single process (1.15.0): on CPUs it leaves that to MPI.
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
        command += ["--redirects", "0", "--tee", "3", "--log_dir", str(logs_of(run, word))]
        # Behind "-m --" the launcher takes the rest as it is; it would read --run as one of its own options.
        return [*command, "-m", "--", *pulse(run, word, settings)[1:]]
    return command + pulse(run, word, settings)


def launch(run: Path, word: str, processes: int) -> None:
    command = launched(run, word, processes, SHOP)
    threads = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=threads, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    if processes > 1:
        ranks = {path.parent.name for path in logs_of(run, word).rglob("stderr.log")}
        assert ranks == {str(rank) for rank in range(processes)}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, up to the recommender."""
    run = tmp_path_factory.mktemp("one")
    for word in (
        "world",
        "prepare",
        "sequential",
        "candidates",
        "rationales",
        "thought-space",
        "thoughts",
        "recommender",
    ):
        launch(run, word, 1)
    return run


@pytest.mark.slow
def test_two_processes_make_what_one_makes(one: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    shutil.copytree(one, run)
    for folder in ("sequential", "rationales", "thought_space", "thoughts", "recommender"):
        shutil.rmtree(run / folder)
    launch(run, "sequential", 2)
    launch(run, "rationales", 2)
    assert content_sha256(run / "rationales") == content_sha256(one / "rationales")
    launch(run, "thought-space", 2)
    shutil.rmtree(
        run / "sequential"
    )  # training in parts ends a few bits away; what follows is compared on equal inputs
    shutil.copytree(one / "sequential", run / "sequential")
    spaces = run / "thought_space", one / "thought_space"
    losses = [json.loads((space / "metrics.json").read_text())["models"]["model"]["losses"] for space in spaces]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    shutil.rmtree(run / "thought_space")
    shutil.copytree(one / "thought_space", run / "thought_space")
    launch(run, "thoughts", 2)
    assert content_sha256(run / "thoughts") == content_sha256(one / "thoughts")
    launch(run, "recommender", 2)
    fitted = [read_manifest(place / "recommender")["counts"]["systems"]["pulse"] for place in (run, one)]
    assert fitted[0]["batches"] == fitted[1]["batches"]
    assert fitted[0]["training_loss"] == pytest.approx(fitted[1]["training_loss"], rel=1e-3)
    assert not list(run.glob("*.partial"))


ORDERS = """
import json, os, sys
import torch
from torch.utils.data import RandomSampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from pulse_hf.training.candidate_trainer import RepeatableOrder

torch.manual_seed(3)
order, drawn = RepeatableOrder(), []
for epoch in range(3):
    lengths = list(range(16))
    order.beneath = RandomSampler(lengths) if epoch == 2 else LengthGroupedSampler(4, lengths=lengths)
    drawn.append(list(order))
    torch.rand(100 + 7 * int(os.environ.get("RANK", 0)))  # as dropout does, of another batch
print(json.dumps(drawn))
open(f"{sys.argv[1]}/{os.environ.get('RANK', 'one')}", "w").write(json.dumps(drawn))
"""


@pytest.mark.slow
def test_processes_go_through_the_rows_in_one_order_whatever_each_has_drawn_besides(tmp_path: Path) -> None:
    script = tmp_path / "orders.py"
    script.write_text(ORDERS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for start in ([sys.executable], command):
        done = subprocess.run(
            [*start, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (json.loads((tmp_path / name).read_text()) for name in ("one", "0", "1"))
    assert first == second == one  # process 0 draws as one process alone does
    assert all(sorted(rows) == list(range(16)) for rows in first)
    assert first[0] != first[1]


@pytest.mark.slow
def test_two_processes_fit_sasrec_alike(one: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    for folder in ("world", "sequences"):
        shutil.copytree(one / folder, run / folder)
    launch(run, "sequential", 2)
    fits = [read_manifest(place / "sequential")["counts"]["fits"] for place in (run, one)]
    for name, report in fits[1].items():
        assert fits[0][name]["validation_ndcg"] == pytest.approx(report["validation_ndcg"], abs=2e-3)
        assert fits[0][name]["best_epoch"] == report["best_epoch"]


def test_a_failing_process_ends_the_launch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With the exit code and the message of a stage alone, and without a process left."""
    before = {child.pid for child in psutil.Process().children()}
    assert launcher.launch(["rationales", f"--run={tmp_path}", "--preset=demo"], 2) == 6
    assert "is not a finished artefact" in capfd.readouterr().err
    assert {child.pid for child in psutil.Process().children()} <= before


def road(run: Path, *more: str) -> list[str]:
    """The command of a road that ends with the rationales, written by two processes."""
    settings = [f"--set={one}" for one in SHOP]
    road = ["run", f"--run={run}", "--preset=demo", "--until=rationales", "--processes=2"]
    return [sys.executable, "-m", "pulse_hf.cli.main", *road, *settings, *more]


@pytest.mark.slow
def test_a_run_in_two_processes_writes_the_same_texts(one: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(road(run), capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("rationales: done") == 1
    assert content_sha256(run / "rationales") == content_sha256(one / "rationales")
    again = subprocess.run(road(run), capture_output=True, text=True, env=environment, timeout=240)
    assert "rationales: done in 0.0 s" in again.stderr
    refused = subprocess.run(road(run, "--set=rationales.batch_size=9"), capture_output=True, text=True, timeout=240)
    assert refused.returncode == 6
    assert "settings.batch_size" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_of_two_processes_goes_on(one: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "two"
    process = subprocess.Popen(road(run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(run.glob("rationales.partial/.written-*/shard-*.parquet")):
        time.sleep(0.05)
        assert process.poll() is None
    members = psutil.Process(process.pid).children()
    assert len(members) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 128 + number
    assert errors.decode().count("stopped; the same command goes on from here") == 1
    assert not any(member.is_running() for member in members)
    subprocess.run(road(run), check=True, capture_output=True, timeout=240)
    assert content_sha256(run / "rationales") == content_sha256(one / "rationales")
