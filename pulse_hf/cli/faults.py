"""Which faults are told in a sentence, and the exit code of each; whatever is not known here is a bug of ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from pulse_hf.artifacts import NO_ROOM, ArtifactError, DiskFullError, no_room
from pulse_hf.hub.refusals import OvertakenError
from pulse_hf.network_faults import lost_on_the_way, raised_in

__all__ = ["known_fault", "require_run"]

# What `pip install pulse-hf` alone does not bring (pyproject.toml), by the name that is imported.
_EXTRAS = {
    "train": ("accelerate", "bm25s", "datasets", "trl", "sklearn", "scipy", "matplotlib"),
    "space": ("gradio",),
    "vllm": ("vllm",),
}
_BAD_PATH = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
_MODEL_LIBRARIES = ("transformers", "sentence_transformers", "peft")


def require_run(run: Path) -> None:
    """Refuse a run folder that is not there, for commands that begin none.

    Raises:
        ValueError: It is not there, or is a file.
    """
    if not run.is_dir():
        found = "is a file" if run.exists() else "does not exist"
        raise ValueError(f"{run} {found}; give --run with the folder of an existing run")


def known_fault(error: Exception) -> tuple[int, str] | None:
    """Exit code and sentence of a fault of whoever runs a command, of the machine or of the Hub.

    Returns:
        ``None`` for a bug. (The codes are listed at :func:`pulse_hf.cli.main.main`.)

    Example:
        >>> known_fault(FileExistsError(errno.EEXIST, "File exists", "runs/demo"))
        (2, 'runs/demo: File exists. Check the path, and that you may read and write there.')
        >>> known_fault(KeyError("x")) is None
        True
    """
    sentence = str(error)
    if isinstance(error, ArtifactError | FloatingPointError):
        return 4 if isinstance(error, DiskFullError) else 3 if isinstance(error, OvertakenError) else 6, sentence
    full = next((one for one in _causes(error) if isinstance(one, OSError) and one.errno in NO_ROOM), None)
    if full is not None:
        return 4, no_room(str(full.filename or ""), full.errno or 0)
    if _is_memory(error):
        return 4, (
            f"out of memory ({_line(sentence)}). End other programs, or take a smaller model, smaller batches or "
            "a machine with more memory; the same command goes on from what is kept."
        )
    if isinstance(error, ValueError):  # before the next: a refusal by the Hub is of both kinds
        return 2, sentence
    if isinstance(error, ConnectionError):
        return 5, sentence
    if lost_on_the_way(error):
        return 5, f"the Hub did not answer ({type(error).__name__}: {_line(sentence)}). Run the same command again."
    if isinstance(error, ModuleNotFoundError):
        extra = next((extra for extra, names in _EXTRAS.items() if error.name in names), None)
        return (2, f"{error.name} is not installed here: pip install 'pulse-hf[{extra}]'") if extra else None
    return _told_by_system(error) if isinstance(error, OSError) else None


def _told_by_system(error: OSError) -> tuple[int, str] | None:
    if error.errno in _BAD_PATH and error.filename is not None:
        return 2, f"{error.filename}: {error.strerror}. Check the path, and that you may read and write there."
    if isinstance(error, FileNotFoundError):
        return 2, str(error)
    if error.errno is None and raised_in(error) in _MODEL_LIBRARIES:
        if any(_is_silence(one) for one in _causes(error)):
            return 5, _line(str(error))
        return 2, (
            f"{_line(str(error))} Give a model, as a folder or owner/name, that has a configuration, a tokenizer and "
            "weights in .safetensors; no others are loaded."
        )
    return None


def _causes(error: BaseException | None) -> Iterator[Exception]:
    """An error, and those that it was raised from."""
    while isinstance(error, Exception):
        yield error
        error = error.__cause__


def _is_silence(error: Exception) -> bool:
    """Whether the Hub gave no answer, and the cache had none."""
    known = isinstance(error, ConnectionError) or type(error).__name__ == "LocalEntryNotFoundError"
    return known or lost_on_the_way(error)


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out: of Python and NumPy, of a GPU, of torch on the CPU, or for another process."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


def _line(text: str) -> str:
    return " ".join(text.split()) or "no more could be told"
