"""The signature of a job: what it covers, and when it is none."""

import json
from typing import Any

import pytest

from conch.cron.job import (
    decode,
    parse,
)
from tests.support.jobs import FULL, KEY, LEAST, text_of


def test_signature_is_stable() -> None:
    """Over the order of fields, white space, escapes, and a way through another program."""
    job = decode("j", FULL).signed(KEY)
    assert job.is_signed
    assert job.is_signed_by(KEY)
    turned = dict(reversed(list(job.raw.items())))
    for value in (
        job.encode(),
        text_of(turned),
        json.dumps(turned, indent=2, sort_keys=True).encode(),
        json.dumps(turned, ensure_ascii=False, separators=(",", ":")).encode("utf-16"),
        parse("j", job.encode()).encode(),
    ):
        assert parse("j", value).is_signed_by(KEY)
    assert job.signed(KEY).encode() == job.encode()


OTHERS: dict[str, Any] = {
    "schedule": "H 4 * * mon-fri",
    "tz": "Europe/Paris",
    "cmd": ["sh", "-c", "echo é; exit 1"],
    "run_ttl": 90,
    "kill_after": 1,
    "overlap": "allow",
    "retries": 1,
    "retry_delay": 2,
    "start_deadline": 8,
    "sema": "a:b:4",
    "env": {"A": "x", "_B": "x=y"},
    "cwd": "/tmp",
    "paused": False,
    "added_by": "you@here",
    "added_at": "2026-01-01T00:00:01Z",
    "from_later": {"x": [1, None, "u"]},
}


@pytest.mark.parametrize("field", list(FULL))
def test_signature_covers_every_field(field: str) -> None:
    """Altered or removed, known or not: it is not signed any more."""
    raw = dict(decode("j", FULL).signed(KEY).raw)
    assert decode("j", {**raw, field: OTHERS[field]}).is_signed_by(KEY) is False
    if field not in LEAST:
        assert decode("j", {name: value for name, value in raw.items() if name != field}).is_signed_by(KEY) is False


def test_signature_is_of_one_name_one_key_and_no_field_more() -> None:
    """A signed job cannot be had under another name."""
    job = decode("j", FULL).signed(KEY)
    assert not decode("k", job.raw).is_signed_by(KEY)
    assert not decode("j", {**job.raw, "more": None}).is_signed_by(KEY)
    assert not job.is_signed_by(KEY + b"x")
    assert not job.changed(retries=1).is_signed
    assert not decode("j", FULL).is_signed_by(KEY)


@pytest.mark.parametrize(
    "sig", [None, "", True, 0, 1.5, [], {}, ["x"], "x", "0" * 64, "é" * 64, "\ud800", "A" * 64, "\0"]
)
def test_signature_that_is_none(sig: Any) -> None:
    """A bad one leaves the job readable: it is there, and by nobody."""
    job = parse("j", text_of({**FULL, "sig": sig}))
    assert job.is_signed
    assert job.is_signed_by(KEY) is False


def test_signature_in_capitals_or_longer_is_none() -> None:
    """Only the very text counts."""
    job = decode("j", FULL).signed(KEY)
    sig = job.raw["sig"]
    for other in (sig.upper(), sig + "0", sig[:-1], f" {sig}"):
        if other != sig:
            assert not decode("j", {**job.raw, "sig": other}).is_signed_by(KEY)
