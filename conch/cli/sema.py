"""`conch sema`: run a command only while holding one of N slots, or show who holds and who waits."""

from conch.cli.connection_options import COMMON, settings
from conch.cli.hold_options import HOLD, check_query, epilog, run_under_hold
from conch.cli.spec import NAME_ARGUMENT, Command, Line, Option, Usage, int_range
from conch.errors import EXIT_NO, BadInput
from conch.etcd.connection import Settings
from conch.keys import check_name
from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conch.etcd.store import KeyValue

_QUERY_OPTIONS = {"name", "max_", "as_json", "who"}
_OPTIONS = (
    Option(("--max",), "How many may hold a slot at a time, 1 to 1000.", int_range(1, 1000), name="max_", metavar="N"),
    *HOLD,
    Option(("--spread",), "At most one slot per host (CONCH_HOST, else the host name)."),
    Option(("--who",), "Show who holds and who waits, in queue order; exit 1 if nobody does."),
    Option(("--json",), "With --who: print one JSON object per line.", name="as_json"),
    *COMMON,
)


def run(line: Line) -> int:
    """Run the line's command while holding a slot, or show the queue."""
    values = line.values
    common = settings(line)
    if values["who"]:
        check_query(SEMA, "--who", line, _QUERY_OPTIONS)
        return _show_queue(common, values["name"], values["max_"], as_json=values["as_json"])
    if values["max_"] is None:
        raise Usage(SEMA.path, "--max is missing: how many may hold a slot at a time")
    if not line.child:
        raise Usage(SEMA.path, "no command: put it after --, or use --who")
    if values["as_json"]:
        raise Usage(SEMA.path, "--json goes with --who")

    from conch.keeper.hold_spec import QueueSpec

    name, slots = values["name"], values["max_"]
    stage = QueueSpec(common.keys.slots(name, slots), slots, sibling_prefix=common.keys.semaphore(name))
    stages: tuple[QueueSpec, ...] = (stage,)
    if values["spread"]:
        stages = (QueueSpec(common.keys.host(name, slots, _host()), 1), stage)
    return run_under_hold(common, line, what=f"semaphore {name}/{slots}", stages=stages)


SEMA = Command(
    "sema",
    "Run CMD only while conch holds one of N slots of the semaphore NAME.\n\nFirst come, first served.",
    _OPTIONS,
    run,
    NAME_ARGUMENT,
    takes_child=True,
    examples=(
        ("conch sema backups --max 2 -- ./backup", "at most two at a time, on all hosts together"),
        ("conch sema backups --who", "see who holds a slot and who waits"),
    ),
    epilog=epilog("nobody holds or waits (--who)"),
)


def _host() -> str:
    from conch.holder import host_name

    try:
        return check_name(host_name())
    except BadInput as error:
        raise BadInput(f"--spread: the host name cannot be part of a key, set CONCH_HOST: {error}") from None


def _show_queue(common: Settings, name: str, slots: int | None, *, as_json: bool) -> int:
    """Print the contenders of a semaphore, of one size or of all; return 1 if there is none."""
    from conch.cli.output import fields, line, put_json, put_line
    from conch.holds import holder_of
    from conch.keys import ContenderKey
    from conch.log import Log

    log = Log(quiet=common.quiet, form=common.log_format)
    ranks: dict[int, int] = {}
    for kv in _contenders(common, name, slots):
        key = common.keys.parse(kv.key)
        if not isinstance(key, ContenderKey):
            log("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg="no capacity in the key")
            continue
        limit = key.slots
        rank = ranks.setdefault(limit, 0)
        ranks[limit] += 1
        state = "HELD" if rank < limit else "WAIT"
        holder = holder_of(kv, log)
        if holder is None:
            continue
        if as_json:
            put_json({"name": name, "max": limit, "state": state, "rank": rank, **fields(kv, holder)})
        else:
            put_line(f"{name}/{limit} {state} {line(kv, holder)}")
    return 0 if ranks else EXIT_NO


def _contenders(common: Settings, name: str, slots: int | None) -> "tuple[KeyValue, ...]":
    from conch.cli.exit import guard_threads
    from conch.etcd.open import open_store
    from conch.holds import contenders, read_queue

    guard_threads()
    store = open_store(common.connection)
    try:
        queue = common.keys.semaphore(name) if slots is None else common.keys.slots(name, slots)
        return read_queue(store, contenders(queue), common.connection).kvs
    finally:
        store.close()
