"""The server itself: two ports, one thread, and a Python object for the test beside it."""

import asyncio
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

import uvicorn

from .access import Access
from .application import application
from .client import client_environment
from .faults import Connection, Faults, Record, Watched
from .storage import Repo, Repos, RepoType


class LoopbackHub:
    """A Hub on this machine, for as long as a `with` block runs.

    Args:
        folder: where contents are kept; everything else is forgotten at the end.

    Attributes:
        endpoint: what clients take as `HF_ENDPOINT`.
        storage: the origin of large files.
        requests: every request so far, in order of arrival.
        faults: what should go wrong, see `Faults.add`.
        page_size: entries per page of a listing.
    """

    def __init__(self, folder: str | Path):
        self.repos = Repos(Path(folder))
        self.access = Access()
        self.faults = Faults()
        self.requests: list[Record] = []
        self.page_size = 1000
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{bound.getsockname()[1]}" for bound in self.sockets)

    def __enter__(self) -> "LoopbackHub":
        app = Watched(application(self), self.faults, self.requests)
        quiet = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none"}
        self.server = uvicorn.Server(uvicorn.Config(app, http=Connection, timeout_graceful_shutdown=1, **quiet))
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(self.sockets)), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=10)
        for bound in self.sockets:
            bound.close()

    def token(self, user: str, role: str = "write") -> str:
        """A token for a user, who exists from now on; `role` is "write" or "read"."""
        return self.access.token(user, role)

    def environment(self, cache: str | Path, user: str | None = None) -> dict[str, str]:
        """The environment for client processes: this Hub, a cache of their own, and a user's token or none."""
        return client_environment(self.endpoint, self.token(user) if user else None, Path(cache))

    def repo(self, repo_id: str, repo_type: RepoType = "model") -> Repo:
        return self.repos.find(repo_type, repo_id)

    def create_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        repo_type: RepoType = "model",
        private: bool = False,
        gated: bool | str = False,
    ) -> str:
        """A repository without any client, with one commit of `files`; returns the sha of its head."""
        sdk = "gradio" if repo_type == "space" else None
        repo = self.repos.create(repo_type, repo_id, private=private, gated=gated, sdk=sdk)
        return self.commit(repo_id, files, repo_type=repo_type) if files else repo.at("main").sha

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        *,
        repo_type: RepoType = "model",
        branch: str = "main",
        author: str = "somebody",
    ) -> str:
        """A commit without any client (None removes a file), all files as regular ones; returns its sha."""
        keep = self.repos.blobs.keep_regular
        changes = {path: None if content is None else keep(content) for path, content in files.items()}
        return self.repo(repo_id, repo_type).commit(branch, changes, f"Change {len(changes)} files", author).sha

    def files(self, repo_id: str, repo_type: RepoType = "model", revision: str = "main") -> dict[str, bytes]:
        """Path to content of every file at a revision, without `.gitattributes`, which the Hub itself puts there."""
        files = self.repo(repo_id, repo_type).at(revision).files
        return {path: self.repos.content(file) for path, file in sorted(files.items()) if path != ".gitattributes"}

    def commits(self, repo_id: str, repo_type: RepoType = "model", revision: str = "main") -> list[str]:
        """The shas of a revision's history, newest first."""
        return [commit.sha for commit in self.repo(repo_id, repo_type).at(revision).history()]
