"""Our token in etcd's authentication: got once, kept across connections, got anew when etcd no longer takes it."""

import os
import threading
import time
from collections.abc import Callable

from conch.etcd.connection import Connection, read_password
from conch.etcd.error_codes import BAD_LOGIN, NOT_ENABLED, TOO_OLD, UNAUTHENTICATED, USER_EMPTY, WRONG_PASSWORD
from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conch.etcd.call_errors import CallError

# A login is slow by design (bcrypt). Cut short and begun again by many at once, it would never be done.
_ALONE_S = 3.0


class Login:
    """One login at a time for all calls of a store. The password is never shown.

    A password that etcd refuses is read again from its file, and tried once more if it is another.
    """

    def __init__(self, connection: Connection) -> None:
        self._user = connection.user
        self._password = connection.password or ""
        self._password_file = connection.password_file
        self._alone = len(connection.endpoints) == 1
        self._members = len(connection.endpoints)
        self._lock = threading.Lock()
        self._token: str | None = None
        self._refused_by: set[str] = set()
        self._not_enabled = False

    def token(
        self,
        timeout_s: float,
        authenticate: Callable[[str, str, float], str],
        call_error: "Callable[[Exception], CallError]",
    ) -> str | None:
        """What to send with a call so that etcd knows us; logs in if there is no token yet.

        Raises what `authenticate` does, or `ValueError` if another call's login took all the time.
        """
        if self._user is None or self._not_enabled:
            return None
        if self._token is None:
            if not self._lock.acquire(timeout=timeout_s):
                raise ValueError("no login within the time")
            try:
                if self._token is None:
                    limit_s = max(timeout_s, _ALONE_S) if self._alone else timeout_s
                    self._token = self._log_in(self._user, limit_s, authenticate, call_error)
            except Exception as raised:
                refusal = call_error(raised)
                if not NOT_ENABLED.matches(refusal.code, refusal.details):
                    raise
                self._not_enabled = True  # as etcdctl does: a user is no harm where nobody asks for one
            finally:
                self._lock.release()
        return self._token

    def _log_in(
        self,
        user: str,
        timeout_s: float,
        authenticate: Callable[[str, str, float], str],
        call_error: "Callable[[Exception], CallError]",
    ) -> str:
        until = time.monotonic() + timeout_s
        try:
            return authenticate(user, self._password, timeout_s)
        except Exception as raised:
            refusal = call_error(raised)
            if not WRONG_PASSWORD.matches(refusal.code, refusal.details) or not self._password_changed():
                raise
        return authenticate(user, self._password, max(0.001, until - time.monotonic()))

    def _password_changed(self) -> bool:
        """Read the password again; a file that is not there just now, or empty, is being rewritten."""
        path = self._password_file
        if path is None or not os.path.isfile(path):  # a pipe has said what it had to say, and may block us
            return False
        try:
            found = read_password(path)
        except (OSError, UnicodeDecodeError):
            return False
        if not found or found == self._password:
            return False
        self._password = found
        return True

    def renew(
        self,
        path: str,
        timeout_s: float,
        authenticate: Callable[[str, str, float], str],
        call_error: "Callable[[Exception], CallError]",
    ) -> str:
        """Read the password's file, and go over to what is there if etcd takes it; else say why the old one stays."""
        try:
            found = read_password(path)
        except (OSError, UnicodeDecodeError) as error:
            return f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        if not found:
            return f"{path} is empty"
        if found == self._password or self._user is None:
            return ""
        if not self._lock.acquire(timeout=timeout_s):
            return "no login within the time"
        try:
            token = authenticate(self._user, found, timeout_s)
        except Exception as raised:
            refusal = call_error(raised)
            if any(known.matches(refusal.code, refusal.details) for known in BAD_LOGIN):
                return f"etcd refuses what is in {path}"
            if not NOT_ENABLED.matches(refusal.code, refusal.details):
                return "cannot log in: " + refusal.details.partition("\n")[0]
            self._password = found
        else:
            self._password, self._token = found, token
            self._refused_by.clear()
        finally:
            self._lock.release()
        return ""

    def invalidate_token(self) -> None:
        """Log in anew before the next call."""
        self._token = None
        self._not_enabled = False  # it may have been switched on
        self._refused_by.clear()

    def handle_auth_error(self, code: int, details: str, endpoint: str) -> bool:
        """Judge a call's failure: whether a new login may help. A token that one member has lost, others still know."""
        if self._user is None:
            return False
        if any(known.matches(code, details) for known in TOO_OLD):
            self.invalidate_token()
        elif USER_EMPTY.matches(code, details):
            self._not_enabled = False  # it went without a token, as long as nobody asked for one
        elif code == UNAUTHENTICATED:
            self._refused_by.add(endpoint)
            if len(self._refused_by) >= self._members:
                self.invalidate_token()
        else:
            return False
        return True
