"""The endpoints, and what a request must be like to reach one."""

import re
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conch.cron.status.hosts import Hosts, host_of
from conch.cron.status.views import Busy, Status
from conch.errors import ConchError

_PIECE_BYTES = 64 * 1024
_TEXT = "text/plain; charset=utf-8"
_METHODS = ("GET", "HEAD")
_ABSOLUTE = re.compile(r"(?i:https?)://([^/?#]*)([^?#]*)")
_MOST_DEFECTS = 100

Tell = Callable[..., None]


class Answer(Response):
    """A body that is handed over piece by piece, as fast as the client takes it."""

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = bytes(self.body)
        for at in range(0, len(body) or 1, _PIECE_BYTES):
            more = at + _PIECE_BYTES < len(body)
            await send({"type": "http.response.body", "body": body[at : at + _PIECE_BYTES], "more_body": more})


def _line(status: int, text: str, **headers: str) -> Answer:
    return Answer(text + "\n", status, headers, media_type=_TEXT)


class Gate:
    """Lets only plain reads by a name of this host through; tells the client's connection when an answer begins."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on. `scope["state"]["client"]` is the connection."""

        async def begin(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["state"]["client"].begin_answer()
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, begin)

    def _refusal(self, scope: Scope) -> Answer | None:
        if scope["http_version"] not in ("1.0", "1.1"):
            return _line(505, "only HTTP/1.0 and HTTP/1.1")
        if scope["method"] not in _METHODS:
            return _line(405, "only GET and HEAD", allow=", ".join(_METHODS))
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers
        ):
            return _line(413, "no request has a body here")
        # HTTP/1.0 may leave it out: browsers never do, and only they can be led here by a foreign page
        asked = [value.decode("latin-1").strip() for name, value in headers if name == b"host"]
        target = scope["raw_path"].decode("latin-1")
        if not target.startswith("/"):
            absolute = _ABSOLUTE.fullmatch(target)
            if absolute is None:
                return _line(400, "the target is no path")
            asked.append(absolute[1])
            scope["path"] = absolute[2] or "/"
        for authority in asked:
            host = host_of(authority)
            if host is None:
                return _line(400, "the Host header is malformed")
            if host not in self._hosts:
                return _line(421, f"{host[:100]!r} is no name of this host that it answers to: see --status-host")
        return None


def build(status: Status, hosts: Hosts, tell: Tell) -> ASGIApp:
    """The application: JSON at /cron, /elect and /sema, health at /healthz, metrics at /metrics."""
    told: set[str] = set()

    async def healthz(_: Request) -> Response:
        why = await status.health()
        return _line(503 if why else 200, why or "ok")

    async def metrics(_: Request) -> Response:
        return Answer(await status.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def data(request: Request) -> Response:
        return Answer(await status.data(request.scope["path"][1:]), media_type="application/json")

    async def unavailable(_: Request, error: Exception) -> Response:
        return _line(503, str(error))

    async def unknown(_: Request, __: Exception) -> Response:
        return _line(404, f"not found: {' '.join(paths)}")

    async def defect(request: Request, error: Exception) -> Response:
        text = f"a defect of conch ({type(error).__name__}: {error}, at {request.scope['path']}): please report it"
        if text not in told and len(told) < _MOST_DEFECTS:
            told.add(text)
            tell("error", "status-failed", msg=text)
        return _line(500, "a defect of conch: see its log")

    routes: list[Any] = [Route(f"/{name}", data) for name in ("cron", "elect", "sema")]
    routes += [Route("/healthz", healthz), Route("/metrics", metrics)]
    paths = [route.path for route in routes]
    handlers: dict[Any, Any] = dict.fromkeys((ConchError, TimeoutError, Busy), unavailable)
    app = Starlette(routes=routes, exception_handlers={**handlers, 404: unknown, Exception: defect})
    app.router.redirect_slashes = False
    return Gate(app, hosts)
