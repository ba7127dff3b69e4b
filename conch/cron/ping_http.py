"""One HTTP request with a limit on all of it. Imported in a thread of its own, with the first ping of a job."""

import http.client
import socket
import ssl
import threading
from urllib.parse import unquote, urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError
from urllib3.util import make_headers

from conch import __version__


def post(url: str, body: bytes, limit_s: float) -> str:
    """POST the body; return why that failed, without the secret parts of the URL, or nothing if the answer was 2xx.

    Follows no redirect: a URL with a secret goes to the host that it names, and to no other. TLS is verified.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        connection: HTTPConnection = HTTPSConnection(
            host, port or 443, timeout=limit_s, ssl_context=ssl.create_default_context()
        )
    else:
        connection = HTTPConnection(host, port or 80, timeout=limit_s)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = {"User-Agent": f"conch/{__version__}", "Content-Type": "text/plain; charset=utf-8"}
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers |= {name.title(): value for name, value in make_headers(basic_auth=secret).items()}
    late = threading.Event()

    def stop() -> None:
        # the limits of the library are for each read: a server that sends a byte a second would never reach them
        late.set()
        sock = connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed already

    timer = threading.Timer(limit_s, stop)
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", target, body=body, headers=headers, preload_content=False)
        status = connection.getresponse().status
    except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
        return f"no answer within {limit_s:g} s" if late.is_set() else _why(error, limit_s)
    finally:
        timer.cancel()
        connection.close()
    if 300 <= status < 400:
        return f"HTTP {status}: redirects are not followed"
    return "" if 200 <= status < 300 else f"HTTP {status}"


def _why(error: Exception, limit_s: float) -> str:
    """Return the reason in words that never have the path or the query of the URL in them."""
    cause = error.__cause__ or error.__context__
    for found in (error, cause):
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"TLS: {found.verify_message}"
        if isinstance(found, ssl.SSLError):
            return f"TLS: {found.reason}"
    if isinstance(error, NameResolutionError):
        return "the name of its host cannot be resolved"
    if isinstance(error, TimeoutError) or isinstance(cause, TimeoutError):
        return f"no answer within {limit_s:g} s"
    for found in (error, cause):
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
    if isinstance(error, NewConnectionError):
        return "cannot connect"
    if isinstance(error, ConnectionError):
        return "the connection was closed before the answer"
    return "its answer is not HTTP" if isinstance(error, http.client.HTTPException) else type(error).__name__
