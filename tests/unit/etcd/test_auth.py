"""How long a login may take, where there is only one endpoint to ask."""

from types import SimpleNamespace

import pytest

from conch.etcd import auth
from conch.etcd.call_errors import CallError
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints


class Server:
    """Takes so long for each login, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, endpoints: str, takes_s: float) -> None:
        self.login = auth.Login(Connection(parse_endpoints(endpoints), user="u", password="p"))
        self.takes_s = takes_s
        self.limits: list[float] = []
        self._now = 0.0
        monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: self._now))

    def _answer(self, user: str, password: str, limit_s: float) -> str:
        self.limits.append(limit_s)
        self._now += min(limit_s, self.takes_s)
        if limit_s < self.takes_s:
            raise TimeoutError
        return "token"

    def ask(self, timeout_s: float) -> None:
        """Call something that needs a token."""
        try:
            self.login.token(timeout_s, self._answer, lambda raised: CallError(None, type(raised).__name__))
        except TimeoutError:
            pass


def test_login_after_one_that_was_cut_short_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd computes each one to its end: many that are cut short and begun again would keep all from an answer."""
    server = Server(monkeypatch, "a:1", 20)
    for _ in range(4):
        server.ask(0.4)
    assert server.limits == [3, 12, 30]
    server.login.invalidate_token()
    server.ask(0.4)
    assert server.limits[3:] == [30]


def test_login_on_one_of_several_endpoints_takes_no_more_than_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another member may be faster."""
    server = Server(monkeypatch, "a:1,b:2", 20)
    for _ in range(3):
        server.ask(0.4)
    assert server.limits == [0.4, 0.4, 0.4]
