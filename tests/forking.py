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
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dill

PATIENCE_S = 120
_nursery: list[tuple[subprocess.Popen[bytes], Connection]] = []


def in_child(action: Callable[[], Any]) -> int:
    """Run something in a process that ends at once; its exit code (1 after an error), or minus the signal.

    One that does not end in two minutes is aborted (-6) and says on stderr where it stood.

    Args:
        action: Any function, with what it closes over. Of its module the child has an import of its own: what a test
            has changed there by ``monkeypatch`` is as it was.
    """
    if not _nursery:
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
        # Arrow's other allocators keep a thread.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ARROW_DEFAULT_MEMORY_POOL": "system"}
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "forking", str(theirs.fileno())]
        process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        atexit.register(process.kill)
        _nursery.append((process, ours))
    _, asking = _nursery[0]
    asking.send((action.__module__, dill.dumps(action)))
    return int(asking.recv())


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


def serve(asked: Connection) -> None:
    """Fork a child for every action that is asked for, until the test process is gone."""
    faulthandler.enable()
    while True:
        try:
            module, told = asked.recv()
        except EOFError:
            return
        importlib.import_module(module)  # once, not in every child
        asked.send(_fork(told))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
