"""What becomes of the jobs in etcd when files are applied, without etcd."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.cron.apply import Application, diff_of
from conch.cron.definition import set_of
from conch.cron.job import Job, define
from conch.cron.job_export import export, head_of
from conch.cron.job_file import read_file
from conch.cron.job_store import Change, Edit, Stored
from conch.errors import BadInput, ConchError
from tests.support.jobs import FULL, KEY

AUTHOR = {"added_by": "me@here", "added_at": "2026-01-01T00:00:00Z"}
DAILY = {"schedule": "@daily", "cmd": ["true"]}
FILE = '[job.j]\nschedule = "@daily"\ncmd = ["true"]\n'


def stored(name: str = "j", **fields: Any) -> Stored:
    job = define(name, {**DAILY, **fields})
    return Stored(name, job.value, 7, job)


def application(text: str, key: bytes | None = None, *, prune: bool = False) -> Application:
    return Application([read_file("f", text.encode())], AUTHOR, key, prune=prune)


def decided(text: str, before: Stored | None, key: bytes | None = None) -> Job | None:
    """Return the job that would be written; None if nothing is."""
    edit = application(text, key).decide("j", before)
    return None if edit is None else edit.job


def exported(job: Job, *, reveal: bool = False) -> str:
    before = Stored(job.name, job.value, 1, job)
    return head_of(set_of(before)) + export(job, reveal=reveal, with_set=False).text


# -- what is exported ------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=30)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,20}", fullmatch=True)
VARIABLES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}|[A-Z]{1,4}_(TOKEN|KEY)", fullmatch=True)
DURATIONS = st.floats(0.001, 3600) | st.integers(1, 7200)
INSTANTS = st.sampled_from(["2026-01-31T12:00:00Z", "2099-12-31T23:59:59Z"])
PATHS = TEXTS.map(lambda text: f"/{text}")
FIELDS = st.fixed_dictionaries(
    {
        "schedule": st.lists(st.sampled_from(["@daily", "H 3 * * *", "*/5 * * * mon-fri", "@every 90s"]), min_size=1),
        "cmd": st.lists(TEXTS, max_size=3).map(lambda rest: ["run", *rest]),
    },
    optional={
        "tz": st.sampled_from(["UTC", "Europe/Berlin"]),
        **dict.fromkeys(("run_ttl", "kill_after", "retry_delay", "start_deadline", "jitter"), DURATIONS),
        "overlap": st.sampled_from(["forbid", "allow", "replace"]),
        "retries": st.integers(0, 3),
        "sema": st.just("a:b:3"),
        "env": st.dictionaries(VARIABLES, TEXTS | st.just("postgres://u:p@h/d"), max_size=4),
        "cwd": PATHS,
        "paused": st.booleans(),
        "paused_until": INSTANTS,
        "paused_reason": TEXTS,
        "on": st.lists(st.sampled_from(["gpu", "host=a", "dc=b"]), max_size=3),
        "each": st.booleans(),
        "expires": st.just("2099-01-01T00:00:00Z"),
        "note": TEXTS | st.integers(),
        "keep_output": st.sampled_from(["failed", "always", "never"]),
        "on_failure": TEXTS.map(lambda text: f"curl https://me:secret@h {text}") | st.just("mail root"),
        "ping": st.sampled_from(["https://h/p", "https://me:secret@h/p"]),
        "env_file": st.lists(PATHS, max_size=2),
        "set": NAMES,
        "from_later": st.dictionaries(TEXTS, st.integers(), max_size=2),
        "added_at": INSTANTS,
        "changed_by": TEXTS,
    },
)


@settings(max_examples=100)
@given(NAMES, FIELDS, st.booleans(), st.booleans())
def test_apply_of_what_export_prints_changes_nothing(
    name: str, fields: dict[str, Any], signed: bool, reveal: bool
) -> None:
    """Whatever the texts in it, with its set, its pause, its secrets, and fields of a later release."""
    key = KEY if signed else None
    job = define(name, fields).signed(key)
    text = exported(job, reveal=reveal)
    applied = Application([read_file("f", text.encode())], AUTHOR, key, prune=False)
    edit = applied.decide(name, Stored(name, job.value, 1, job))
    assert edit is None, list(diff_of(Change(name, Stored(name, job.value, 1, job), edit.job, is_write=True)))


def test_full_job_is_exported_in_the_words_of_the_flags() -> None:
    """Defaults are left out, and what conch wrote itself."""
    text = exported(define("j", {**FULL, "set": "web"}))
    assert text.splitlines() == [
        'set = "web"',
        "[job.j]",
        'schedule = "H 3 * * mon-fri"',
        'tz = "Europe/Berlin"',
        'cmd = ["sh", "-c", "echo é; exit 1", ""]',
        "run-ttl = 90.5",
        "kill-after = 0.0",
        'overlap = "replace"',
        "retries = 2",
        'retry-delay = "1s"',
        'start-deadline = "7s"',
        'sema = "a:b:3"',
        'env = {A = "", _B = "x=y"}',
        'cwd = "/"',
        "paused = true",
        'keep = ["from_later"]',
    ]


def test_secrets_are_left_out_and_kept() -> None:
    """The value is nowhere in the file; with --reveal it is."""
    secret = "s3cr3t"
    fields: dict[str, Any] = {
        "env": {"DB_PASSWORD": secret, "LANG": "C"},
        "ping": f"https://me:{secret}@h/p",
        "on_failure": f"curl https://me:{secret}@h",
    }
    job = define("j", {**DAILY, **fields})
    text = exported(job)
    assert secret not in text
    assert 'keep = ["env.DB_PASSWORD", "ping", "on_failure"]' in text
    assert "# left out as secrets: env.DB_PASSWORD, ping, on_failure" in text
    changed = decided(text.replace('LANG = "C"', 'LANG = "D"'), Stored("j", job.value, 1, job))
    assert changed is not None
    assert changed.env == {"DB_PASSWORD": secret, "LANG": "D"}
    assert (changed.ping, changed.on_failure) == (fields["ping"], fields["on_failure"])
    assert exported(job, reveal=True).count(secret) == 3


def test_kept_secret_that_is_not_there_is_refused() -> None:
    """It is not deleted in silence, nor invented."""
    text = FILE + 'keep = ["env.TOKEN"]\n'
    for before in (None, stored(), stored(env={"OTHER": "x"})):
        with pytest.raises(ConchError, match=r"job j keeps env\.TOKEN, which it does not have") as refusal:
            decided(text, before)
        assert refusal.value.code == 1


def test_nothing_that_others_wrote_is_kept_in_a_signed_job() -> None:
    """Otherwise whoever may write to etcd could have us sign their variables."""
    text = FILE + 'keep = ["env.TOKEN"]\n'
    unsigned = stored(env={"TOKEN": "forged"})
    signed = define("j", {**DAILY, "env": {"TOKEN": "t"}}).signed(KEY)
    forged = define("j", {**signed.raw, "env": {"TOKEN": "forged"}})
    for before in (unsigned, Stored("j", forged.value, 1, forged)):
        with pytest.raises(ConchError, match="not signed|not by this key"):
            decided(text, before, KEY)
    assert decided(text, Stored("j", signed.value, 1, signed), KEY) is None


# -- what is decided -------------------------------------------------------------------------------------------


def test_job_that_is_paused_stays_so_unless_the_file_says_otherwise() -> None:
    """With its end and its reason."""
    pause: dict[str, Any] = {"paused": True, "paused_until": "2099-01-01T00:00:00Z", "paused_reason": "x"}
    assert decided(FILE, stored(**pause)) is None
    assert decided(FILE + "paused = true\n", stored(**pause)) is None
    changed = decided(FILE + "retries = 1\n", stored(**pause))
    assert changed is not None
    assert {field: changed.raw[field] for field in pause} == pause
    resumed = decided(FILE + "paused = false\n", stored(**pause))
    assert resumed is not None
    assert (resumed.paused, resumed.paused_until, "paused_reason" in resumed.raw) == (False, None, False)
    assert decided(FILE + "paused = false\n", stored()) is None
    paused = decided(FILE + "paused = true\n", stored())
    assert paused is not None
    assert paused.paused


def test_job_of_another_set_is_refused() -> None:
    """Two teams that have a job of the same name do not overwrite each other's; one without a set is adopted."""
    theirs = stored(set="theirs")
    for text, says in ((FILE, "names no set"), (f'set = "ours"\n{FILE}', "the file's is ours")):
        with pytest.raises(ConchError, match=f"job j is of the set theirs, and .*{says}") as refusal:
            decided(text, theirs)
        assert refusal.value.code == 1
    assert decided(f'set = "theirs"\n{FILE}', theirs) is None
    adopted = decided(f'set = "ours"\n{FILE}', stored())
    assert adopted is not None
    assert adopted.raw["set"] == "ours"
    assert decided(f'set = "ours"\n{FILE}set = "theirs"\n', theirs) is None


def test_prune_removes_jobs_of_the_set_and_no_others() -> None:
    """It needs to know the set."""
    pruning = application(f'set = "ours"\n{FILE}', prune=True)
    assert pruning.decide("old", stored("old", set="ours")) == Edit(None)
    assert pruning.decide("old", stored("old", set="theirs")) is None
    assert pruning.decide("old", stored("old")) is None
    unreadable = Stored("old", json.dumps({"set": "ours"}).encode(), 1, None, "cmd")
    assert pruning.decide("old", unreadable) == Edit(None)
    assert application(f'set = "ours"\n{FILE}').decide("old", stored("old", set="ours")) is None
    with pytest.raises(BadInput, match="--prune needs the name of a set"):
        application(FILE, prune=True)


def test_signed_job_needs_the_key() -> None:
    """With it the job is signed again, without it nothing is written."""
    signed = define("j", DAILY).signed(KEY)
    before = Stored("j", signed.value, 1, signed)
    with pytest.raises(ConchError, match="job j is signed: give --job-key-file"):
        decided(FILE, before)
    assert decided(FILE, before, KEY) is None
    edit = application(FILE, KEY).decide("j", stored())
    assert edit is not None
    assert edit.sign


def test_unreadable_job_is_replaced() -> None:
    """It stays paused if it says so."""
    job = decided(FILE, Stored("j", b'{"paused": true}', 1, None, "cmd"))
    assert job is not None
    assert job.paused
