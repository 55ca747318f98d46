"""Trees, commits, branches and tags."""

from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse

from .refusals import Refusal, no_entry, no_revision
from .repo_routes import readable_repo, writable_repo
from .storage import Commit, git_oid


def page(request: Request, items: list[Any]) -> JSONResponse:
    """One page of a listing; the next one is named in the Link header."""
    hub = request.app.state.hub
    start = int(request.query_params.get("cursor", 0))
    end = start + hub.page_size
    headers = {}
    if end < len(items):
        query = "&".join(f"{k}={v}" for k, v in (dict(request.query_params) | {"cursor": end}).items())
        headers["Link"] = f'<{hub.endpoint}{request.scope["path"]}?{query}>; rel="next"'
    return JSONResponse(items[start:end], headers=headers)


def entry(commit: Commit, path: str, expand: bool) -> dict[str, Any] | None:
    """A file or a folder as the Hub describes it; None when there is neither."""
    if path in commit.files:
        file = commit.files[path]
        found: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.lfs:
            found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    else:
        inside = [f"{name} {file.oid}" for name, file in sorted(commit.files.items()) if name.startswith(path + "/")]
        if not inside:
            return None
        found = {"type": "directory", "oid": git_oid("tree", "\n".join(inside).encode()), "size": 0, "path": path}
    if expand:
        last = commit.last_change(path)
        found["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
    return found


def flag(text: str | None) -> bool:
    return (text or "").lower() in ("true", "1")


async def tree(request: Request) -> JSONResponse:
    commit = readable_repo(request).at(request.path_params["revision"])
    folder = request.path_params.get("path", "").strip("/")
    prefix = folder + "/" if folder else ""
    paths = set()
    for path in commit.files:
        if path.startswith(prefix):
            parts = path[len(prefix) :].split("/")
            depth = len(parts) if flag(request.query_params.get("recursive")) else 1
            paths |= {prefix + "/".join(parts[:count]) for count in range(1, depth + 1)}
    if folder and not paths:
        raise no_entry(folder)
    expand = flag(request.query_params.get("expand"))
    return page(request, [entry(commit, path, expand) for path in sorted(paths)])


async def paths_info(request: Request) -> JSONResponse:
    commit = readable_repo(request).at(request.path_params["revision"])
    asked = parse_qs((await request.body()).decode())
    expand = flag(asked.get("expand", ["false"])[0])
    entries = [entry(commit, path.strip("/"), expand) for path in asked.get("paths", [])]
    return JSONResponse([found for found in entries if found])


async def commits(request: Request) -> JSONResponse:
    history = readable_repo(request).at(request.path_params["revision"]).history()
    described = [
        {"id": c.sha, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.date}
        for c in history
    ]
    return page(request, described)


async def refs(request: Request) -> JSONResponse:
    repo = readable_repo(request)

    def described(kind: str, known: dict[str, Commit]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c.sha} for n, c in known.items()]

    branches, tags = described("heads", repo.branches), described("tags", repo.tags)
    return JSONResponse({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


async def create_branch(request: Request) -> JSONResponse:
    repo, _ = writable_repo(request)
    branch, asked = request.path_params["revision"], await request.json()
    if branch in repo.branches:
        raise Refusal(409, f"Reference already exists: {branch}")
    repo.branches[branch] = repo.at(asked.get("startingPoint", "main"))
    return JSONResponse({})


async def delete_branch(request: Request) -> JSONResponse:
    repo, _ = writable_repo(request)
    branch = request.path_params["revision"]
    if branch == "main":
        raise Refusal(403, "Cannot delete refs/heads/main")
    if repo.branches.pop(branch, None) is None:
        raise no_revision(branch)
    return JSONResponse({})


async def create_tag(request: Request) -> JSONResponse:
    repo, _ = writable_repo(request)
    tag = (await request.json())["tag"]
    target = repo.at(request.path_params["revision"])
    if tag in repo.tags:
        raise Refusal(409, f"Tag reference exists already: {tag}")
    repo.tags[tag] = target
    return JSONResponse({})


async def delete_tag(request: Request) -> JSONResponse:
    repo, _ = writable_repo(request)
    if repo.tags.pop(request.path_params["revision"], None) is None:
        raise no_revision(request.path_params["revision"])
    return JSONResponse({})
