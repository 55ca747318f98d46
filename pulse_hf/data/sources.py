"""Where files named in the settings lie on this machine: as named, or fetched from a dataset repo of the Hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from pulse_hf.data.chunks import expect_file
from pulse_hf.network_faults import BUSY, lost_on_the_way

_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^/\s]+))?/(?P<file>\S+)\Z")


def local_files(name: str) -> list[Path]:
    """The files of a pattern, in the order of their names; what has no ``*`` is one file.

    Args:
        name: As in :func:`local_file`; ``*`` stands for any part of a name, as in ``data/train-*.parquet``, which is
            how datasets come in shards.

    Raises:
        ValueError: No file is called so, or one of them cannot be read.
        ConnectionError: The Hub cannot be reached.
    """
    if "*" not in name:
        return [local_file(name)]
    names = _matching_on_the_hub(name) if name.startswith("hf://") else sorted(glob.glob(name))
    if not names:
        raise ValueError(f"{name}: no file is called so; expected at least one. Check the folder and the pattern.")
    return [local_file(one) for one in names]


def local_file(name: str) -> Path:
    """The file itself, fetched into the cache if it lies on the Hub.

    Args:
        name: A path, or ``hf://datasets/OWNER/REPO[@REVISION]/FILE``.

    Raises:
        ValueError: It is not a file that can be read, or the address is not one of a dataset's file, or the Hub does
            not have it.
        ConnectionError: The Hub cannot be reached.
    """
    if not name.startswith("hf://"):
        if "://" in name:
            raise ValueError(
                f"{name}: expected a file of this machine or hf://datasets/OWNER/REPO/FILE; download it first"
            )
        path = Path(name)
        expect_file(path)
        return path
    from huggingface_hub import hf_hub_download

    repo, revision, file = _address(name)
    with _plainly(name):
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))


def _matching_on_the_hub(name: str) -> list[str]:
    """All shards of one commit, whatever is pushed meanwhile; of what is in the cache nobody knows if it is all."""
    from huggingface_hub import HfApi

    repo, revision, pattern = _address(name)
    with _plainly(name):
        info = HfApi().dataset_info(repo, revision=revision)
    files = sorted(one.rfilename for one in info.siblings or ())
    # As in a shell: a star does not reach into other folders.
    found = [one for one in files if fnmatchcase(one, pattern) and one.count("/") == pattern.count("/")]
    return [f"hf://datasets/{repo}@{info.sha}/{one}" for one in found]


def _address(name: str) -> tuple[str, str, str]:
    found = _HUB.match(name)
    if found is None:
        raise ValueError(f"{name}: expected hf://datasets/OWNER/REPO[@REVISION]/FILE")
    return found["repo"], found["revision"] or "main", found["file"]


@contextmanager
def _plainly(name: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    later = "Try again later, or name files on this machine."
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{name}: the Hub cannot be reached and the file is not in the cache ({error}). {later}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status in BUSY:
            raise ConnectionError(f"{name}: the Hub does not answer now (status {status}). {later}") from error
        raise ValueError(
            f"{name}: the Hub does not give it (status {status}). Check owner, name and access."
        ) from error
    except Exception as error:
        unnumbered = isinstance(error, OSError) and error.errno is None  # what fails on this machine has a number
        if not (unnumbered or isinstance(error, ConnectionError) or lost_on_the_way(error)):
            raise
        raise ConnectionError(
            f"{name}: the Hub cannot be reached, or its answer broke off ({type(error).__name__}: {error}). {later}"
        ) from error
