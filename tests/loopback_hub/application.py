"""The HTTP face: which path goes to which function."""

from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from . import commit_routes, history_routes, repo_routes, transfer_routes
from .refusals import RefusedError, answer

if TYPE_CHECKING:
    from .hub import LoopbackHub


class Part(Convertor[str]):
    """One part of a path as it was sent: a branch "a/b" arrives as "a%2Fb" and must stay one part."""

    regex = "[^/]+"
    convert = staticmethod(unquote)


class Rest(Convertor[str]):
    regex = ".*"
    convert = staticmethod(unquote)


class Plural(Convertor[str]):
    regex = "models|datasets|spaces"

    def convert(self, value: str) -> str:
        return value.removesuffix("s")


class Prefix(Convertor[str]):
    regex = "(?:datasets/|spaces/)?"

    def convert(self, value: str) -> str:
        return value.removesuffix("s/") or "model"


for name, convertor in {"part": Part(), "rest": Rest(), "plural": Plural(), "prefix": Prefix()}.items():
    register_url_convertor(name, convertor)

REPO = "/api/{type:plural}/{user:part}/{name:part}"
FILE = "/resolve/{revision:part}/{path:rest}"
LFS = "/{type:prefix}{user:part}/{name:part}.git/info/lfs"
STORED = "/{sha256:part}/{signature:part}/{filename:rest}"

ROUTES = [
    Route("/api/whoami-v2", repo_routes.whoami),
    Route("/api/validate-yaml", repo_routes.validate_yaml, methods=["POST"]),
    Route("/api/repos/create", repo_routes.create, methods=["POST"]),
    Route("/api/repos/delete", repo_routes.delete, methods=["DELETE"]),
    Route("/api/{type:plural}/{name:part}", repo_routes.without_namespace),
    Route(REPO, repo_routes.info),
    Route(REPO + "/revision/{revision:part}", repo_routes.info),
    Route(REPO + "/settings", repo_routes.settings, methods=["PUT"]),
    Route(REPO + "/auth-check", repo_routes.auth_check),
    Route(REPO + "/auth-check/write", repo_routes.auth_check_write),
    Route(REPO + "/tree/{revision:part}", history_routes.tree),
    Route(REPO + "/tree/{revision:part}/{path:rest}", history_routes.tree),
    Route(REPO + "/paths-info/{revision:part}", history_routes.paths_info, methods=["POST"]),
    Route(REPO + "/commits/{revision:part}", history_routes.commits),
    Route(REPO + "/refs", history_routes.refs),
    Route(REPO + "/branch/{revision:part}", history_routes.create_branch, methods=["POST"]),
    Route(REPO + "/branch/{revision:part}", history_routes.delete_branch, methods=["DELETE"]),
    Route(REPO + "/tag/{revision:part}", history_routes.create_tag, methods=["POST"]),
    Route(REPO + "/tag/{revision:part}", history_routes.delete_tag, methods=["DELETE"]),
    Route(REPO + "/preupload/{revision:part}", commit_routes.preupload, methods=["POST"]),
    Route(REPO + "/commit/{revision:part}", commit_routes.commit, methods=["POST"]),
    Route(LFS + "/objects/batch", transfer_routes.lfs_batch, methods=["POST"]),
    Route(LFS + "/verify", transfer_routes.lfs_verify, methods=["POST"]),
    Route("/uploads" + STORED, transfer_routes.upload, methods=["PUT"]),
    Route("/downloads" + STORED, transfer_routes.stored_object),
    Route("/{type:prefix}{user:part}/{name:part}" + FILE, transfer_routes.resolve),
    Route("/{name:part}" + FILE, repo_routes.without_namespace),
]


async def unknown(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"The loopback Hub does not offer {request.method} {request.scope['path']}"}, 404)


def application(hub: "LoopbackHub") -> ASGIApp:
    app = Starlette(routes=ROUTES, exception_handlers={RefusedError: answer, 404: unknown, 405: unknown})
    app.router.redirect_slashes = False
    app.state.hub = hub

    async def with_path_as_sent(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "path": scope["raw_path"].decode("ascii")}, receive, send)

    return with_path_as_sent
