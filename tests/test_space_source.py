"""A Space's source: one that is stopped lets go what is being made or read, one that fails says why."""

import importlib.util
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from source import Source, _sentence

from pulse_hf.artifacts import ArtifactError
from pulse_hf.composition import NoWriterError, OtherVersionError

PATIENCE_S = 30


@pytest.fixture
def children(monkeypatch, tmp_path):
    """Children that make nothing for as long as they are let."""
    started, real = [], subprocess.Popen

    def start(*_):
        started.append(real([sys.executable, "-S", "-c", "import time; time.sleep(600)"]))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: True)  # all that it is made with is installed
    monkeypatch.chdir(tmp_path)
    yield started
    for child in started:
        child.kill()
        child.wait()


def test_a_demo_that_is_being_made_is_let_go(children, monkeypatch):
    source = Source()
    monkeypatch.setattr(source, "_loaded", lambda: pytest.fail("it was read after it was stopped"))
    monkeypatch.setattr("source._stages_done", lambda run: 0)
    opening = threading.Thread(target=source._open, daemon=True)
    opening.start()
    until = time.monotonic() + PATIENCE_S
    while not children or source.status.state != "making":
        assert time.monotonic() < until
        time.sleep(0.01)
    source.stop()
    opening.join(PATIENCE_S)
    assert not opening.is_alive()
    assert [child.poll() is None for child in children] == [False]
    assert source.status.state == "making"  # nor has it failed
    assert not source.ready


def test_what_was_read_when_it_was_stopped_is_closed_and_not_asked(monkeypatch):
    source, closed = Source(repo_id="owner/shop"), []
    answers = SimpleNamespace(mind=SimpleNamespace(close=lambda: closed.append(True)))
    monkeypatch.setattr(source, "_loaded", lambda: source.stop() or answers)
    source._open()
    assert closed == [True]
    assert source.status.state == "loading"  # nor has it failed
    assert not source.ready


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (NoWriterError("x"), "a server writes its reasons"),
        (OtherVersionError("x"), "another version of this package made it"),
        (ArtifactError("x"), "a file is missing or damaged"),
        (ConnectionError("x"), "The Hub did not answer"),
    ],
)
def test_the_page_says_in_kind_why_nothing_could_be_opened(problem, told):
    assert told in _sentence(problem, "alice/shop")
