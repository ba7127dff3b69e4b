"""The keys of conch in etcd, built and parsed: a versioned public API, see the contract's section on keys."""

from conch.errors import BadInput
from conch.record import Record

DEFAULT_PREFIX = "/conch/v1"
# The first part of a key after the prefix; another prefix must not lie below one of these.
KINDS = frozenset({"elect", "sema", "sema-host", "cron", "node"})
_DIGITS = frozenset("0123456789")
_ALPHANUMERIC = _DIGITS.union("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_NAME_CHARACTERS, _NAME_LENGTH = _ALPHANUMERIC.union("._@:+-"), 128
_HEX_DIGITS = _DIGITS.union("abcdef")
_JOB_KINDS = frozenset({"job", "run", "floor"})
_TICK_KINDS = frozenset({"fire", "result", "now", "kill"})
_EACH_KINDS = frozenset({"fire", "result"})
_MOST_SLOTS = 1000
_MOST_LEASE = 2**63 - 1
# From 2001 to 2286, so that ticks sort as texts in the order of their numbers.
_TICK_DIGITS = 10


def is_name(text: str) -> bool:
    """Return whether a text may stand in a key of etcd."""
    return 0 < len(text) <= _NAME_LENGTH and text[0] in _ALPHANUMERIC and _NAME_CHARACTERS.issuperset(text)


def check_name(name: str) -> str:
    """Return the name unchanged if it may stand in a key of etcd, else raise `BadInput`."""
    if is_name(name):
        return name
    raise BadInput(f"bad name {name!r}: 1 to 128 of A-Z a-z 0-9 . _ @ : + - and a letter or digit first")


class ContenderKey(Record):
    """A key in a queue: of an office (`elect`), of a semaphore (`sema`), or of a host for it (`sema-host`).

    Every key in a queue's range has a place there. `lease` is None for a key that no conch made.
    """

    kind: str
    name: str
    slots: int
    host: str
    lease: int | None


class JobKey(Record):
    """A key that cron has once per job: `job`, `run` or `floor`.

    `run` of a job whose ticks run on every host has a key per `host`.
    """

    kind: str
    name: str
    host: str = ""


class TickKey(Record):
    """A key that cron has once per tick: `fire`, `result`, `now` or `kill`.

    `fire` and `result` of a job whose ticks run on every host have a key per `host`.
    """

    kind: str
    name: str
    tick: int
    host: str = ""


class CordonKey(Record):
    """The key that keeps the conchd of a host from claiming anything."""

    host: str


class NodeKey(Record):
    """The key of a live conchd."""

    host: str


Key = ContenderKey | JobKey | TickKey | CordonKey | NodeKey


class Keys(Record):
    """Builds and parses the keys that conch reads and writes, all of them under one prefix."""

    prefix: str = DEFAULT_PREFIX

    def office(self, name: str) -> str:
        """Return the queue of an election, with one key per contender below it."""
        return f"{self.prefix}/elect/{name}/"

    def semaphore(self, name: str) -> str:
        """Return the prefix of all queues of a semaphore, one per capacity."""
        return f"{self.prefix}/sema/{name}/"

    def slots(self, name: str, slots: int) -> str:
        """Return the queue of a semaphore with this capacity."""
        return f"{self.semaphore(name)}{slots}/"

    def host(self, name: str, slots: int, host: str) -> str:
        """Return the queue within one host, for `--spread`."""
        return f"{self.prefix}/sema-host/{name}/{slots}/{host}/"

    def cron(self, kind: str, *path: str | int) -> str:
        """Return a key of a kind (`job fire result run now kill cordon …`), or without a path the prefix of all."""
        return "/".join((self.prefix, "cron", kind, *map(str, path))) + ("" if path else "/")

    def ticks(self, kind: str, name: str) -> str:
        """Return the prefix of a job's keys of one kind (`fire`, `result` or `now`)."""
        return f"{self.prefix}/cron/{kind}/{name}/"

    def node(self, host: str = "") -> str:
        """Return the key of a live conchd, or the prefix of all."""
        return f"{self.prefix}/node/{host}"

    def parse(self, key: bytes) -> Key | None:
        """Parse any bytes; return None unless it is a key that conch would make below this prefix."""
        above, _, path = key.decode("latin-1").partition(self.prefix + "/")
        if above or not path:
            return None
        match path.split("/"):
            case ["elect", name, *rest] if rest:
                return _contender("elect", name, "1", "", rest)
            case ["sema", name, slots, *rest] if rest:
                return _contender("sema", name, slots, "", rest)
            case ["sema-host", name, slots, host, *rest] if rest:
                return _contender("sema-host", name, slots, host, rest) if is_name(host) else None
            case ["cron", kind, name] if kind in _JOB_KINDS and is_name(name):
                return JobKey(kind, name)
            case ["cron", "run", name, host] if is_name(name) and is_name(host):
                return JobKey("run", name, host)
            case ["cron", "cordon", host] if is_name(host):
                return CordonKey(host)
            case ["cron", kind, name, tick] if kind in _TICK_KINDS and is_name(name) and _is_tick(tick):
                return TickKey(kind, name, int(tick))
            case ["cron", kind, name, tick, host] if kind in _EACH_KINDS and is_name(name) and is_name(host):
                return TickKey(kind, name, int(tick), host) if _is_tick(tick) else None
            case ["node", host] if is_name(host):
                return NodeKey(host)
        return None

    def tick_of(self, key: bytes) -> TickKey | None:
        """Parse the key of a claim, result or request; return None for any other key."""
        parsed = self.parse(key)
        return parsed if isinstance(parsed, TickKey) else None


def _contender(kind: str, name: str, slots: str, host: str, rest: list[str]) -> ContenderKey | None:
    count = _slots(slots)
    if count is None or not is_name(name):
        return None
    return ContenderKey(kind, name, count, host, _lease(rest[0]) if len(rest) == 1 else None)


def _slots(text: str) -> int | None:
    return int(text) if _is_number(text, _DIGITS) and len(text) <= 4 and int(text) <= _MOST_SLOTS else None


def _lease(text: str) -> int | None:
    return int(text, 16) if _is_number(text, _HEX_DIGITS) and len(text) <= 16 and int(text, 16) <= _MOST_LEASE else None


def _is_tick(text: str) -> bool:
    return _is_number(text, _DIGITS) and len(text) == _TICK_DIGITS


def _is_number(text: str, digits: frozenset[str]) -> bool:
    """Whether this is a positive number as conch writes it, without leading zeros."""
    return text != "" and text[0] != "0" and digits.issuperset(text)


def slots_of(family: str, key: bytes) -> int | None:
    """Return the capacity of the queue that a key is in, or None; `family` is the prefix of a semaphore's queues."""
    above, _, path = key.decode("latin-1").partition(family)
    slots, separator, _ = path.partition("/")
    return _slots(slots) if separator and not above else None


def contender(queue: str, lease: int) -> str:
    """Return the key of a contender, named by its lease so that a repeated create finds its own."""
    return f"{queue}{lease:x}"


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all that begin with the prefix, as etcd's ranges want it."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"
