"""The messages between supervisor and keeper, and their encoding: one JSON object per message."""

from conch import json_text
from conch.record import Record, fields_of
from conch.static_typing import Any, ClassVar

_TEXT_CHARACTERS = 2000


class ChannelError(Exception):
    """A message that does not belong on the channel: a defect of conch."""


class Message(Record):
    """A message on the channel; each kind is a subclass with plain fields."""

    kind: ClassVar[str] = ""
    uncut: ClassVar[bool] = False  # long texts are sent in full


class Answered(Message):
    """etcd answered and granted this lease: from now on there may be something to release."""

    kind: ClassVar[str] = "answered"
    lease: int


class Queued(Message):
    """The keeper waits in the queue, with this create-revision."""

    kind: ClassVar[str] = "queued"
    rev: int


class Held(Message):
    """The hold is won. `deadline` is in seconds of CLOCK_BOOTTIME, `ttl_s` is what etcd granted."""

    kind: ClassVar[str] = "held"
    number: int
    rev: int
    lease: int
    key: str
    ttl_s: float
    deadline: float


class Renewed(Message):
    """The newest confirmed deadline of acquisition `number`."""

    kind: ClassVar[str] = "renewed"
    number: int
    deadline: float


class Lost(Message):
    """The hold of acquisition `number` is certainly gone."""

    kind: ClassVar[str] = "lost"
    number: int
    reason: str


class Failed(Message):
    """The acquisition failed, with this exit code; unless `leftovers` is set, it left nothing in etcd."""

    kind: ClassVar[str] = "failed"
    code: int
    message: str
    leftovers: bool = False


class Released(Message):
    """The lease was released, or `reason` says why that is unknown."""

    kind: ClassVar[str] = "released"
    reason: str = ""


class Note(Message):
    """A line for the log; the keeper itself writes none."""

    kind: ClassVar[str] = "note"
    level: str
    event: str
    text: dict[str, str | int | float]


class Acquire(Message):
    """Queue up. `give_up_at` is in seconds of CLOCK_BOOTTIME; `abandon` is the lease of a crashed keeper."""

    kind: ClassVar[str] = "acquire"
    number: int
    give_up_at: float | None = None
    abandon: int | None = None


class Running(Message):
    """A process group `pid` is about to exec; all it starts carries `run_id` in its environment.

    It must not outlive any of the `holds`, by their numbers (a hook after a loss has none), nor the supervisor. Its
    `cgroup` is a directory, or empty.
    """

    kind: ClassVar[str] = "running"
    pid: int
    run_id: str
    holds: list[int]
    kill_after_s: float
    run: str = ""
    cgroup: str = ""


class Ended(Message):
    """The tree of a run was seen empty."""

    kind: ClassVar[str] = "ended"
    run: str = ""


class Release(Message):
    """Release the lease; a keeper that does not know it revokes `lease`."""

    kind: ClassVar[str] = "release"
    lease: int | None = None


class Begin(Message):
    """The first message to a keeper of conchd: these runs live, these have ended and are reported next.

    `leases` are those of the keeper before: what they hold belongs to this conchd.
    """

    kind: ClassVar[str] = "begin"
    live: list[str]
    ended: list[str]
    first: bool
    leases: list[int]


class Begun(Message):
    """The scheduler is up: earlier runs are settled and etcd has answered. From here on only a signal ends conchd."""

    kind: ClassVar[str] = "begun"


class Start(Message):
    """Run this under these holds, which `Held` announced; start its first attempt by `start_by`.

    An attempt lasts at most `limit_s`, the first `first_limit_s`; one that fails or
    takes longer is followed by up to `retries` more. `tick` is in RFC 3339. A `hook` is no run of the job, but what is
    to happen after one. `keep_output` says after which ends the end of the output is reported: failed, always, never.
    `env_files` are read when an attempt starts.
    """

    kind: ClassVar[str] = "start"
    uncut: ClassVar[bool] = True
    run: str
    job: str
    tick: str
    command: list[str]
    environment: dict[str, str]
    directory: str | None
    holds: list[int]
    start_by: float
    first_limit_s: float
    limit_s: float
    kill_after_s: float
    retries: int
    retry_delay_s: float
    hook: str = ""
    keep_output: str = "failed"
    env_files: list[str] = []  # noqa: RUF012 - nobody changes a message

    @property
    def label(self) -> str:
        """What the run is called where it prints."""
        return " ".join(filter(None, (self.job, self.tick, self.hook)))


class Kill(Message):
    """End this run; `reason` goes into the report of its end."""

    kind: ClassVar[str] = "kill"
    run: str
    reason: str


class Finished(Message):
    """A run is over and its tree empty; the outcome is `ended` (by itself), `timeout`, `killed` or `unstarted`.

    `started` is wall-clock time (seconds since the epoch) of the first attempt, 0 if there was none; `duration_s` is
    the time from then to the end. `cpu_s` is the CPU time of all attempts in seconds, `max_rss_kb` the most memory that
    one of them had, in KiB (None: unknown). `output` is the end of what they printed, if it is kept.
    """

    kind: ClassVar[str] = "finished"
    uncut: ClassVar[bool] = True
    run: str
    outcome: str
    code: int | None
    attempt: int
    started: float
    duration_s: float
    reason: str
    cpu_s: float = 0.0
    max_rss_kb: int | None = None
    output: str = ""

    @property
    def state(self) -> str:
        """How it ended, in the word that results have for it."""
        if self.outcome == "ended":
            return "ok" if self.code == 0 else "failed"
        return "skipped" if self.outcome == "unstarted" else self.outcome


class Recorded(Message):
    """The keeper has recorded the end of this run durably."""

    kind: ClassVar[str] = "recorded"
    run: str


class Drain(Message):
    """Start nothing more."""

    kind: ClassVar[str] = "drain"


class Reload(Message):
    """Reload what may have changed on disk: zones, certificates, the password."""

    kind: ClassVar[str] = "reload"


_KINDS: dict[str, type[Message]] = {
    c.kind: c
    for c in (
        *(Answered, Queued, Held, Renewed, Lost, Failed, Released, Note, Acquire, Running, Ended, Release),
        *(Begin, Begun, Start, Kill, Finished, Recorded, Drain, Reload),
    )
}


def encode(message: Message) -> bytes:
    """Return the message as it is sent."""
    values = fields_of(message)
    text = json_text.dumps({"kind": message.kind, **(values if message.uncut else _shorten(values))})
    return text.encode("utf-8", "surrogatepass")


def _shorten(data: dict[str, Any]) -> dict[str, Any]:
    """Keep messages small: cut long texts, also those of a note."""
    return {
        name: value[:_TEXT_CHARACTERS]
        if isinstance(value, str)
        else _shorten(value)
        if isinstance(value, dict)
        else value
        for name, value in data.items()
    }


def decode(data: bytes) -> Message:
    """Return the message that was encoded; raise `ChannelError` for anything else."""
    try:
        values: dict[str, Any] = json_text.loads(data)
        kind = _KINDS[values.pop("kind")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ChannelError(f"not a message: {data[:80]!r}") from None
    if set(values) != set(kind._fields):
        raise ChannelError(f"wrong fields for {kind.kind}: {sorted(values)}")
    return kind(**values)
