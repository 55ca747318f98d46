"""Uploading, the two ends of it: which files go to LFS, and the commit."""

import base64
import json
from typing import Any

import pathspec
from starlette.requests import Request
from starlette.responses import JSONResponse

from .cards import check_card
from .refusals import RefusedError, no_entry
from .repo_routes import repo_url, writable_repo
from .storage import LARGE, Commit, File, Repo, lfs_file


def patterns(lines: list[str]) -> pathspec.GitIgnoreSpec:
    return pathspec.GitIgnoreSpec.from_lines(lines)


def text_of(request: Request, commit: Commit, path: str) -> str:
    file = commit.files.get(path)
    return request.app.state.hub.repos.content(file).decode() if file else ""


async def preupload(request: Request) -> JSONResponse:
    repo, _ = writable_repo(request)
    commit, asked = repo.at(request.path_params["revision"]), await request.json()
    attributes = text_of(request, commit, ".gitattributes").splitlines()
    large = patterns([line.split()[0] for line in attributes if "filter=lfs" in line])
    ignored = patterns(asked.get("gitIgnore", text_of(request, commit, ".gitignore")).splitlines())
    answers = []
    for file in asked["files"]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        lfs = large.match_file(path) or file["size"] > LARGE or b"\0" in sample
        here = commit.files.get(path)
        answers.append(
            {
                "path": path,
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": ignored.match_file(path),
                "oid": here and (here.sha256 if here.lfs else here.oid),
            }
        )
    return JSONResponse({"files": answers})


async def commit(request: Request) -> JSONResponse:
    """A commit as lines of JSON: a header, then one operation a line; all of it or nothing."""
    repo, user = writable_repo(request)
    if request.query_params.get("create_pr"):
        raise RefusedError(400, "The loopback Hub has no pull requests: commit to a branch")
    header, *operations = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    branch, about = request.path_params["revision"], header["value"]
    with repo.lock:
        changes = changed_files(request, repo, repo.at(branch), operations)
        made = repo.commit(
            branch, changes, about["summary"], user, about.get("description", ""), about.get("parentCommit")
        )
    url = f"{repo_url(request, repo)}/commit/{made.sha}"
    return JSONResponse({"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})


def changed_files(
    request: Request, repo: Repo, head: Commit, operations: list[dict[str, Any]]
) -> dict[str, File | None]:
    changes: dict[str, File | None] = {}
    for operation in operations:
        asked = operation["value"]
        path = checked_path(asked["path"])
        match operation["key"]:
            case "file":
                content = base64.b64decode(asked["content"], validate=True)
                check_readme(repo, path, content)
                changes[path] = request.app.state.hub.repos.blobs.keep_regular(content)
            case "lfsFile":
                if asked["oid"] not in repo.large:
                    raise RefusedError(400, f"LFS pointer of {path} points to an object that was never uploaded")
                changes[path] = lfs_file(asked["oid"], repo.large[asked["oid"]])
            case "deletedFile":
                if path not in head.files:
                    raise no_entry(f"A file with this name doesn't exist: {path}")
                changes[path] = None
            case "deletedFolder":
                inside = [name for name in head.files if name.startswith(path + "/")]
                if not inside:
                    raise no_entry(f"A folder with this name doesn't exist: {path}")
                changes |= dict.fromkeys(inside)
            case unknown:
                raise RefusedError(400, f"Unknown operation {unknown!r} in a commit")
    return changes


def checked_path(path: str) -> str:
    path = path.removesuffix("/")  # of a folder to delete
    parts = path.split("/")
    if not all(parts) or {".", "..", ".git"} & set(parts) or "\0" in path:
        raise RefusedError(400, f"Invalid path in a commit: {path!r}")
    return path


def check_readme(repo: Repo, path: str, content: bytes) -> None:
    if path == "README.md":
        errors, _ = check_card(content.decode(), repo.type)
        if errors:
            raise RefusedError(400, "Invalid metadata in README.md", errors=[{"message": text} for text in errors])
