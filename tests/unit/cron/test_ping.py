"""Pings: their URLs, their order, their repetitions, and that none is lost in silence."""

import threading
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from conch.cron.ping import MOST_WAITING, TRIES, Ping, Pinger
from tests.support.conch import wait_for


def ping(run: str = "r", end: str = "", url: str = "http://h/p", body: str = "") -> Ping:
    return Ping(run, "j", "2027-01-15T08:00:00Z", url, end, body)


@pytest.mark.parametrize(
    ("url", "end", "path", "query"),
    [
        ("https://hc-ping.com/UUID", "", "/UUID", {}),
        ("https://hc-ping.com/UUID", "start", "/UUID/start", {}),
        ("https://hc-ping.com/KEY/slug/?create=1&a=b%20c", "fail", "/KEY/slug/fail", {"create": ["1"], "a": ["b c"]}),
        ("http://h:8000", "start", "/start", {}),
        ("http://h", "", "/", {}),
        ("http://h/x#f", "fail", "/x/fail", {}),
    ],
)
def test_address(url: str, end: str, path: str, query: dict[str, list[str]]) -> None:
    """The kind belongs to the path, before the query of the job's URL, which is kept."""
    parts = urlsplit(ping(end=end, url=url).address)
    assert (parts.scheme, parts.netloc, parts.fragment) == (*urlsplit(url)[:2], "")
    found = parse_qs(parts.query)
    assert str(uuid.UUID(found.pop("rid")[0])) in parts.query
    assert (parts.path, found) == (path, query)


def test_run_id_is_that_of_the_run() -> None:
    """The same at its begin and at its end, another for another run."""
    ids = {parse_qs(urlsplit(ping(run, end).address).query)["rid"][0] for run in "ab" for end in ("start", "fail")}
    assert len(ids) == 2


class Bed:
    """A pinger whose server is the test."""

    def __init__(self, send: Callable[[str, bytes, float], str]) -> None:
        self.done: list[tuple[str, str, str, str]] = []
        self.pauses: list[float] = []
        self.pinger = Pinger(self._on_done, send, pause=self.pauses.append)

    def _on_done(self, done: Ping, outcome: str, why: str) -> None:
        self.done.append((done.run, done.end, outcome, why))

    def put(self, *pings: Ping) -> "Bed":
        for one in pings:
            self.pinger.put(one)
        return self

    def rest(self) -> "Bed":
        assert self.pinger.wait(20.0) == 0
        wait_for(lambda: not threads(), "threads with nothing to do have ended")
        return self


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "ping"]


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [([""], "ok"), (["HTTP 500", ""], "ok"), (["a", "b", ""], "ok"), (["a", "b", "c"], "failed")],
)
def test_three_tries_with_pauses_that_grow(answers: list[str], outcome: str) -> None:
    left = list(answers)
    bed = Bed(lambda *_: left.pop(0)).put(ping()).rest()
    assert bed.done == [("r", "", outcome, answers[-1])]
    assert not left
    assert len(bed.pauses) == len(answers) - 1 < TRIES
    assert all(0.5 <= pause_s <= 2.0 for pause_s in bed.pauses)


def test_pings_of_one_run_stay_in_order() -> None:
    """The end waits for the begin, however long that is repeated; runs do not wait for each other."""
    gate, sent = threading.Event(), []

    def send(url: str, body: bytes, limit_s: float) -> str:
        if "/slow/start" in url:
            assert gate.wait(20)
        sent.append(urlsplit(url).path)
        return ""

    bed = Bed(send).put(ping("a", "start", "http://h/slow"), ping("a", "fail", "http://h/slow"), ping("b"))
    wait_for(lambda: sent == ["/p"], "the other run's ping")
    gate.set()
    bed.rest()
    assert sent == ["/p", "/slow/start", "/slow/fail"]


def test_storm_of_pings() -> None:
    """Four threads at most, and what a thousand wait before is dropped at once: counted, not forgotten."""
    gate, most = threading.Event(), []

    def send(*_: Any) -> str:
        most.append(len(threads()))
        assert gate.wait(20)
        return ""

    bed = Bed(send).put(*(ping(str(number)) for number in range(MOST_WAITING + 7)))
    assert [outcome for _, _, outcome, _ in bed.done] == ["dropped"] * 7
    gate.set()
    bed.rest()
    assert max(most) <= 4
    assert len(bed.done) == MOST_WAITING + 7


def test_end_waits_a_while_for_what_is_under_way() -> None:
    gate = threading.Event()
    bed = Bed(lambda *_: "" if gate.wait(20) else "late").put(ping(), ping("b"))
    assert bed.pinger.wait(0.05) == 2
    gate.set()
    bed.rest()


def test_defect_shows_no_url_and_ends_no_thread() -> None:
    def send(url: str, *_: Any) -> str:
        raise ValueError(f"bad {url}")

    bed = Bed(send).put(ping(url="http://h/secret"), ping("b")).rest()
    assert {(outcome, why) for _, _, outcome, why in bed.done} == {("failed", "ValueError")}
    assert len(bed.done) == 2


def test_system_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next ping tries again for both."""
    bed = Bed(lambda *_: "")

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        bed.put(ping())
    bed.put(ping("b")).rest()
    assert [run for run, _, _, _ in bed.done] == ["r", "b"]
