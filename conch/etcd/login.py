"""Our token in etcd's authentication: got once, kept across connections, got anew when etcd no longer takes it."""

import threading
from typing import Any

import grpc

from conch.config import Connection
from conch.etcd import protobuf

protobuf.install()

from etcd3 import etcdrpc  # noqa: E402 - after its protobuf modules can be loaded

# A login is slow by design (bcrypt). Cut short and begun again by many at once, it would never be done.
_ALONE_S = 3.0
_NOT_ENABLED = "authentication is not enabled"
_TOO_OLD = ("revision of auth store is old", "revision in header is old")


class Login:
    """One login at a time for all calls of a store. The password is never shown."""

    def __init__(self, connection: Connection) -> None:
        self._user = connection.user
        self._password = connection.password
        self._alone = len(connection.endpoints) == 1
        self._members = len(connection.endpoints)
        self._lock = threading.Lock()
        self._token: str | None = None
        self._refused_by: set[str] = set()
        self._not_enabled = False

    def metadata(self, client: Any, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """What to send with a call so that etcd knows us; logs in over this client if there is no token yet.

        Raises `grpc.RpcError`, or `ValueError` if another call's login took all the time.
        """
        if self._user is None or self._not_enabled:
            return ()
        token = self._token
        if token is None:
            if not self._lock.acquire(timeout=timeout_s):
                raise ValueError("no login within the time")
            try:
                token = self._token or self._authenticate(
                    client, max(timeout_s, _ALONE_S) if self._alone else timeout_s
                )
                self._token = token
            finally:
                self._lock.release()
        return (("token", token),) if token else ()

    def _authenticate(self, client: Any, timeout_s: float) -> str | None:
        request = etcdrpc.AuthenticateRequest(name=self._user, password=self._password)
        try:
            return str(etcdrpc.AuthStub(client.channel).Authenticate(request, timeout_s).token)
        except grpc.RpcError as error:
            if _NOT_ENABLED not in str(error.details()):
                raise
            self._not_enabled = True  # as etcdctl does: a user is no harm where nobody asks for one
            return None

    def forget(self) -> None:
        """Log in anew before the next call."""
        self._token = None
        self._refused_by.clear()

    def heed(self, error: grpc.RpcError, endpoint: str) -> bool:
        """Judge a call's failure: whether a new login may help. A token that one member has lost, others still know."""
        if self._user is None:
            return False
        details = str(error.details() or "")
        if any(sign in details for sign in _TOO_OLD):
            self.forget()
        elif "user name is empty" in details and self._not_enabled:
            self._not_enabled = False
        elif error.code() is grpc.StatusCode.UNAUTHENTICATED:
            self._refused_by.add(endpoint)
            if len(self._refused_by) >= self._members:
                self.forget()
        else:
            return False
        return True
