"""Refusals: an HTTP status, the Hub's own error code and a message, raised anywhere and answered as the Hub does."""

from starlette.requests import Request
from starlette.responses import JSONResponse


class Refusal(Exception):
    """A request that the Hub refuses.

    The clients choose their exception by `code` (the `X-Error-Code` header), so it has to be one they know:
    RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **body: object):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


def answer(request: Request, refusal: Refusal) -> JSONResponse:
    headers = {"X-Error-Message": " ".join(refusal.message.split()).encode("ascii", "replace").decode()}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return JSONResponse({"error": refusal.message, **refusal.body}, refusal.status, headers)


def no_repo() -> Refusal:
    return Refusal(404, "Repository not found", "RepoNotFound")


def no_revision(revision: str) -> Refusal:
    return Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def no_entry(path: str) -> Refusal:
    return Refusal(404, f"Entry not found: {path}", "EntryNotFound")
