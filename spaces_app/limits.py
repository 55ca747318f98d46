"""Limits around the page: body size, nesting, rate, share of the queue, closed doors, security headers, health."""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException

MAX_BODY_BYTES = 64 * 1024
MAX_NESTING = 40
BURST = 20
PER_SECOND = 3.0
QUEUE = 32
# Requests of one client that may wait at a time, by lane of the queue: nobody fills it alone.
WAITING = {"model": 4, "light": 8}
KEPT_CLIENTS = 10_000

# Doors of the web framework that this page never uses: no file is read, taken or fetched here.
CLOSED = (
    "/file=", "/file/", "/proxy=", "/upload", "/stream/", "/component_server", "/process_recording", "/deep_link",
    "/custom_component", "/dev/", "/vibe-", "/undo-vibe-edit", "/run-history", "/runs", "/profiling",
    "/monitoring", "/login", "/token", "/user",
)  # fmt: skip

# The framework's pages need inline scripts and compile their templates; everything must come from here.
# Hugging Face shows a Space inside its own page.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co https://*.hf.space"
)
HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)

Scope = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[dict[str, Any]], Any]


class Rate:
    """Requests per client: a bucket that refills; the longest unseen client is forgotten first.

    Args:
        burst: Requests at once.
        per_second: Requests that come back each second.
        clock: Seconds.

    Example:
        >>> rate = Rate(burst=2, per_second=1, clock=lambda: 0.0)
        >>> [rate.allows("a") for _ in range(3)], rate.allows("b")
        ([True, True, False], True)
    """

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst, self.per_second, self._clock = burst, per_second, clock
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, client: str) -> bool:
        """Whether one more request of this client is served now."""
        now = self._clock()
        left, seen = self._clients.pop(client, (self.burst, now))
        left = min(self.burst, left + (now - seen) * self.per_second)
        self._clients[client] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._clients) > KEPT_CLIENTS:
            self._clients.popitem(last=False)
        return left >= 1


class Limits:
    """ASGI middleware around the whole app.

    Args:
        app: What it protects.
        healthy: Whether answers can be given; told at ``/health``.
        rate: Of requests that carry a body.
    """

    def __init__(self, app: Callable[..., Any], healthy: Callable[[], bool], rate: Rate) -> None:
        self.app, self.healthy, self.rate = app, healthy, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or refuse in a sentence."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sending = _with_headers(send)
        path = scope["path"].removeprefix("/gradio_api")
        if scope["path"] == "/health":
            ready = self.healthy()
            await _say(sending, 200 if ready else 503, "ready" if ready else "not ready")
        elif path.lower().startswith(CLOSED):
            await _say(sending, 403, "This door is closed; the page neither takes nor gives files.")
        elif scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, sending)
        elif not self.rate.allows(_client(scope)):
            await _say(sending, 429, "Too many requests; please wait a few seconds and try again.")
        else:
            await self._bounded(scope, receive, sending)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        body = b"" if not told.isdigit() or int(told) <= MAX_BODY_BYTES else None
        while body is not None:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                body = None
            elif not message.get("more_body", False):
                break
        if body is None:
            await _say(send, 413, f"The request is too large; at most {MAX_BODY_BYTES // 1024} kB are taken.")
        elif _nesting(body) > MAX_NESTING:
            await _say(send, 422, f"The request is nested too deeply; at most {MAX_NESTING} levels are taken.")
        else:
            await self.app(scope, _once(body, receive), send)


def share(queue: Any, waiting: Mapping[str, int]) -> None:
    """Let no client wait with more requests at a time than its share of a queue.

    Args:
        queue: A page's, before it is served.
        waiting: Requests of one client by lane, the queue's ``concurrency_id``; other lanes are not bounded.
    """
    push = queue.push

    async def pushed(body: Any, request: Any, username: str | None) -> Any:
        # Nothing is awaited between this count and the place in the queue: what comes at once is counted as well.
        work = queue.blocks.fns.get(body.fn_index)
        lane = "" if work is None else str(work.concurrency_id)
        if lane in waiting and lane in queue.event_queue_per_concurrency_id:
            client = _client(request.scope)
            queued = queue.event_queue_per_concurrency_id[lane].queue
            own = sum(_client(event.request.scope) == client for event in queued)
            if own >= waiting[lane]:
                raise HTTPException(429, f"{own} of your requests are waiting already; please try again after them.")
        return await push(body=body, request=request, username=username)

    queue.push = pushed


def _once(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then whatever comes."""
    given = False

    async def replay() -> dict[str, Any]:
        nonlocal given
        if given:
            return dict(await receive())
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _nesting(body: bytes) -> int:
    """The deepest nesting of brackets outside of texts: a bound, not a parse."""
    depth = deepest = 0
    in_text = escaped = False
    for sign in body:
        if in_text:
            in_text = escaped or sign != 0x22  # a quotation mark ends it
            escaped = sign == 0x5C and not escaped
        elif sign == 0x22:
            in_text = True
        elif sign in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in b"]}":
            depth -= 1
    return deepest


def _client(scope: Scope) -> str:
    """Who asks: the caller's address, on a Space as its proxy tells it."""
    if "SPACE_ID" in os.environ:
        told = next((value for name, value in scope["headers"] if name == b"x-forwarded-for"), b"")
        # The first entry can be made up by a client; the queue bounds everybody together all the same.
        first = told.split(b",")[0].strip()
        if first:
            return first[:64].decode("latin-1")
    client = scope.get("client")
    return client[0] if client else ""


def _with_headers(send: Send) -> Send:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sending


async def _say(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    kind = (b"content-type", b"application/json")
    headers = [kind, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
