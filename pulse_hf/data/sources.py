"""Where a file named in the settings lies on this machine: as named, or fetched from a dataset repo of the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from pulse_hf.data.chunks import expect_file

_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^/\s]+))?/(?P<file>\S+)\Z")


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
        path = Path(name)
        expect_file(path)
        return path
    found = _HUB.match(name)
    if found is None:
        raise ValueError(f"{name}: expected hf://datasets/OWNER/REPO[@REVISION]/FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            hf_hub_download(found["repo"], found["file"], repo_type="dataset", revision=found["revision"] or "main")
        )
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{name}: the Hub cannot be reached and the file is not in the cache ({error})"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise ValueError(
            f"{name}: the Hub does not give it (status {status}). Check owner, name and access."
        ) from error
