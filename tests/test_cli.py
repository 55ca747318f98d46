"""What the command line says of faults: a sentence and an exit code, a traceback only for a bug."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pulse_hf.artifacts import ArtifactError, DiskFullError
from pulse_hf.cli import launch as launcher
from pulse_hf.cli import main as command_line
from pulse_hf.cli.faults import known_fault
from pulse_hf.hub.refusals import NoAccessError, OvertakenError


def system(number: int, name: str | None = "runs/shop") -> OSError:
    return OSError(number, os.strerror(number), name)


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class OutOfMemoryError(RuntimeError):
    """As torch tells it of a GPU."""


FAULTS: list[tuple[Exception, int | None, str]] = [
    (ArtifactError("damaged"), 6, "damaged"),
    (FloatingPointError("not finite"), 6, "not finite"),
    (DiskFullError("no room"), 4, "no room"),
    (OvertakenError("meanwhile"), 3, "meanwhile"),
    (NoAccessError("refused"), 2, "refused"),
    (ConnectionError("silence"), 5, "silence"),
    (ValueError("bad setting"), 2, "bad setting"),
    (FileNotFoundError("a sentence"), 2, "a sentence"),
    (system(errno.EACCES), 2, "runs/shop: Permission denied"),
    (system(errno.ENOTDIR), 2, "runs/shop: Not a directory"),
    (system(errno.EISDIR), 2, "runs/shop: Is a directory"),
    (system(errno.EEXIST), 2, "runs/shop: File exists"),
    (system(errno.EROFS), 2, "runs/shop: Read-only file system"),
    (system(errno.ENOENT), 2, "runs/shop: No such file or directory"),
    (system(errno.ENOSPC), 4, "runs/shop: no room"),
    (system(errno.EDQUOT, None), 4, "no room"),
    (caused_by(RuntimeError("a library's"), system(errno.ENOSPC)), 4, "runs/shop: no room"),
    (MemoryError("Unable to allocate 8 GiB"), 4, "out of memory (Unable to allocate 8 GiB)"),
    (MemoryError(), 4, "out of memory"),
    (OutOfMemoryError("CUDA out of memory"), 4, "out of memory"),
    (RuntimeError("x: DefaultCPUAllocator: can't allocate memory: y"), 4, "out of memory"),
    (system(errno.ENOMEM), 4, "out of memory"),
    (ModuleNotFoundError("no", name="trl"), 2, "trl is not installed here: pip install 'pulse-hf[train]'"),
    (ModuleNotFoundError("no", name="pulse_hf.nothing"), None, ""),
    (KeyError("x"), None, ""),
    (RuntimeError("x"), None, ""),
    (OSError("nobody's"), None, ""),
    (system(errno.EIO), None, ""),
]


@pytest.mark.parametrize(("error", "code", "sentence"), FAULTS, ids=lambda value: str(value)[:40])
def test_every_fault_has_its_exit_code(error: Exception, code: int | None, sentence: str) -> None:
    found = known_fault(error)
    if code is None:
        assert found is None
    else:
        assert found is not None
        assert (found[0], sentence in found[1]) == (code, True), found


@pytest.mark.parametrize(("cause", "code"), [("None", 2), ("ConnectionError()", 5)])
def test_what_a_model_library_does_not_find_is_bad_input_unless_nobody_answered(cause: str, code: int) -> None:
    namespace: dict[str, Any] = {"__name__": "transformers.modeling_utils"}
    exec(f"def load():\n    raise OSError('bob/x does not\\nappear to have weights') from {cause}", namespace)
    with pytest.raises(OSError, match="bob/x") as caught:
        namespace["load"]()
    found = known_fault(caught.value)
    assert found is not None
    assert found[0] == code
    assert "bob/x does not appear to have weights" in found[1]


def test_the_real_library_tells_of_a_pickle_only_folder_as_is_known_here(tmp_path: Path) -> None:
    from transformers import AutoModel, LlamaConfig

    LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(OSError, match=r"no file named model\.safetensors") as caught:
        AutoModel.from_pretrained(tmp_path, use_safetensors=True)
    found = known_fault(caught.value)
    assert found is not None
    assert found[0] == 2


@pytest.mark.parametrize(("error", "code"), [(system(errno.EACCES), 2), (MemoryError(), 4), (system(errno.ENOSPC), 4)])
def test_a_fault_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(command_line, "app", app)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            command_line.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == code
    told_of = capsys.readouterr().err
    assert told_of.startswith("error: ")
    assert told_of.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["thoughts"],
        ["evaluate"],
        ["audit"],
        ["recommend", "--user", "u"],
        ["push", "recommender", "alice/shop"],
        ["space"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("kind", ["absent", "file"])
def test_a_run_that_is_not_there_is_bad_input(tmp_path: Path, arguments: list[str], kind: str) -> None:
    run = tmp_path / "run"
    if kind == "file":
        run.write_text("x")
    done = CliRunner().invoke(command_line.app, [*arguments, "--run", str(run)])
    assert isinstance(done.exception, Exception)
    found = known_fault(done.exception)
    assert found is not None
    assert (found[0], str(run) in found[1], "--run" in found[1]) == (2, True, True), found
    assert run.exists() == (kind == "file")


def test_a_stage_that_begins_a_run_takes_no_file_for_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    done = CliRunner().invoke(command_line.app, ["world", "--preset", "demo", "--run", str(tmp_path / "run")])
    assert isinstance(done.exception, Exception)
    found = known_fault(done.exception)
    assert found is not None
    assert found[0] == 2
    assert str(tmp_path / "run") in found[1]


def test_a_process_that_was_killed_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start = subprocess.Popen

    def started(command: list[str], **more: Any) -> Any:
        code = "import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(60)"
        return start([sys.executable, "-c", code], **more)

    monkeypatch.setattr(launcher.subprocess, "Popen", started)
    assert launcher.launch(["rationales"], 2) == 137
    err = capfd.readouterr().err
    assert "process 1 of this launch was killed by SIGKILL" in err
    assert "the same command goes on from here" in err


def test_an_unfinished_pull_is_simply_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pulse_hf.hub.files import seal_folder

    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "pulse.json").write_text("{}")
    seal_folder(source, "recommender")
    monkeypatch.setattr("pulse_hf.hub.transfer.pull", lambda *_, **__: source)
    (target / ".saving" / "new").mkdir(parents=True)
    asked = ["pull", "alice/shop", "--to", str(target)]
    assert CliRunner().invoke(command_line.app, asked).exit_code == 0
    assert sorted(path.name for path in target.iterdir()) == ["checksums.json", "pulse.json"]
    again = CliRunner().invoke(command_line.app, asked)
    assert "is not empty" in str(again.exception)
