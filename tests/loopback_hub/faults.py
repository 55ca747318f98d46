"""What can go wrong between a client and the Hub, on purpose; and the log of what happened."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass
class Record:
    """One request. `status` is None when the client got no answer; `fault` names what was done to it."""

    method: str
    path: str  # as sent, percent-encoded, without the query
    query: str
    status: int | None = None
    fault: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status}"


class Connection(H11Protocol):
    """uvicorn's HTTP connection, findable by the client's address so that a fault can cut it."""

    open: dict[tuple[str, int], asyncio.Transport] = {}  # noqa: RUF012

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.address = transport.get_extra_info("peername")
        self.open[self.address] = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.open.pop(self.address, None)
        super().connection_lost(error)


async def cut(scope: Scope, receive: Receive) -> None:
    Connection.open[tuple(scope["client"])].abort()
    await asyncio.sleep(0)  # let uvicorn notice, or it would try to answer


async def read_to_end(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


class Effect(Protocol):
    """What a fault does: called instead of the application, which it may call itself."""

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None: ...


@dataclass(frozen=True)
class Status:
    """Refuse with a status before anything is done; `retry_after` in seconds."""

    status: int
    retry_after: int | None = None

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await read_to_end(receive)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        await JSONResponse({"error": "injected fault"}, self.status, headers)(scope, receive, send)


@dataclass(frozen=True)
class DropBefore:
    """Cut the connection before the request is handled: nothing was done."""

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await cut(scope, receive)


@dataclass(frozen=True)
class DropAfter:
    """Handle the request, then cut the connection: it was done, and the client does not know."""

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def nowhere(message: Message) -> None:
            pass

        await app(scope, receive, nowhere)
        await cut(scope, receive)


@dataclass(frozen=True)
class Truncate:
    """Send the headers and the first `keep` bytes of the body, then close."""

    keep: int

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        left = self.keep

        async def cut_short(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.body":
                message = {**message, "body": message.get("body", b"")[:left], "more_body": True}
                left -= len(message["body"])
            await send(message)

        await app(scope, receive, cut_short)  # uvicorn closes the connection of an answer without an end


@dataclass(frozen=True)
class FlipByte:
    """Invert the byte at `offset` of the body (counted in what is sent, so within a range for ranges)."""

    offset: int = 0

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        seen = 0

        async def damaged(message: Message) -> None:
            nonlocal seen
            if message["type"] == "http.response.body":
                body = bytearray(message.get("body", b""))
                if 0 <= self.offset - seen < len(body):
                    body[self.offset - seen] ^= 0xFF
                seen += len(body)
                message = {**message, "body": bytes(body)}
            await send(message)

        await app(scope, receive, damaged)


@dataclass(frozen=True)
class Meanwhile:
    """Do something else first, such as a commit of somebody else's, then handle the request."""

    action: Callable[[], object]

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(self.action)
        await app(scope, receive, send)


@dataclass
class Fault:
    """An effect and the requests it is for; `seen` counts the matching ones, `hits` those it was done to."""

    effect: Effect
    method: str
    path: str
    nth: int
    times: int | None
    seen: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)

    def takes(self, record: Record) -> bool:
        if not (re.fullmatch(self.method, record.method) and re.search(self.path, record.path)):
            return False
        self.seen += 1
        hit = self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)
        self.hits += hit
        return hit


class Faults:
    """The faults in force."""

    def __init__(self) -> None:
        self.active: list[Fault] = []

    def add(self, effect: Effect, *, method: str = ".*", path: str = "", nth: int = 1, times: int | None = 1) -> Fault:
        """Do something to the nth matching request.

        Args:
            effect: `Status`, `DropBefore`, `DropAfter`, `Truncate`, `FlipByte` or `Meanwhile`.
            method: regular expression for the whole method, such as "GET|HEAD".
            path: regular expression searched for in the path as sent, without the query. Large files travel under
                `/uploads/` and `/downloads/`, commits under `/commit/`.
            nth: the first matching request from now on that is hit, counted from 1.
            times: how many in a row are hit; None for all that follow, a Hub that stays away.

        Returns:
            The fault; its `hits` says how often it has struck.
        """
        if nth < 1:
            raise ValueError(f"nth is {nth}; requests are counted from 1")
        fault = Fault(effect, method, path, nth, times)
        self.active.append(fault)
        return fault

    def clear(self) -> None:
        self.active.clear()


class Watched:
    """The application with its log in front of it, and the faults between."""

    def __init__(self, app: ASGIApp, faults: Faults, log: list[Record]):
        self.app, self.faults, self.log = app, faults, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = Record(scope["method"], scope["raw_path"].decode("ascii"), scope["query_string"].decode())
        self.log.append(record)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        app = self.app
        for fault in self.faults.active:
            if fault.takes(record):
                record.fault = type(fault.effect).__name__
                app = with_effect(fault.effect, app)
        await app(scope, receive, noted)


def with_effect(effect: Effect, app: ASGIApp) -> ASGIApp:
    async def affected(scope: Scope, receive: Receive, send: Send) -> None:
        await effect(app, scope, receive, send)

    return affected
