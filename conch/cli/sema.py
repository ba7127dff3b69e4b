"""`conch sema`: run a command only while holding one of N slots, or look at who holds and waits."""

import re
from typing import Any

import click

from conch.cli.options import NAME, common_options, settings, whole
from conch.cli.wrapper import EXIT_CODES, WrapperCommand, hold_options, refuse_with_look, run_under_hold
from conch.config import Settings
from conch.errors import EXIT_NO, BadInput
from conch.names import check_name

_CAPACITY = re.compile(r"[1-9][0-9]{0,3}")
_FOR_LOOKS = {"name", "max_", "as_json", "who"}


@click.command(
    "sema",
    cls=WrapperCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
@click.argument("name", type=NAME)
@click.option("--max", "max_", type=whole(1, 1000), metavar="N", help="How many hold at once, 1 to 1000.")
@hold_options
@click.option("--spread", is_flag=True, help="At most one slot a host (CONCH_HOST, else the host name).")
@click.option("--who", is_flag=True, help="Show who holds and who waits, in queue order; exit 1 if there is nobody.")
@click.option("--json", "as_json", is_flag=True, help="With --who: one object a line.")
@common_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> int:
    """Run CMD only while holding one of N slots of the semaphore NAME: conch sema NAME --max N [OPTIONS] -- CMD..."""
    child: list[str] | None = context.obj
    common = settings(values)
    if values["who"]:
        refuse_with_look(context, "--who", values, _FOR_LOOKS)
        return _look(common, values["name"], values["max_"], as_json=values["as_json"])
    if values["max_"] is None:
        raise click.UsageError("--max is missing: how many hold at once", context)
    if not child:
        raise click.UsageError("no command: put it after --, or use --who", context)
    if values["as_json"]:
        raise click.UsageError("--json goes with --who", context)

    from conch.keeper.job import Stage

    name, slots = values["name"], values["max_"]
    stage = Stage(common.keys.slots(name, slots), slots, family=common.keys.semaphore(name))
    stages: tuple[Stage, ...] = (stage,)
    if values["spread"]:
        stages = (Stage(common.keys.host(name, slots, _host()), 1), stage)
    what = f"semaphore {name}/{slots}"
    return run_under_hold(common, child, name=name, what=what, stages=stages, values=values)


def _host() -> str:
    from conch.holder import host_name

    try:
        return check_name(host_name())
    except BadInput as error:
        raise BadInput(f"--spread: the host's name cannot stand in a key, set CONCH_HOST: {error}") from None


def _look(common: Settings, name: str, slots: int | None, *, as_json: bool) -> int:
    from conch.cli.look import everyone, fields, holder_of, line, put_json, put_line
    from conch.etcd.connect import open_store
    from conch.log import Log

    log = Log(quiet=common.quiet, form=common.log_format)
    family = common.keys.semaphore(name)
    store = open_store(common.connection)
    try:
        asked = everyone(family if slots is None else common.keys.slots(name, slots))
        timeout_s = min(common.connection.dial_timeout_s, common.connection.command_timeout_s)
        found = store.range(asked, timeout_s=timeout_s).kvs
    finally:
        store.close()
    ranks: dict[int, int] = {}
    for kv in found:
        capacity = kv.key.decode("utf-8", "replace").removeprefix(family).split("/")[0]
        if not _CAPACITY.fullmatch(capacity):
            log("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg="no capacity in the key")
            continue
        limit = int(capacity)
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
