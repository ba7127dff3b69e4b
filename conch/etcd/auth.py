"""Our token for etcd's authentication: kept across connections, replaced when etcd no longer accepts it."""

import os
import time

from conch.enums import Enum
from conch.errors import checked
from conch.etcd.connection import Connection, read_password
from conch.etcd.error_codes import BAD_LOGIN, NOT_ENABLED, TOO_OLD, UNAUTHENTICATED, USER_EMPTY, WRONG_PASSWORD
from conch.static_typing import TYPE_CHECKING, Callable
from conch.threads import Lock

if TYPE_CHECKING:
    from conch.etcd.call_errors import CallError

# The least time for a login where there is no other endpoint to ask. A login is slow by design (bcrypt), and etcd
# finishes each one, also if nobody waits any more. If many cut theirs short and began again, none would ever be
# answered: so the next one after one that was cut short may take longer.
_SINGLE_ENDPOINT_S, _LONGER, _LONGEST_S = 3.0, 4, 30.0


class LoginState(Enum):
    """What a call sends."""

    LOGGED_OUT = "logged out"  # it has to log in first
    LOGGED_IN = "logged in"  # the token
    NOT_NEEDED = "not needed"  # no token: etcd's authentication is off


_NEXT = {
    LoginState.LOGGED_OUT: frozenset(LoginState),
    LoginState.LOGGED_IN: frozenset({LoginState.LOGGED_OUT, LoginState.LOGGED_IN}),  # by another password
    LoginState.NOT_NEEDED: frozenset({LoginState.LOGGED_OUT, LoginState.LOGGED_IN}),
}


class Login:
    """Logs in for all calls of a store, one login at a time. The password is never shown.

    A password that etcd refuses is read again from its file, and tried once more if it has changed.
    """

    def __init__(self, connection: Connection) -> None:
        self._user = connection.user
        self._password = connection.password or ""
        self._password_file = connection.password_file
        self._members = len(connection.endpoints)
        self._least_s = _SINGLE_ENDPOINT_S if self._members == 1 else 0.0
        self._lock = Lock()
        # One value: calls read it without the lock. Only who has the lock logs in; anybody may log out.
        self._current: tuple[LoginState, str | None] = (LoginState.LOGGED_OUT, None)
        self._refused_by: set[str] = set()  # members that do not know the token

    @property
    def state(self) -> LoginState:
        """Whether there is a token, and whether one is needed."""
        return self._current[0]

    def _enter(self, state: LoginState, token: str | None = None) -> None:
        self._current = checked(_NEXT, self.state, state), token
        self._refused_by.clear()

    def token(
        self,
        timeout_s: float,
        authenticate: Callable[[str, str, float], str],
        call_error: "Callable[[Exception], CallError]",
    ) -> str | None:
        """Return the token to send with a call; logs in if there is none yet. None: no user, or none is needed.

        Raises the errors of `authenticate`, or `ValueError` if another call's login took all the time.
        """
        state, token = self._current
        if self._user is None or state is not LoginState.LOGGED_OUT:
            return token
        if not self._lock.acquire(timeout=timeout_s):
            raise ValueError("no login within the time")
        try:
            state, token = self._current
            if state is LoginState.LOGGED_OUT:
                token = self._log_in(self._user, timeout_s, authenticate, call_error)
                self._enter(LoginState.LOGGED_IN, token)
        except Exception as raised:
            error = call_error(raised)
            if not NOT_ENABLED.matches(error.code, error.details):
                raise
            self._enter(LoginState.NOT_NEEDED)  # as etcdctl does: a user is harmless where authentication is off
        finally:
            self._lock.release()
        return token

    def _log_in(
        self,
        user: str,
        timeout_s: float,
        authenticate: Callable[[str, str, float], str],
        call_error: "Callable[[Exception], CallError]",
    ) -> str:
        timeout_s = max(timeout_s, self._least_s)
        until = time.monotonic() + timeout_s
        try:
            return authenticate(user, self._password, timeout_s)
        except Exception as raised:
            if time.monotonic() > until - timeout_s / 10:
                self._least_s = min(self._least_s * _LONGER, _LONGEST_S)
            error = call_error(raised)
            if not WRONG_PASSWORD.matches(error.code, error.details) or not self._password_changed():
                raise
        return authenticate(user, self._password, max(0.001, until - time.monotonic()))

    def _password_changed(self) -> bool:
        """Read the password again and return whether it changed; a missing or empty file is being rewritten."""
        path = self._password_file
        if path is None or not os.path.isfile(path):  # a pipe cannot be read again, and may block us
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
        """Read the password's file and use its password if etcd accepts it; else return why the old one stays."""
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
            self._password = found
            self._enter(LoginState.LOGGED_IN, token)
        finally:
            self._lock.release()
        return ""

    def invalidate_token(self) -> None:
        """Have the next call log in again."""
        self._enter(LoginState.LOGGED_OUT)  # also if none was needed: authentication may have been switched on

    def handle_auth_error(self, code: int, details: str, endpoint: str) -> bool:
        """Return whether a new login may help after this error. Other members may know a token that one has lost."""
        if self._user is None:
            return False
        if any(known.matches(code, details) for known in TOO_OLD):
            self.invalidate_token()
        elif USER_EMPTY.matches(code, details):
            if self.state is LoginState.NOT_NEEDED:
                self._enter(LoginState.LOGGED_OUT)  # authentication was off; it has been switched on
        elif code == UNAUTHENTICATED:
            self._refused_by.add(endpoint)
            if len(self._refused_by) >= self._members:
                self.invalidate_token()
        else:
            return False
        return True
