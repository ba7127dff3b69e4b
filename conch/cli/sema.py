"""`conch sema`: run a command only while holding one of N slots, or look at who holds and waits."""

from conch.cli.connection_options import settings
from conch.cli.hold_options import EXIT_CODES, HOLD, refuse_with_look, run_under_hold
from conch.cli.spec import COMMON, Command, Line, Option, Usage, whole
from conch.errors import EXIT_NO, BadInput
from conch.etcd.connection import Settings
from conch.keys import check_name

_FOR_LOOKS = {"name", "max_", "as_json", "who"}
_OPTIONS = (
    Option(("--spread",), "At most one slot a host (CONCH_HOST, else the host name)."),
    Option(("--who",), "Show who holds and who waits, in queue order; exit 1 if there is nobody."),
    Option(("--json",), "With --who: one object a line.", name="as_json"),
)


def run(line: Line) -> int:
    """Do what the line says."""
    values = dict(line.values)
    common = settings(values, line.given)
    if values["who"]:
        refuse_with_look(COMMAND, "--who", Line(values, line.given, line.child), _FOR_LOOKS)
        return _look(common, values["name"], values["max_"], as_json=values["as_json"])
    if values["max_"] is None:
        raise Usage(COMMAND.path, "--max is missing: how many hold at once")
    if not line.child:
        raise Usage(COMMAND.path, "no command: put it after --, or use --who")
    if values["as_json"]:
        raise Usage(COMMAND.path, "--json goes with --who")

    from conch.keeper.hold_spec import QueueSpec

    name, slots = values["name"], values["max_"]
    stage = QueueSpec(common.keys.slots(name, slots), slots, family=common.keys.semaphore(name))
    stages: tuple[QueueSpec, ...] = (stage,)
    if values["spread"]:
        stages = (QueueSpec(common.keys.host(name, slots, _host()), 1), stage)
    what = f"semaphore {name}/{slots}"
    return run_under_hold(common, line.child, name=name, what=what, stages=stages, values=values)


COMMAND = Command(
    "sema",
    "Run CMD only while holding one of N slots of the semaphore NAME: conch sema NAME --max N [OPTIONS] -- CMD...",
    EXIT_CODES,
    (
        Option(("--max",), "How many hold at once, 1 to 1000.", whole(1, 1000), name="max_", metavar="N"),
        *HOLD,
        *_OPTIONS,
        *COMMON,
    ),
    run,
)


def _host() -> str:
    from conch.holder import host_name

    try:
        return check_name(host_name())
    except BadInput as error:
        raise BadInput(f"--spread: the host's name cannot stand in a key, set CONCH_HOST: {error}") from None


def _look(common: Settings, name: str, slots: int | None, *, as_json: bool) -> int:
    from conch.cli.exit import guard_threads
    from conch.cli.output import fields, line, put_json, put_line
    from conch.etcd.open import open_store
    from conch.holds import contenders, holder_of, read_queue
    from conch.keys import ContenderKey
    from conch.log import Log

    log = Log(quiet=common.quiet, form=common.log_format)
    family = common.keys.semaphore(name)
    guard_threads()
    store = open_store(common.connection)
    try:
        asked = contenders(family if slots is None else common.keys.slots(name, slots))
        found = read_queue(store, asked, common.connection).kvs
    finally:
        store.close()
    ranks: dict[int, int] = {}
    for kv in found:
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
