"""`conch elect`: run a command only while being the leader of an office, or ask who is."""

from conch.cli.connection_options import COMMON, settings
from conch.cli.hold_options import HOLD, check_query, epilog, run_under_hold
from conch.cli.spec import NAME_ARGUMENT, POSITIVE_DURATION, Command, Line, Option, Usage, int_range
from conch.errors import EXIT_NO, EXIT_UNAVAILABLE, ConchError
from conch.etcd.connection import Settings
from conch.record import replace
from conch.static_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conch.etcd.store import KeyValue
    from conch.holder import Holder

_QUERIES = ("who", "watch", "assert_")
_QUERY_OPTIONS = {"name", "as_json", "min_rev", *_QUERIES}
_RUNNING = (
    Option(("--restart",), "Queue and run again after each run; only a signal ends conch."),
    Option(("--restart-min",), "Shortest back-off between runs.", POSITIVE_DURATION, default="1s"),
    Option(("--restart-max",), "Longest back-off between runs.", POSITIVE_DURATION, default="30s"),
    Option(("--restart-stable",), "A run at least this long resets the back-off.", POSITIVE_DURATION, default="60s"),
)
_LOOKING = (
    Option(("--who",), "Show the leader; exit 1 if the office is vacant."),
    Option(("--watch",), "Show the current leader, then each change of leader."),
    Option(("--assert",), "Exit 0 if this host is the leader, 1 if not, 69 if that is unknown.", name="assert_"),
    Option(
        ("--min-rev",),
        "With --assert: exit 0 only if the fencing token is at least N, too.",
        int_range(0, 2**63 - 1),
        metavar="N",
    ),
    Option(("--json",), "With --who, --watch or --assert: print one JSON object per line.", name="as_json"),
)


def run(line: Line) -> int:
    """Run the line's command as the leader, or answer its query."""
    common = settings(line)
    queries = [query for query in _QUERIES if line.values[query]]
    if queries:
        _check_query(queries, line)
        return _answer(queries[0], common, line.values)
    _check_run(line)
    from conch.keeper.hold_spec import QueueSpec

    name = line.values["name"]
    return run_under_hold(common, line, what=f"office {name}", stages=(QueueSpec(common.keys.office(name), 1),))


ELECT = Command(
    "elect",
    "Run CMD only while conch leads the office NAME.\n\nIts contenders lead one at a time, first come, first served.",
    (*HOLD, *_RUNNING, *_LOOKING, *COMMON),
    run,
    NAME_ARGUMENT,
    takes_child=True,
    examples=(
        ("conch elect web --restart -- ./server", "run a service on one of many hosts, and again wherever it can run"),
        ("conch elect web --who", "see who leads"),
    ),
    epilog=epilog("vacant (--who) or not the leader (--assert)"),
)


def _check_query(queries: list[str], line: Line) -> None:
    if len(queries) > 1:
        raise Usage(ELECT.path, "--who, --watch and --assert exclude each other")
    if line.values["min_rev"] is not None and queries != ["assert_"]:
        raise Usage(ELECT.path, "--min-rev goes with --assert")
    check_query(ELECT, f"--{queries[0].rstrip('_')}", line, _QUERY_OPTIONS)


def _check_run(line: Line) -> None:
    values = line.values
    if not line.child:
        raise Usage(ELECT.path, "no command: put it after --, or use --who, --watch or --assert")
    if values["as_json"] or values["min_rev"] is not None:
        raise Usage(ELECT.path, "--json and --min-rev go with --who, --watch or --assert")
    if values["restart"] and (values["nonblock"] or values["wait"] is not None):
        raise Usage(ELECT.path, "--restart waits without limit: it excludes --wait and --nonblock")
    if values["restart_min"] > values["restart_max"]:
        raise Usage(ELECT.path, "--restart-min is more than --restart-max")


def _answer(query: str, common: Settings, values: dict[str, Any]) -> int:
    """Answer --who, --watch or --assert from what is in etcd, without a lease or a key of our own."""
    from conch.cli.exit import guard_threads
    from conch.etcd.open import open_store
    from conch.holds import contenders, holder_of, read_queue, watch_first
    from conch.log import Log

    office, as_json = values["name"], values["as_json"]
    log = Log(quiet=common.quiet, form=common.log_format)
    queue = common.keys.office(office)
    guard_threads()
    store = open_store(common.connection, lambda event, text: log("warning", event, msg=text))
    try:
        if query == "watch":
            for kv in watch_first(store, queue, common.connection, log):
                holder = None if kv is None else holder_of(kv, log)
                _print_change(office, kv, holder, as_json=as_json)
            return 0
        found = read_queue(store, replace(contenders(queue), limit=1), common.connection).kvs
    finally:
        store.close()
    kv = found[0] if found else None
    holder = None if kv is None else holder_of(kv, log)
    if kv is not None and holder is None:
        raise ConchError(f"cannot tell who holds office {office}: its key is unreadable", code=EXIT_UNAVAILABLE)
    if query == "assert_":
        return _assert(kv, holder, values["min_rev"] or 0, as_json=as_json)
    if kv is None or holder is None:
        return EXIT_NO
    _print_leader(office, kv, holder, as_json=as_json)
    return 0


def _print_leader(office: str, kv: "KeyValue", holder: "Holder", *, as_json: bool) -> None:
    from conch.cli.output import fields, line, put_json, put_line

    if as_json:
        put_json({"office": office, **fields(kv, holder)})
    else:
        put_line(f"{office} {line(kv, holder)}")


def _print_change(office: str, kv: "KeyValue | None", holder: "Holder | None", *, as_json: bool) -> None:
    """Print the new leader, or that the office is vacant; a leader whose key is unreadable has been logged."""
    from conch.cli.output import put_json, put_line

    if kv is not None and holder is not None:
        _print_leader(office, kv, holder, as_json=as_json)
    elif kv is None and as_json:
        put_json({"office": office, "vacant": True})
    elif kv is None:
        put_line(f"{office} -")


def _assert(kv: "KeyValue | None", holder: "Holder | None", min_rev: int, *, as_json: bool) -> int:
    """Return 0 if this host leads with a fencing token of at least `min_rev`, else 1."""
    from conch.cli.output import put_json
    from conch.holder import host_name

    rev, host = (kv.create_revision, holder.host) if kv and holder else (None, None)
    held = host == host_name() and rev is not None and rev >= min_rev
    if as_json:
        put_json({"held": held, "rev": rev, "host": host})
    return 0 if held else EXIT_NO
