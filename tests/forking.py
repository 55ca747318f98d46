"""Children for tests in which a process dies or may do less than others: forked from one without threads.

A fork takes one thread along and every lock as it stands. In a test process, where torch, Arrow, servers of other
tests and pytest's own watchdog run threads, the child may wait for good for a lock that nobody holds any more. So the
children come from a process of their own, which imports what the tests import and does nothing else.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import dill

PATIENCE_S = 120
_SIZE = struct.Struct("!Qi")
_nursery: list[subprocess.Popen[bytes]] = []


def in_child(action: Callable[[], Any]) -> int:
    """Run something in a process that ends at once; its exit code (1 after an error), or minus the signal.

    One that does not end in two minutes is aborted (-6) and says on stderr where it stood.

    Args:
        action: Any function, with what it closes over. Of its module the child has an import of its own: what a test
            has changed there by ``monkeypatch`` is as it was.
    """
    if not _nursery or _nursery[0].poll() is not None:
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        # Arrow's other allocators keep a thread.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ARROW_DEFAULT_MEMORY_POOL": "system"}
        command = [sys.executable, "-m", "forking"]
        _nursery[:] = [subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)]
        atexit.register(_nursery[0].kill)
    pipe = _nursery[0]
    assert pipe.stdin is not None
    assert pipe.stdout is not None
    module, told = action.__module__.encode(), dill.dumps(action)
    pipe.stdin.write(_SIZE.pack(len(told), len(module)) + module + told)
    pipe.stdin.flush()
    return int(_SIZE.unpack(_read(pipe.stdout, _SIZE.size))[1])


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the other side is gone")
    return data


def _fork(told: bytes) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            dill.loads(told)()
            code = 0
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        finally:
            os._exit(code)
    until = time.monotonic() + PATIENCE_S
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGABRT)
            until += PATIENCE_S
        time.sleep(0.002)


def serve() -> None:
    """Fork a child for every action that is asked for, until the test process is gone."""
    faulthandler.enable()
    asked, told = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a child prints is no answer
    while True:
        try:
            size, name = _SIZE.unpack(_read(asked, _SIZE.size))
        except EOFError:
            return
        importlib.import_module(_read(asked, name).decode())  # once, not in every child
        told.write(_SIZE.pack(0, _fork(_read(asked, size))))
        told.flush()


if __name__ == "__main__":
    serve()
