"""Jobs as bytes in etcd: what is refused, and what is kept."""

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest

from conch.cron import zones
from conch.cron.job import LARGEST_BYTES, Job, UnreadableJob, decode, define, parse
from conch.cron.job_fields import LONGEST_S, parse_semaphore, parse_variable
from conch.errors import BadInput
from conch.times import rfc3339
from tests.support.jobs import FULL, KEY, LEAST, TICK, text_of
from tests.support.zones import Zones

BAD: list[tuple[Any, str]] = [
    (None, "object"),
    ([], "object"),
    ("job", "object"),
    (5, "object"),
    ({}, "schedule"),
    ({"schedule": "* * * * *"}, "cmd"),
    ({"cmd": ["true"]}, "schedule"),
    ({**LEAST, "schedule": None}, "schedule"),
    ({**LEAST, "schedule": 5}, "schedule"),
    ({**LEAST, "schedule": ""}, "schedule"),
    ({**LEAST, "schedule": "junk"}, "schedule"),
    ({**LEAST, "schedule": "0 0 30 2 *"}, "never"),
    ({**LEAST, "schedule": "@every 0.5s"}, "every"),
    ({**LEAST, "schedule": "\ud800 * * * *"}, "schedule"),
    ({**LEAST, "cmd": None}, "cmd"),
    ({**LEAST, "cmd": "true"}, "cmd"),
    ({**LEAST, "cmd": []}, "cmd"),
    ({**LEAST, "cmd": [""]}, "cmd"),
    ({**LEAST, "cmd": ["true", 5]}, "cmd"),
    ({**LEAST, "cmd": ["tr\0ue"]}, "cmd"),
    ({**LEAST, "cmd": ["true", "a\0"]}, "cmd"),
    ({**LEAST, "cmd": {"true": "x"}}, "cmd"),
    ({**LEAST, "tz": None}, "tz"),
    ({**LEAST, "tz": ""}, "zone"),
    ({**LEAST, "tz": "Nowhere/Land"}, "Nowhere/Land"),
    ({**LEAST, "tz": "../../etc/passwd"}, "zone"),
    ({**LEAST, "tz": ["UTC"]}, "tz"),
    ({**LEAST, "run_ttl": None}, "run_ttl"),
    ({**LEAST, "run_ttl": 0}, "run_ttl"),
    ({**LEAST, "run_ttl": -1}, "run_ttl"),
    ({**LEAST, "run_ttl": "10m"}, "run_ttl"),
    ({**LEAST, "run_ttl": True}, "run_ttl"),
    ({**LEAST, "run_ttl": 86400.001}, "run_ttl"),
    ({**LEAST, "run_ttl": math.nan}, "run_ttl"),
    ({**LEAST, "run_ttl": math.inf}, "run_ttl"),
    ({**LEAST, "run_ttl": 10**400}, "run_ttl"),
    ({**LEAST, "kill_after": -0.1}, "kill_after"),
    ({**LEAST, "kill_after": "5s"}, "kill_after"),
    ({**LEAST, "kill_after": 86401}, "kill_after"),
    ({**LEAST, "kill_after": 10**400}, "kill_after"),
    ({**LEAST, "overlap": "sometimes"}, "overlap"),
    ({**LEAST, "overlap": "Forbid"}, "overlap"),
    ({**LEAST, "overlap": None}, "overlap"),
    ({**LEAST, "retries": -1}, "retries"),
    ({**LEAST, "retries": 1001}, "retries"),
    ({**LEAST, "retries": 1.5}, "retries"),
    ({**LEAST, "retries": "1"}, "retries"),
    ({**LEAST, "retries": True}, "retries"),
    ({**LEAST, "retries": 10**400}, "retries"),
    ({**LEAST, "retry_delay": -1}, "retry_delay"),
    ({**LEAST, "retry_delay": []}, "retry_delay"),
    ({**LEAST, "retry_delay": 10**400}, "retry_delay"),
    ({**LEAST, "start_deadline": 0}, "start_deadline"),
    ({**LEAST, "start_deadline": "1m"}, "start_deadline"),
    ({**LEAST, "start_deadline": 86401}, "start_deadline"),
    ({**LEAST, "sema": ""}, "sema"),
    ({**LEAST, "sema": "s"}, "sema"),
    ({**LEAST, "sema": "s:0"}, "sema"),
    ({**LEAST, "sema": "s:01"}, "sema"),
    ({**LEAST, "sema": "s:1001"}, "sema"),
    ({**LEAST, "sema": "s:-1"}, "sema"),
    ({**LEAST, "sema": "a/b:1"}, "bad name"),
    ({**LEAST, "sema": ["s", 1]}, "sema"),
    ({**LEAST, "env": []}, "env"),
    ({**LEAST, "env": "A=B"}, "env"),
    ({**LEAST, "env": {"A": 1}}, "env"),
    ({**LEAST, "env": {"": "x"}}, "env"),
    ({**LEAST, "env": {"1A": "x"}}, "env"),
    ({**LEAST, "env": {"A B": "x"}}, "env"),
    ({**LEAST, "env": {"A=B": "x"}}, "env"),
    ({**LEAST, "env": {"A": "x\0y"}}, "env"),
    ({**LEAST, "cwd": ""}, "cwd"),
    ({**LEAST, "cwd": "relative"}, "cwd"),
    ({**LEAST, "cwd": "/a\0b"}, "cwd"),
    ({**LEAST, "cwd": 5}, "cwd"),
    ({**LEAST, "paused": None}, "paused"),
    ({**LEAST, "paused": 1}, "paused"),
    ({**LEAST, "paused": "no"}, "paused"),
]


@pytest.mark.parametrize(("data", "says"), BAD, ids=[str(at) for at in range(len(BAD))])
def test_fields_that_make_no_job(data: Any, says: str) -> None:
    """`decode` refuses with bad input and `parse` with an unreadable job, both in one line that names the field."""
    with pytest.raises(BadInput, match=says) as refused:
        decode("j", data)
    assert "\n" not in str(refused.value)
    with pytest.raises(UnreadableJob):
        parse("j", text_of(data))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"\xff\xfe\xfd",
        b"\0",
        b'{"schedule": "@daily", "cmd": ["true"]} x',
        b'{"schedule": "@daily", "cmd": ["true"], "x": NaN}',
        b'{"schedule": "@daily", "cmd": ["true"], "x": -Infinity}',
        b"[" * 30000,
        b"1" * 5000,
    ],
)
def test_bytes_that_are_no_json(value: bytes) -> None:
    """Whatever stands in etcd, only `UnreadableJob` comes of it."""
    with pytest.raises(UnreadableJob):
        parse("j", value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "ä", "\ud800", "x" * 129])
def test_bad_names_make_no_job(name: str) -> None:
    """A key's last part need not be a name."""
    with pytest.raises(BadInput):
        decode(name, LEAST)
    with pytest.raises(UnreadableJob):
        parse(name, text_of(LEAST))


def test_defaults() -> None:
    """What is not said is as the contract has it."""
    job = decode("j", LEAST)
    assert job == Job(
        name="j",
        schedules=("* * * * *",),
        cmd=("true",),
        tz="UTC",
        run_ttl_s=600.0,
        kill_after_s=5.0,
        overlap="forbid",
        retries=0,
        retry_delay_s=30.0,
        start_deadline_s=None,
        semaphore=None,
        env={},
        cwd=None,
        paused=False,
        paused_until=None,
        on=(),
        each=False,
        expires=None,
        jitter_s=0.0,
        keep_output="failed",
        on_failure=None,
        ping=None,
        env_files=(),
        needs=(),
        value=text_of(LEAST),
    )
    assert job.raw == LEAST
    assert job.exclusive
    assert not job.is_signed


@pytest.mark.parametrize("field", ["start_deadline", "sema", "env", "cwd"])
def test_null_is_not_set(field: str) -> None:
    """For the fields that have no default."""
    job = decode("j", {**LEAST, field: None})
    assert (job.start_deadline_s, job.semaphore, job.env, job.cwd) == (None, None, {}, None)


def test_all_fields() -> None:
    """Each is read, and all of them stay in what is written."""
    job = parse("j", text_of(FULL))
    assert job.cmd == ("sh", "-c", "echo é; exit 1", "")
    assert (job.run_ttl_s, job.kill_after_s, job.retry_delay_s, job.start_deadline_s) == (90.5, 0.0, 1.0, 7.0)
    assert (job.overlap, job.retries, job.semaphore) == ("replace", 2, ("a:b", 3))
    assert (job.env, job.cwd, job.paused, job.tz) == ({"A": "", "_B": "x=y"}, "/", True, "Europe/Berlin")
    assert job.raw == FULL
    assert json.loads(job.encode()) == FULL
    assert b"\n" not in job.encode()
    assert "é".encode() in job.encode()


def test_unknown_fields_are_kept_by_every_change() -> None:
    """A newer conch's fields survive an older one's pause, signature and rewriting."""
    job = parse("j", parse("j", text_of(FULL)).changed(paused=False).signed(KEY).encode())
    assert {name: value for name, value in job.raw.items() if name != "sig"} == {**FULL, "paused": False}
    assert not job.paused
    assert job.changed(paused=True).raw == FULL
    assert job.signed(None).raw == {**FULL, "paused": False}


def test_change_is_checked() -> None:
    """As any other job."""
    with pytest.raises(BadInput, match="retries"):
        decode("j", FULL).changed(retries=-1)


def test_runs_and_retries_together_are_at_most_a_day() -> None:
    """24 h exactly is allowed."""
    assert decode("j", {**LEAST, "run_ttl": LONGEST_S}).run_ttl_s == LONGEST_S
    assert decode("j", {**LEAST, "run_ttl": 28000, "retries": 2, "retry_delay": 1200}).retries == 2
    for more in ({"run_ttl": 28001}, {"retries": 3}, {"retry_delay": 1200.5}):
        with pytest.raises(BadInput, match="24 h"):
            decode("j", {**LEAST, "run_ttl": 28000, "retries": 2, "retry_delay": 1200, **more})
    assert decode("j", {**LEAST, "run_ttl": 1, "retry_delay": 1, "retries": 1000}).retries == 1000


@pytest.mark.parametrize("letter", ["x", "é", "\udcff"])
def test_size_of_a_job(letter: str) -> None:
    """32 KiB as written to etcd, not a byte more; what is accepted can be read back."""
    room = LARGEST_BYTES - len(decode("j", {**LEAST, "cmd": ["true", "\udcff" if letter == "\udcff" else ""]}).encode())
    each = {"x": 1, "é": 2, "\udcff": 6}[letter]
    word = letter * (room // each + (letter == "\udcff"))
    job = decode("j", {**LEAST, "cmd": ["true", word]})
    assert LARGEST_BYTES - each < len(job.encode()) <= LARGEST_BYTES
    assert parse("j", job.encode()) == job
    with pytest.raises(BadInput, match="too large"):
        decode("j", {**LEAST, "cmd": ["true", word + letter]})
    with pytest.raises(UnreadableJob, match="32768"):
        parse("j", job.encode() + b" " * each)


def test_signature_that_makes_a_job_too_large_is_refused() -> None:
    """Before it is written where nobody would read it."""
    room = LARGEST_BYTES - len(decode("j", {**LEAST, "cmd": ["true", ""]}).encode())
    job = decode("j", {**LEAST, "cmd": ["true", "x" * room]})
    with pytest.raises(BadInput, match="too large"):
        job.signed(KEY)


def test_arguments_that_are_not_utf8_travel() -> None:
    """As lone surrogates, in ASCII escapes, signed or not."""
    data = {**LEAST, "cmd": ["cat", "a\udcff\udc80"], "env": {"A": "\udcfe"}, "cwd": "/\udcfd", "x": "\ud800"}
    job = decode("j", data).signed(KEY)
    value = job.encode()
    assert value.isascii()
    again = parse("j", value)
    assert again == job
    assert (again.cmd, again.env, again.cwd) == (("cat", "a\udcff\udc80"), {"A": "\udcfe"}, "/\udcfd")
    assert again.is_signed_by(KEY)


def test_how_late_a_tick_may_start() -> None:
    """The job's deadline; else a minute, or less if the next tick is sooner."""
    job = decode("j", LEAST)
    assert job.late_after_s(TICK, TICK + 10) == 10.0
    assert job.late_after_s(TICK, TICK + 600) == 60.0
    assert job.late_after_s(TICK, None) == 60.0
    assert decode("j", {**LEAST, "start_deadline": 90}).late_after_s(TICK, TICK + 10) == 90.0


@pytest.mark.parametrize(("overlap", "exclusive"), [("forbid", True), ("replace", True), ("allow", False)])
def test_which_jobs_hold_a_run_key(overlap: str, exclusive: bool) -> None:
    """All but those whose runs may overlap."""
    assert decode("j", {**LEAST, "overlap": overlap}).exclusive is exclusive


def test_semaphore_and_variable_as_they_are_written() -> None:
    """A colon belongs to the name but for the last; an equals sign to the value but for the first."""
    assert parse_semaphore("a:b:1000") == ("a:b", 1000)
    assert parse_variable("A==b=") == ("A", "=b=")
    assert parse_variable("A=") == ("A", "")
    for text in ("A", "=x", "", "A-B=x", "ä=x", "A\n=x"):
        with pytest.raises(BadInput):
            parse_variable(text)


# -- thousands of jobs ----------------------------------------------------------------------------------------


def test_job_keeps_its_value_and_not_all_that_was_parsed_from_it() -> None:
    """The bytes are there anyway, in what etcd answered; the parsed fields would take four times as much."""
    value = text_of({**FULL, "more": {"of": ["a", "newer", "release"]}})
    job = parse("j", value)
    assert job.value is value
    assert [kept for kept in gc.get_referents(job) if isinstance(kept, dict)] == [job.env]
    assert job.raw["more"] == {"of": ["a", "newer", "release"]}


def test_jobs_that_are_due_alike_share_their_schedule() -> None:
    """Of ten thousand jobs with a hundred schedules, a hundred are kept, and each is parsed once."""

    def ticks(name: str, **fields: str) -> object:
        return parse(name, text_of({**LEAST, **fields})).ticks()

    assert ticks("a", schedule="17 3 * * *") is ticks("b", schedule="17 3 * * *")
    assert ticks("a", schedule="17 3 * * *") is not ticks("a", schedule="17 3 * * *", tz="Europe/Berlin")
    assert ticks("a", schedule="H 3 * * *") is ticks("a", schedule="H 3 * * *")
    assert ticks("a", schedule="H 3 * * *") != ticks("b", schedule="H 3 * * *")
    assert ticks("a", schedule="0,h 3 * * *") != ticks("b", schedule="0,h 3 * * *")


def test_schedule_is_not_shared_across_rules_of_its_zone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs that are parsed after a zone was changed on disk are due by its new rules."""
    database = Zones(tmp_path / "zones")
    monkeypatch.setattr(zones, "_loaded", {})
    monkeypatch.setenv("TZDIR", str(database.folder))
    job = text_of({**LEAST, "schedule": "0 12 * * *", "tz": "Mars/Olympus"})
    noon = []
    for offset_s in (3600, 7200):
        database.zone("Mars/Olympus", offset_s)
        zones.reload()
        noon.append(parse("a", job).ticks().next_after(0))
    assert noon == [11 * 3600, 10 * 3600]


# -- what a daemon must be able to do ----------------------------------------------------------------------------

NEEDS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"note": "x", "each": False, "on": [], "jitter": 0, "keep_output": "failed"}, []),
    ({"each": True}, ["each"]),
    ({"on": ["gpu"], "jitter": 5}, ["jitter", "on"]),
    ({"schedule": ["@daily", "@hourly"]}, ["schedules"]),
    ({"needs": ["what comes later", "each"]}, ["what comes later"]),
    ({"needs": ["what comes later"], "expires": "2030-01-01T00:00:00Z"}, ["expires", "what comes later"]),
]


@pytest.mark.parametrize(("fields", "needs"), NEEDS)
def test_a_job_says_which_features_it_needs(fields: dict[str, Any], needs: list[str]) -> None:
    """One that needs none is as earlier releases wrote it; one that does is no job to a daemon that knows no needs."""
    job = define("j", {**LEAST, **fields})
    assert list(job.needs) == needs
    if needs:
        assert job.raw["needs"] == needs
        assert isinstance(job.raw["schedule"], list)
    else:
        assert "needs" not in job.raw
        assert isinstance(job.raw["schedule"], str)
    assert parse("j", job.encode()) == job


def test_needs_that_were_not_written_are_found_all_the_same() -> None:
    """Anyone may write a job."""
    assert decode("j", {**LEAST, "each": True}).needs == ("each",)


# -- pauses ------------------------------------------------------------------------------------------------------


def test_pause_with_an_end() -> None:
    """It ends by itself; one without goes on until somebody resumes the job."""
    until = rfc3339(TICK + 60)
    job = decode("j", {**LEAST, "paused": True, "paused_until": until})
    assert [job.is_paused_at(TICK + at) for at in (0, 59, 60)] == [True, True, False]
    for_good = decode("j", {**LEAST, "paused": True})
    assert for_good.is_paused_at(TICK + 10**8)
    assert for_good.next_tick(TICK) is None
    assert not decode("j", {**LEAST, "paused_until": until}).is_paused_at(TICK)
