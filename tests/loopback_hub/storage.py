"""Repositories: files by content, commits that never change, branches and tags that point at them."""

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from .refusals import RefusedError, no_repo, no_revision

RepoType = Literal["model", "dataset", "space"]
LARGE = 10 * 1024 * 1024  # bytes; a file at least this large goes to LFS whatever its name
LARGE_SUFFIXES = (
    "7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar"
    " safetensors tar tflite tgz wasm xz zip zst"
).split()
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
REPO_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?(?<!\.git)", re.ASCII)


def git_oid(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class File:
    """One version of one file; `oid` is what git would call it (for LFS: the oid of the pointer)."""

    sha256: str
    size: int  # bytes
    oid: str
    lfs: bool

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


def lfs_file(sha256: str, size: int) -> File:
    pointer = File(sha256, size, "", lfs=True).pointer
    return File(sha256, size, git_oid("blob", pointer), lfs=True)


class Blobs:
    """Contents on disk under their sha256."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def keep(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        temporary = self.folder / uuid.uuid4().hex
        temporary.write_bytes(content)
        temporary.replace(self.path(sha256))
        return sha256

    def keep_regular(self, content: bytes) -> File:
        return File(self.keep(content), len(content), git_oid("blob", content), lfs=False)


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: "Commit | None"
    files: Mapping[str, File]
    title: str
    message: str
    author: str
    date: str  # UTC, as the Hub writes it

    def history(self) -> Iterator["Commit"]:
        """This commit and those before it, newest first."""
        commit: Commit | None = self
        while commit:
            yield commit
            commit = commit.parent

    def last_change(self, path: str) -> "Commit":
        """The newest commit that touched a file, or anything in a folder."""

        def state(commit: Commit) -> dict[str, File]:
            return {p: f for p, f in commit.files.items() if p == path or p.startswith(path + "/")}

        history = list(self.history())
        for commit, before in zip(history, history[1:], strict=False):
            if state(commit) != state(before):
                return commit
        return history[-1]


def commit_of(parent: Commit | None, files: Mapping[str, File], title: str, message: str, author: str) -> Commit:
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    listing = {path: files[path].oid for path in sorted(files)}
    content = json.dumps([parent.sha if parent else None, listing, title, message, author, date, uuid.uuid4().hex])
    return Commit(git_oid("commit", content.encode()), parent, dict(files), title, message, author, date)


@dataclass
class Repo:
    """A model, dataset or Space repository."""

    id: str
    type: RepoType
    private: bool = False
    gated: bool | str = False  # False, "auto" or "manual"
    sdk: str | None = None  # Spaces only
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    large: dict[str, int] = field(default_factory=dict)  # LFS contents uploaded to this repo: sha256 to size
    readers: set[str] = field(default_factory=set)  # users let through the gate
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a full commit sha."""
        for known in (self.branches, self.tags, self.commits):
            if revision in known:
                return known[revision]
        raise no_revision(revision)

    def commit(
        self,
        branch: str,
        changes: Mapping[str, File | None],
        title: str,
        author: str,
        message: str = "",
        expected_head: str | None = None,
    ) -> Commit:
        """Move a branch by one commit, all of it or nothing; None as a file removes it.

        Raises:
            RefusedError: 404 for a missing branch, 412 when the branch is no longer at `expected_head`.
        """
        with self.lock:
            if branch not in self.branches:
                raise no_revision(branch)
            head = self.branches[branch]
            if expected_head not in (None, head.sha):
                raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
            files = {**head.files, **changes}
            commit = commit_of(head, {p: f for p, f in files.items() if f is not None}, title, message, author)
            self.commits[commit.sha] = self.branches[branch] = commit
            return commit


class Repos:
    """All repositories of one Hub."""

    def __init__(self, folder: Path):
        self.blobs = Blobs(folder / "blobs")
        self.all: dict[tuple[RepoType, str], Repo] = {}

    def find(self, repo_type: RepoType, repo_id: str) -> Repo:
        """Raises RefusedError 404 when there is none."""
        try:
            return self.all[repo_type, repo_id]
        except KeyError:
            raise no_repo() from None

    def create(self, repo_type: RepoType, repo_id: str, **settings: object) -> Repo:
        """A repository with the Hub's first commit (its `.gitattributes`); the id must be free."""
        owner, _, name = repo_id.partition("/")
        if not (REPO_NAME.fullmatch(owner) and REPO_NAME.fullmatch(name)):
            raise RefusedError(
                400, f"Invalid repo id {repo_id!r}: expected user/name of letters, digits, '-', '_', '.'"
            )
        repo = Repo(repo_id, repo_type, **settings)
        first = commit_of(
            None, {".gitattributes": self.blobs.keep_regular(GITATTRIBUTES.encode())}, "initial commit", "", "system"
        )
        repo.branches["main"] = repo.commits[first.sha] = first
        self.all[repo_type, repo_id] = repo
        return repo

    def delete(self, repo: Repo) -> None:
        del self.all[repo.type, repo.id]

    def content(self, file: File) -> bytes:
        return self.blobs.path(file.sha256).read_bytes()
