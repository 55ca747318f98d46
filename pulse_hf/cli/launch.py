"""One stage in several processes of this machine, each with its share of the cores."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import typer

_LOOK_S = 0.1
_PATIENCE_S, _STOPPED_PATIENCE_S = 2, 60  # for processes whose fellow failed, and for all when a signal came


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``pulse`` with the given arguments in several processes that share its work, and wait for them.

    Where one of them fails the others are stopped. SIGINT and SIGTERM are handed on; each process then finishes the
    batch it is at. (One that waits for another in the libraries hears no signal and is killed: nothing is lost by it.)

    Args:
        arguments: A stage's word and its options.
        processes: How many, at least 2.

    Returns:
        0 if all did their work, else the exit code of one that failed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS", cores)) // processes
    common = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(max(1, threads)),
    }
    children: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        _signal(children, number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(processes):
            started = subprocess.Popen(
                [sys.executable, "-m", "pulse_hf.cli.main", *arguments],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                # A terminal's Ctrl-C would else reach a process twice: directly and from here.
                start_new_session=True,
            )
            children.append(started)
        return _wait(children, signals)
    finally:
        _signal(children, signal.SIGKILL)
        for child in children:
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]], signals: Sequence[int]) -> int:
    while True:
        codes = [child.poll() for child in children]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if failed:
            rank, code = failed[0]
            if not signals:  # else all have been told
                _tell_killed(rank, code)
                _signal(children, signal.SIGTERM)
            until = time.monotonic() + (_STOPPED_PATIENCE_S if signals else _PATIENCE_S)
            while any(child.poll() is None for child in children) and time.monotonic() < until:
                time.sleep(_LOOK_S)
            return code if code > 0 else 128 - code
        if None not in codes:
            return 0
        time.sleep(_LOOK_S)


def _tell_killed(rank: int, code: int) -> None:
    """Say what a process that was killed could not say itself."""
    if code < 0:
        why = " (often because memory ran out)" if code == -signal.SIGKILL else ""
        typer.echo(
            f"error: process {rank} of this launch was killed by {signal.Signals(-code).name}{why}; the others are "
            "stopped, and the same command goes on from here",
            err=True,
        )


def _signal(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            child.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
