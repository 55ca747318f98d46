"""Users and repositories: who am I, create, delete, settings, information."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from .cards import check_card, metadata_of
from .refusals import RefusedError, no_repo
from .storage import Commit, Repo

URL_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def repo_url(request: Request, repo: Repo) -> str:
    return f"{request.app.state.hub.endpoint}/{URL_PREFIX[repo.type]}{repo.id}"


def named_repo(request: Request) -> Repo:
    """The repository in the path of a request; whether it may be used is asked of `access`."""
    names = request.path_params
    return request.app.state.hub.repos.find(names["type"], f"{names['user']}/{names['name']}")


def readable_repo(request: Request) -> Repo:
    repo = named_repo(request)
    request.app.state.hub.access.read(request, repo)
    return repo


def writable_repo(request: Request) -> tuple[Repo, str]:
    repo = named_repo(request)
    return repo, request.app.state.hub.access.write(request, repo)


async def whoami(request: Request) -> JSONResponse:
    user, role = request.app.state.hub.access.who(request)
    if user is None:
        raise RefusedError(401, "Invalid username or password.")
    token = {"displayName": "loopback", "role": role}
    return JSONResponse({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": token}})


async def validate_yaml(request: Request) -> JSONResponse:
    asked = await request.json()
    errors, warnings = check_card(asked["content"], asked["repoType"])
    body = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return JSONResponse(body, 400 if errors else 200)


async def create(request: Request) -> JSONResponse:
    hub, asked = request.app.state.hub, await request.json()
    user = hub.access.write_to(request, asked.get("organization"))
    repo_type, repo_id = asked.get("type", "model"), f"{asked.get('organization') or user}/{asked['name']}"
    if (repo_type, repo_id) in hub.repos.all:
        url = repo_url(request, hub.repos.find(repo_type, repo_id))
        raise RefusedError(409, f"You already created this {repo_type} repo", url=url)
    repo = hub.repos.create(
        repo_type,
        repo_id,
        private=asked.get("visibility") == "private" or bool(asked.get("private")),
        sdk=asked.get("sdk"),
    )
    return JSONResponse({"url": repo_url(request, repo), "name": repo.id})


async def delete(request: Request) -> JSONResponse:
    hub, asked = request.app.state.hub, await request.json()
    user = hub.access.write_to(request, None)
    repo = hub.repos.find(asked.get("type", "model"), f"{asked.get('organization') or user}/{asked['name']}")
    hub.access.write(request, repo)
    hub.repos.delete(repo)
    return JSONResponse({})


async def settings(request: Request) -> JSONResponse:
    repo, _ = writable_repo(request)
    asked = await request.json()
    if "visibility" in asked:
        repo.private = asked["visibility"] == "private"
    repo.gated = asked.get("gated", repo.gated)
    return JSONResponse({"private": repo.private, "gated": repo.gated})


async def auth_check(request: Request) -> JSONResponse:
    repo = readable_repo(request)
    request.app.state.hub.access.download(request, repo)
    return JSONResponse({})


async def auth_check_write(request: Request) -> JSONResponse:
    writable_repo(request)
    return JSONResponse({})


async def info(request: Request) -> JSONResponse:
    repo = readable_repo(request)
    commit = repo.at(request.path_params.get("revision", "main"))
    blobs = request.query_params.get("blobs", "false").lower() == "true"
    card = card_metadata(request, commit)
    data = description(repo, commit, card) | {"siblings": siblings(commit, blobs)}
    if expand := request.query_params.getlist("expand"):
        data = {key: value for key, value in data.items() if key in {"_id", "id", *expand}}
    return JSONResponse(data)


def card_metadata(request: Request, commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    try:
        return metadata_of(request.app.state.hub.repos.content(readme).decode()) if readme else {}
    except ValueError:  # came in without a client, by `LoopbackHub.commit`
        return {}


def description(repo: Repo, commit: Commit, card: dict[str, Any]) -> dict[str, Any]:
    tags = card.get("tags")
    data = {
        "_id": commit.sha[:24],
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": list(commit.history())[-1].date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags if isinstance(tags, list) else [],
        "cardData": card or None,
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    if repo.type == "model":
        data |= {"modelId": repo.id} | {
            key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card
        }
    if repo.type == "space":
        data |= {"sdk": repo.sdk}
    return data


def siblings(commit: Commit, blobs: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path, file in sorted(commit.files.items()):
        entry: dict[str, Any] = {"rfilename": path}
        if blobs:
            entry |= {"blobId": file.oid, "size": file.size}
            if file.lfs:
                entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        found.append(entry)
    return found


async def without_namespace(request: Request) -> JSONResponse:
    """Ids such as "gpt2": the real Hub has a few hundred, this one none."""
    raise no_repo()
