"""Jobs, claims and results as bytes in etcd: what is refused, what is kept, what a signature covers."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.cron.job import (
    LARGEST_BYTES,
    LONGEST_S,
    Job,
    UnreadableJob,
    decode,
    parse,
    parse_semaphore,
    parse_variable,
)
from conch.cron.values import STATES, Result, claim_value, fields_of, row
from conch.errors import BadInput
from conch.holder import Holder, UnreadableHolder
from conch.times import rfc3339

KEY = b"k" * 16
LEAST: dict[str, Any] = {"schedule": "* * * * *", "cmd": ["true"]}
FULL: dict[str, Any] = {
    "schedule": "H 3 * * mon-fri",
    "tz": "Europe/Berlin",
    "cmd": ["sh", "-c", "echo é; exit 1", ""],
    "run_ttl": 90.5,
    "kill_after": 0,
    "overlap": "replace",
    "retries": 2,
    "retry_delay": 1,
    "start_deadline": 7,
    "sema": "a:b:3",
    "env": {"A": "", "_B": "x=y"},
    "cwd": "/",
    "paused": True,
    "added_by": "me@here",
    "added_at": "2026-01-01T00:00:00Z",
    "from_later": {"x": [1, None, "ü"]},
}
ROW = {"name", "tick", "tick_unix", "state", "exit", "node", "started", "duration_s", "attempt", "reason"}
TICK = 1_700_000_000
HOLDER = Holder("h", 7, "2026-01-01T00:00:00Z", "conchd")

# any JSON, lone surrogates and what is no number included
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 86400, 86401, "1e400", "\ud800", "a\0b", "A=B", "forbid", "x:1"])
    | st.floats()
    | st.text(st.characters(), max_size=20)
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=5), inner),
    max_leaves=8,
)
JOBS = st.fixed_dictionaries(
    {"schedule": st.just("@daily") | ANY, "cmd": st.just(["true"]) | ANY},
    optional={field: ANY for field in [*FULL, "sig", "x"] if field not in LEAST},
)


def text_of(data: object) -> bytes:
    return json.dumps(data).encode()


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
        schedule="* * * * *",
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
        raw=LEAST,
    )
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


# -- signatures -----------------------------------------------------------------------------------------------


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


# -- any value ------------------------------------------------------------------------------------------------


def use(value: bytes) -> None:
    """Parse a value; what is a job can be written, read again, signed and changed."""
    try:
        job = parse("j", value)
    except UnreadableJob:
        return
    assert parse("j", job.encode()) == job
    job.is_signed_by(KEY)
    if len(job.encode()) < LARGEST_BYTES - 100:
        signed = parse("j", job.signed(KEY).encode())
        assert signed.is_signed_by(KEY)
        assert not parse("j", signed.changed(paused=not job.paused).encode()).is_signed
    tick = job.ticks().next_after(TICK)
    assert tick is None or tick > TICK


@given(st.binary(max_size=200) | st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))
def test_any_bytes_are_a_job_or_unreadable(value: bytes) -> None:
    """Nothing but `UnreadableJob` is raised."""
    use(value)


@given(ANY.map(text_of) | JOBS.map(text_of))
def test_any_json_is_a_job_or_unreadable(value: bytes) -> None:
    """And a job is the same after a way through etcd."""
    use(value)


def test_number_too_large_for_a_float_leaves_a_job_that_can_be_rewritten() -> None:
    """1e400 in a field of another program must not make `cron pause` write what nobody can read."""
    use(b'{"schedule": "@daily", "cmd": ["true"], "x": 1e400}')


def test_nesting_as_deep_as_it_can_be_read() -> None:
    """What can just be read can be written and signed too, or it is unreadable."""

    def value(depth: int) -> bytes:
        return b'{"schedule": "@daily", "cmd": ["true"], "x": %s%s}' % (b"[" * depth, b"]" * depth)

    def readable(depth: int) -> bool:
        try:
            json.loads(value(depth))
        except RecursionError:
            return False
        return True

    low, high = 1, 16000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if readable(middle) else (low, middle)
    for depth in range(max(1, low - 60), low + 5):
        use(value(depth))


# -- the rest of a job ----------------------------------------------------------------------------------------


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


# -- claims and results ---------------------------------------------------------------------------------------


def test_claim_value_is_a_holder_and_more() -> None:
    """Who, which run and which tick, in one line; odd bytes in the command do no harm."""
    value = claim_value(Holder("h", 7, "s", "a \udcff é"), "r1", TICK)
    assert b"\n" not in value
    holder = Holder.decode(value)
    assert (holder.host, holder.pid, holder.started) == ("h", 7, "s")
    assert (fields_of(value)["tick"], fields_of(value)["run"]) == (TICK, "r1")


@pytest.mark.parametrize("value", [b"", b"[]", b"5", b"null", b"\xff", b"{", b"[" * 100000])
def test_value_without_fields(value: bytes) -> None:
    """Is taken for an empty object."""
    assert fields_of(value) == {}


RESULTS = st.builds(
    Result,
    node=st.text(st.characters()),
    state=st.sampled_from(STATES),
    exit=st.none() | st.integers(0, 255),
    started=st.none() | st.floats(0, 4e9),
    duration_s=st.floats(0, 1e6),
    attempt=st.integers(0, 1001),
    reason=st.text(st.characters()),
)


@given(RESULTS)
def test_result_comes_back_as_a_row(result: Result) -> None:
    """With the field names of the contract."""
    value = result.encode()
    assert b"\n" not in value
    assert set(json.loads(value)) >= {"node", "exit", "started", "duration", "state", "reason", "attempt"}
    assert row("j", TICK, None, value) == {
        "name": "j",
        "tick": "2023-11-14T22:13:20Z",
        "tick_unix": TICK,
        "state": result.state,
        "exit": result.exit,
        "node": result.node,
        "started": None if result.started is None else rfc3339(result.started),
        "duration_s": result.duration_s,
        "attempt": result.attempt,
        "reason": result.reason or None,
    }


def test_claim_without_a_result_is_claimed() -> None:
    """By its host, and with nothing else to say."""
    shown = row("j", TICK, claim_value(HOLDER, "r", TICK), None)
    assert set(shown) == ROW
    known = {"name": "j", "tick": "2023-11-14T22:13:20Z", "tick_unix": TICK, "state": "claimed", "node": "h"}
    assert {field: value for field, value in shown.items() if value is not None} == known


def test_result_goes_before_its_claim() -> None:
    """Also where the claim cannot be read."""
    for claim in (None, b"junk", claim_value(HOLDER, "r", TICK)):
        assert row("j", TICK, claim, Result("n", "ok", exit=0).encode())["state"] == "ok"


@pytest.mark.parametrize("result", [b"", b"junk", b"[]", b"{}", b'{"state": "ok"}', b'{"state": 1, "node": "n"}'])
def test_broken_result_is_unreadable(result: bytes) -> None:
    """And not passed off as claimed."""
    with pytest.raises(UnreadableHolder):
        row("j", TICK, claim_value(HOLDER, "r", TICK), result)


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(STATES) | ANY,
        "node": st.text() | ANY,
        **dict.fromkeys(("exit", "started", "duration", "attempt", "reason", "host", "pid", "cmd"), ANY),
    },
)
VALUES = st.none() | st.binary(max_size=50) | ANY.map(text_of) | FIELDS.map(text_of)


def check_row(claim: bytes | None, result: bytes | None) -> None:
    """It has all fields of the contract, of their types, and can be shown as JSON and as text."""
    try:
        shown = row("j", TICK, claim, result)
    except UnreadableHolder:
        return
    assert set(shown) == ROW
    json.dumps(shown, allow_nan=False)
    for field in ("exit", "attempt", "duration_s"):
        value = shown[field]
        assert value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    assert shown["duration_s"] is None or f"{shown['duration_s']:.1f}"
    for field in ("state", "node", "started", "reason"):
        assert shown[field] is None or isinstance(shown[field], str)


@given(VALUES, VALUES)
def test_any_values_are_a_row_or_unreadable(claim: bytes | None, result: bytes | None) -> None:
    """Nothing but `UnreadableHolder` is raised."""
    check_row(claim, result)


@pytest.mark.parametrize("field", ["exit", "attempt", "duration", "started", "reason"])
@pytest.mark.parametrize(
    "value", ["true", "NaN", "Infinity", "1e400", pytest.param("1" + "0" * 400, id="huge"), '"x"', "[]", "null", "-1"]
)
def test_odd_fields_of_a_result_written_by_hand(field: str, value: str) -> None:
    """They do not reach people or programs as what is no number, and break nothing."""
    check_row(None, b'{"state": "ok", "node": "n", "%s": %s}' % (field.encode(), value.encode()))
