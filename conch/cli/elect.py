"""`conch elect`: run a command only while being the leader of an office, or look at who is."""

from conch.cli.connection_options import settings
from conch.cli.hold_options import EXIT_CODES, HOLD, refuse_with_look, run_under_hold
from conch.cli.spec import COMMON, POSITIVE_DURATION, Command, Line, Option, Usage, whole
from conch.errors import EXIT_NO, EXIT_UNAVAILABLE, ConchError
from conch.etcd.connection import Settings
from conch.record import replace

_LOOKS = ("who", "watch", "assert_")
_FOR_LOOKS = {"name", "as_json", "min_rev", *_LOOKS}
_OPTIONS = (
    Option(("--restart",), "Queue and run again for ever; only a signal ends it."),
    Option(("--restart-min",), "Shortest back-off between runs.", POSITIVE_DURATION, default="1s"),
    Option(("--restart-max",), "Longest back-off between runs.", POSITIVE_DURATION, default="30s"),
    Option(
        ("--restart-stable",),
        "A child that lived this long sets the back-off back to the start.",
        POSITIVE_DURATION,
        default="60s",
    ),
    Option(("--who",), "Show the leader; exit 1 if the office is vacant."),
    Option(("--watch",), "Show the leader at each change, the present one first."),
    Option(("--assert",), "Exit 0 if this host leads, 1 if not, 69 if unknown.", name="assert_"),
    Option(("--min-rev",), "With --assert: and its fencing token is >= N.", whole(0, 2**63 - 1), metavar="N"),
    Option(("--json",), "With --who, --watch, --assert: one object a line.", name="as_json"),
)


def run(line: Line) -> int:
    """Do what the line says."""
    values = dict(line.values)
    looks = [look for look in _LOOKS if values[look]]
    common = settings(values, line.given)
    if looks:
        _check_look(looks, line, values)
        return _look(common, values["name"], looks[0], as_json=values["as_json"], min_rev=values["min_rev"])
    if not line.child:
        raise Usage(COMMAND.path, "no command: put it after --, or use --who, --watch or --assert")
    if values["as_json"] or values["min_rev"] is not None:
        raise Usage(COMMAND.path, "--json and --min-rev go with --who, --watch or --assert")
    if values["restart"] and (values["nonblock"] or values["wait"] is not None):
        raise Usage(COMMAND.path, "--restart waits for ever: it excludes --wait and --nonblock")
    if values["restart_min"] > values["restart_max"]:
        raise Usage(COMMAND.path, "--restart-min is more than --restart-max")
    from conch.keeper.hold_spec import QueueSpec

    return run_under_hold(
        common,
        line.child,
        name=values["name"],
        what=f"office {values['name']}",
        stages=(QueueSpec(common.keys.office(values["name"]), 1),),
        values=values,
    )


COMMAND = Command(
    "elect",
    "Run CMD only while being the leader of the office NAME: conch elect NAME [OPTIONS] -- CMD...",
    EXIT_CODES,
    (*HOLD, *_OPTIONS, *COMMON),
    run,
)


def _check_look(looks: list[str], line: Line, values: dict[str, object]) -> None:
    if len(looks) > 1:
        raise Usage(COMMAND.path, "--who, --watch and --assert exclude each other")
    if values["min_rev"] is not None and looks != ["assert_"]:
        raise Usage(COMMAND.path, "--min-rev goes with --assert")
    refuse_with_look(COMMAND, f"--{looks[0].rstrip('_')}", Line(values, line.given, line.child), _FOR_LOOKS)


def _look(common: Settings, office: str, look: str, *, as_json: bool, min_rev: int | None) -> int:
    from conch.cli.exit import guard_threads
    from conch.cli.output import fields, line, put_json, put_line
    from conch.etcd.open import open_store
    from conch.holder import host_name
    from conch.holds import contenders, holder_of, read_queue, watch_first
    from conch.log import Log

    log = Log(quiet=common.quiet, form=common.log_format)
    queue = common.keys.office(office)
    guard_threads()
    store = open_store(common.connection, lambda event, text: log("warning", event, msg=text))
    try:
        if look == "watch":
            for kv in watch_first(store, queue, common.connection, log):
                holder = None if kv is None else holder_of(kv, log)
                if kv is None:
                    put_json({"office": office, "vacant": True}) if as_json else put_line(f"{office} -")
                elif holder is not None:
                    shown = {"office": office, **fields(kv, holder)}
                    put_json(shown) if as_json else put_line(f"{office} {line(kv, holder)}")
            return 0
        found = read_queue(store, replace(contenders(queue), limit=1), common.connection).kvs
    finally:
        store.close()
    kv = found[0] if found else None
    holder = None if kv is None else holder_of(kv, log)
    if kv is not None and holder is None:
        raise ConchError(f"cannot tell who holds office {office}: its key is unreadable", code=EXIT_UNAVAILABLE)
    if look == "assert_":
        rev, host = (kv.create_revision, holder.host) if kv and holder else (None, None)
        held = host == host_name() and rev is not None and rev >= (min_rev or 0)
        if as_json:
            put_json({"held": held, "rev": rev, "host": host})
        return 0 if held else EXIT_NO
    if kv is None or holder is None:
        return EXIT_NO
    if as_json:
        put_json({"office": office, **fields(kv, holder)})
    else:
        put_line(f"{office} {line(kv, holder)}")
    return 0
