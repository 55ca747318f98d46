"""Contents: downloads by path, LFS uploads, and the storage origin that both are sent to for large files.

The storage origin is another port, because the clients take a redirect within one origin for a moved repository and
then lose the headers of the first answer. Its links are signed and need no token, like those of the real one.
"""

import hashlib
import hmac
import uuid
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from .refusals import RefusedError, no_entry
from .repo_routes import named_repo, writable_repo


def link(request: Request, verb: str, sha256: str, name: str = "") -> str:
    hub = request.app.state.hub
    return f"{hub.storage}/{verb}/{sha256}/{signature(request, verb, sha256)}/{quote(name, safe='')}"


def signature(request: Request, verb: str, sha256: str) -> str:
    secret = request.app.state.hub.access.secret.encode()
    return hmac.new(secret, f"{verb} {sha256}".encode(), "sha256").hexdigest()


def signed(request: Request, verb: str) -> str:
    sha256 = request.path_params["sha256"]
    if not hmac.compare_digest(request.path_params["signature"], signature(request, verb, sha256)):
        raise RefusedError(403, "Access denied: the link is not signed by this Hub")
    return sha256


async def resolve(request: Request) -> Response:
    """A file of a repo: regular ones here, LFS ones by redirect."""
    hub, repo, path = request.app.state.hub, named_repo(request), request.path_params["path"]
    hub.access.download(request, repo)
    commit = repo.at(request.path_params["revision"])
    if path not in commit.files:
        raise no_entry(path)
    file = commit.files[path]
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    name = path.rpartition("/")[2]
    if not file.lfs:
        return FileResponse(
            hub.repos.blobs.path(file.sha256),
            headers=headers | {"ETag": f'"{file.oid}"'},
            filename=name,
            content_disposition_type="inline",
        )
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "ETag": f'"{file.oid}"'}
    return RedirectResponse(link(request, "downloads", file.sha256, name), 302, headers)


async def lfs_batch(request: Request) -> JSONResponse:
    """Where to send each object; nothing to do for those that the repo has."""
    repo, _ = writable_repo(request)
    asked = await request.json()
    if asked["operation"] != "upload":
        raise RefusedError(400, "The loopback Hub serves LFS downloads by /resolve only")
    answers = []
    for item in asked["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in repo.large:
            answer["actions"] = {
                "upload": {"href": link(request, "uploads", item["oid"]), "header": {}},
                "verify": {"href": str(request.url).replace("objects/batch", "verify"), "header": {}},
            }
        answers.append(answer)
    return JSONResponse({"transfer": "basic", "objects": answers})


async def lfs_verify(request: Request) -> JSONResponse:
    """The client's word that an upload is complete; from here on the object may be committed."""
    repo, _ = writable_repo(request)
    asked = await request.json()
    path = request.app.state.hub.repos.blobs.path(asked["oid"])
    if not path.exists() or path.stat().st_size != asked["size"]:
        raise RefusedError(404, f"Object {asked['oid']} of {asked['size']} bytes was not uploaded")
    repo.large[asked["oid"]] = asked["size"]
    return JSONResponse({})


async def upload(request: Request) -> Response:
    sha256, blobs = signed(request, "uploads"), request.app.state.hub.repos.blobs
    arriving = blobs.folder / f"{uuid.uuid4().hex}.part"
    digest = hashlib.sha256()
    try:
        with arriving.open("wb") as file:
            async for chunk in request.stream():
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise RefusedError(400, f"The content has the hash {digest.hexdigest()}, the link is for {sha256}")
        arriving.replace(blobs.path(sha256))
    finally:
        arriving.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{sha256}"'})


async def stored_object(request: Request) -> Response:
    sha256 = signed(request, "downloads")
    path = request.app.state.hub.repos.blobs.path(sha256)
    return FileResponse(path, headers={"ETag": f'"{sha256}"'}, filename=request.path_params["filename"])
