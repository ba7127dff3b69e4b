"""The endpoints, and the checks that a request must pass to reach one."""

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
_MAX_DEFECTS = 100

Log = Callable[..., None]


class PiecewiseResponse(Response):
    """A response sent piece by piece, as fast as the client reads it."""

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = bytes(self.body)
        for at in range(0, len(body) or 1, _PIECE_BYTES):
            more = at + _PIECE_BYTES < len(body)
            await send({"type": "http.response.body", "body": body[at : at + _PIECE_BYTES], "more_body": more})


def _line(status: int, text: str, **headers: str) -> PiecewiseResponse:
    return PiecewiseResponse(text + "\n", status, headers, media_type=_TEXT)


class Gate:
    """Lets through only plain reads that address this host; notifies the client's connection when a response begins."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it to the application. `scope["state"]["client"]` is the connection."""

        async def begin(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["state"]["client"].begin_response()
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, begin)

    def _refusal(self, scope: Scope) -> PiecewiseResponse | None:
        """Return the response that refuses the request; None if it may pass."""
        if scope["http_version"] not in ("1.0", "1.1"):
            return _line(505, "only HTTP/1.0 and HTTP/1.1")
        if scope["method"] not in _METHODS:
            return _line(405, "only GET and HEAD", allow=", ".join(_METHODS))
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers
        ):
            return _line(413, "requests must not have a body")
        # HTTP/1.0 may omit it, but browsers always send it, and only browsers can be led here by a foreign page
        authorities = [value.decode("latin-1").strip() for name, value in headers if name == b"host"]
        target = scope["raw_path"].decode("latin-1")
        if not target.startswith("/"):
            absolute = _ABSOLUTE.fullmatch(target)
            if absolute is None:
                return _line(400, "the request target is not a path")
            authorities.append(absolute[1])
            scope["path"] = absolute[2] or "/"
        for authority in authorities:
            host = host_of(authority)
            if host is None:
                return _line(400, "the Host header is malformed")
            if host not in self._hosts:
                return _line(421, f"{host[:100]!r} is not a name of this host: see --status-host")
        return None


def build(status: Status, hosts: Hosts, log: Log) -> ASGIApp:
    """Build the application: JSON at /cron, /elect and /sema, health at /healthz, metrics at /metrics."""
    logged: set[str] = set()

    async def healthz(_: Request) -> Response:
        why = await status.health()
        return _line(503 if why else 200, why or "ok")

    async def metrics(_: Request) -> Response:
        return PiecewiseResponse(await status.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def data(request: Request) -> Response:
        return PiecewiseResponse(await status.data(request.scope["path"][1:]), media_type="application/json")

    async def unavailable(_: Request, error: Exception) -> Response:
        return _line(503, str(error))

    async def unknown(_: Request, __: Exception) -> Response:
        return _line(404, f"not found: {' '.join(paths)}")

    async def defect(request: Request, error: Exception) -> Response:
        text = f"a defect of conch ({type(error).__name__}: {error}, at {request.scope['path']}): please report it"
        if text not in logged and len(logged) < _MAX_DEFECTS:
            logged.add(text)
            log("error", "status-failed", msg=text)
        return _line(500, "a defect of conch: see its log")

    routes: list[Any] = [Route(f"/{name}", data) for name in ("cron", "elect", "sema")]
    routes += [Route("/healthz", healthz), Route("/metrics", metrics)]
    paths = [route.path for route in routes]
    handlers: dict[Any, Any] = dict.fromkeys((ConchError, TimeoutError, Busy), unavailable)
    app = Starlette(routes=routes, exception_handlers={**handlers, 404: unknown, Exception: defect})
    app.router.redirect_slashes = False
    return Gate(app, hosts)
