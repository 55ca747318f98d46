"""Push and pull: one atomic commit up, verified files down.

The client library checks sizes only, so every pulled file is compared with the sha256 of ``checksums.json``; a damaged
one is fetched once more. Files with code are never fetched, and nothing from a repo is ever run.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_hf.artifacts import ArtifactError
from pulse_hf.hub.files import CHECKSUMS, PublishedFile, damaged_files, list_files, read_seal
from pulse_hf.hub.refusals import NoAccessError, WrongRepoError, is_passing, overtaken
from pulse_hf.hub.refusals import plain_errors as _plain_errors
from pulse_hf.hub.repos import RepoType, is_repo_id, refuse_public, require_repo_id
from pulse_hf.models.embedded import is_here

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["NoAccessError", "Pushed", "is_repo_id", "pull", "push_folder", "require_cached"]

logger = logging.getLogger(__name__)
_PAUSES_S = (0.5, 2.0)  # ours: a Hub that is busy for longer is told of


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Args:
        repo_id: Where to.
        commit: The new commit; ``None`` if nothing had changed, or for a dry run.
        changed: Files written.
        deleted: Files taken away.
    """

    repo_id: str
    commit: str | None
    changed: tuple[PublishedFile, ...]
    deleted: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that changed."""
        return sum(one.size for one in self.changed)


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    under: str = "",
    parent: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Push from pulse_hf",
    code: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Bring a repo to the state of a folder, in one commit or in none.

    Files that an earlier push put there (by the ``checksums.json`` in the repo) and that the folder no longer has are
    taken away; all others of the repo stay. A folder that is there already makes no commit. A repo and a branch that
    are not there are made; they stay if the commit is refused.

    Args:
        folder: What to publish; all of it.
        repo_id: ``owner/name``; made if absent.
        repo_type: ``"model"``, ``"dataset"`` or ``"space"``.
        under: Folder inside the repo that the files go to; the card goes to the repo's own top.
        parent: The commit that the folder was made to follow; the repo's newest by default.
        private: Whether a new repo is private; the account's default if not said. One that is there stays what it is,
            and a public one is refused where ``True`` is said.
        token: Access token; the one logged in with by default.
        revision: Branch; ``main`` by default. A new one begins where ``main`` is.
        message: The commit's message.
        code: Whether source files may be among the files.
        dry_run: Only say what would be sent; a repo is neither made nor asked.

    Raises:
        ValueError: ``repo_id`` is not of the form ``owner/name``, or the repo holds another kind of artefact, or is
            public and should be private.
        ArtifactError: A file may not be published, or somebody else changed the repo meanwhile.
        NoAccessError: The token may not write there, or the Hub refused what was sent.
        ConnectionError: The Hub could not be reached; the repo is as it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    require_repo_id(repo_id)
    local = {_place(one.path, under): one for one in list_files(folder, code=code)}
    if dry_run:
        return Pushed(repo_id, None, tuple(local.values()), ())
    api = HfApi(token=token)
    kind = read_seal(folder).kind if (folder / CHECKSUMS).is_file() else "no artefact"
    with _plain_errors(repo_id, token, writing=True):
        if private:
            refuse_public(api, repo_id, repo_type)
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        head, remote = _state(api, repo_id, repo_type, revision)
        if parent is not None and head != parent:
            raise overtaken(repo_id)
        changed = {name: one for name, one in local.items() if not _same(folder / one.path, one, remote.get(name))}
        gone = sorted(_of_earlier_push(api, repo_id, repo_type, head, under, remote, kind) - local.keys())
        if not changed and not gone:
            return Pushed(repo_id, None, (), ())
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / one.path) for name, one in changed.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in gone]
        made = api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            repo_type=repo_type,
            revision=revision,
            parent_commit=head,
        )
    return Pushed(repo_id, str(made.oid), tuple(changed.values()), tuple(gone))


def _place(path: str, under: str) -> str:
    return path if not under or path == "README.md" else f"{under}/{path}"


def _state(
    api: HfApi, repo_id: str, repo_type: RepoType, revision: str | None
) -> tuple[str | None, dict[str, Mapping[str, Any]]]:
    """The branch's head commit and, per file, its git blob id and, where there is one, its sha256."""
    from huggingface_hub import errors

    asked: dict[str, Any] = {"repo_type": repo_type, "revision": revision, "files_metadata": True}
    try:
        info: Any = api.repo_info(repo_id, **asked)
    except errors.RevisionNotFoundError:
        api.create_branch(repo_id, repo_type=repo_type, branch=str(revision), exist_ok=True)
        info = api.repo_info(repo_id, **asked)
    files: dict[str, Mapping[str, Any]] = {
        one.rfilename: {"size": one.size, "blob": one.blob_id, "sha256": one.lfs.sha256 if one.lfs else None}
        for one in info.siblings or ()
    }
    return info.sha, files


def _same(path: Path, local: PublishedFile, remote: Mapping[str, Any] | None) -> bool:
    from huggingface_hub.utils.sha import git_hash

    if remote is None:
        return False
    if remote["sha256"]:
        return bool(remote["sha256"] == local.sha256)
    return remote["size"] == local.size and remote["blob"] == git_hash(path.read_bytes())


def _of_earlier_push(
    api: HfApi, repo_id: str, repo_type: RepoType, head: str | None, under: str, remote: Mapping[str, Any], kind: str
) -> set[str]:
    """What an earlier push of the same folder put there; one of another kind is refused."""
    name = _place(CHECKSUMS, under)
    if name not in remote:
        return set()
    path = Path(api.hf_hub_download(repo_id, name, repo_type=repo_type, revision=head))
    try:
        seal = read_seal(path.parent)
    except ArtifactError as error:
        logger.warning("%s: nothing is taken away (%s)", repo_id, error)
        return set()
    if seal.kind != kind:
        raise WrongRepoError(
            f"{repo_id} holds {seal.kind!r} (by its {name}); expected {kind!r}, which this push is: it would delete "
            "what is there. Nothing was pushed; name another repo, or delete the files of that one first."
        )
    return {_place(one.path, under) for one in seal.files} & remote.keys()


def pull(
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    under: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch what :func:`push_folder` published into the Hugging Face cache, and verify it.

    Only files named in the repo's ``checksums.json`` are fetched, and of these only data. With ``HF_HUB_OFFLINE`` or
    ``local_files_only`` the cached files serve, verified likewise.

    Args:
        repo_id: ``owner/name``.
        repo_type: ``"model"``, ``"dataset"`` or ``"space"``.
        under: Folder inside the repo.
        revision: Branch, tag or commit.
        token: Access token; the one logged in with by default.
        cache_dir: Cache folder.
        local_files_only: Do not ask the Hub.

    Returns:
        The folder with the files.

    Raises:
        ValueError: ``repo_id`` is not of the form ``owner/name``.
        ArtifactError: The repo was not made by this package, names unsafe files, does not fit on the disk, or
            stays damaged.
        NoAccessError: There is no such repo or revision for whoever asks.
        ConnectionError: The Hub could not be reached.
    """
    from huggingface_hub import snapshot_download

    require_repo_id(repo_id)
    asked: dict[str, Any] = {
        "repo_type": repo_type,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }

    def fetch(names: Iterable[str], commit: str | None, *, again: bool = False) -> Path:
        patterns = [_place(name, under) for name in names]
        with _plain_errors(repo_id, token):
            root = _patiently(
                lambda: snapshot_download(
                    repo_id, revision=commit, allow_patterns=patterns, force_download=again, **asked
                )
            )
        return Path(root)

    root = fetch([CHECKSUMS], revision)
    folder, commit = root / under, root.name
    if not (folder / CHECKSUMS).is_file():
        raise ArtifactError(
            f"{repo_id}: no {_place(CHECKSUMS, under)} in it (commit {commit}); it was not published by this package"
        )
    seal = read_seal(folder)
    missing = [one for one in seal.data if not (folder / one.path).is_file()]
    if missing and not local_files_only:
        _check_room(repo_id, folder, missing)
        fetch([one.path for one in seal.data], commit)
    wrong = damaged_files(folder, seal.data)
    if wrong and not local_files_only:
        logger.warning("%s: fetching damaged files again: %s", repo_id, ", ".join(wrong))
        fetch(wrong, commit, again=True)
        wrong = damaged_files(folder, seal.data)
    if wrong:
        raise ArtifactError(
            f"{repo_id} (commit {commit}): missing or damaged after fetching twice: {', '.join(wrong)}. "
            "Nothing was loaded; tell its owner, or pin another revision."
        )
    return folder


def _patiently(fetch: Callable[[], str]) -> str:
    """Ask again where the Hub is busy: the client library does so for some of its requests only."""
    for pause in _PAUSES_S:
        try:
            return fetch()
        except Exception as error:
            if not is_passing(error):
                raise
            time.sleep(pause)
    return fetch()


def require_cached(model_id: str) -> None:
    """See that a model of the Hub is in the cache, without asking the Hub.

    Args:
        model_id: As :func:`~pulse_hf.models.embedded.resolve_model` takes it; a folder or an embedded model is there.

    Raises:
        ConnectionError: Its configuration is not, at that revision.
    """
    from huggingface_hub import hf_hub_download

    if not is_here(model_id):
        name, _, revision = model_id.partition("@")
        with _plain_errors(name, None):
            hf_hub_download(name, "config.json", revision=revision or None, local_files_only=True)


def _check_room(repo_id: str, folder: Path, files: Iterable[PublishedFile]) -> None:
    needed, free = sum(one.size for one in files), shutil.disk_usage(folder).free
    if needed > free:
        raise ArtifactError(
            f"{repo_id}: its files take {needed:,} bytes, {free:,} are free here. Nothing was fetched."
        )
