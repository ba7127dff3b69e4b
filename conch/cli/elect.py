"""`conch elect`: run a command only while being the leader of an office, or look at who is."""

from typing import Any

import click

from conch.cli.options import NAME, POSITIVE_DURATION, common_options, settings, whole
from conch.cli.wrapper import EXIT_CODES, WrapperCommand, hold_options, refuse_with_look, run_under_hold
from conch.config import Settings
from conch.errors import EXIT_NO, EXIT_UNAVAILABLE, ConchError
from conch.record import replace

_LOOKS = ("who", "watch", "assert_")
_FOR_LOOKS = {"name", "as_json", "min_rev", *_LOOKS}


@click.command(
    "elect",
    cls=WrapperCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
@click.argument("name", type=NAME)
@hold_options
@click.option("--restart", is_flag=True, help="Queue and run again for ever; only a signal ends it.")
@click.option(
    "--restart-min",
    type=POSITIVE_DURATION,
    default="1s",
    show_default=True,
    help="Shortest back-off between runs.",
)
@click.option(
    "--restart-max",
    type=POSITIVE_DURATION,
    default="30s",
    show_default=True,
    help="Longest back-off between runs.",
)
@click.option(
    "--restart-stable",
    type=POSITIVE_DURATION,
    default="60s",
    show_default=True,
    help="A child that lived this long sets the back-off back to the start.",
)
@click.option("--who", is_flag=True, help="Show the leader; exit 1 if the office is vacant.")
@click.option("--watch", is_flag=True, help="Show the leader at each change, the present one first.")
@click.option("--assert", "assert_", is_flag=True, help="Exit 0 if this host leads, 1 if not, 69 if unknown.")
@click.option("--min-rev", type=whole(0, 2**63 - 1), metavar="N", help="With --assert: and its fencing token is >= N.")
@click.option("--json", "as_json", is_flag=True, help="With --who, --watch, --assert: one object a line.")
@common_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> int:
    """Run CMD only while being the leader of the office NAME: conch elect NAME [OPTIONS] -- CMD..."""
    looks = [look for look in _LOOKS if values[look]]
    child: list[str] | None = context.obj
    common = settings(values)
    if looks:
        _check_look(context, looks, values)
        return _look(common, values["name"], looks[0], as_json=values["as_json"], min_rev=values["min_rev"])
    if not child:
        raise click.UsageError("no command: put it after --, or use --who, --watch or --assert", context)
    if values["as_json"] or values["min_rev"] is not None:
        raise click.UsageError("--json and --min-rev go with --who, --watch or --assert", context)
    if values["restart"] and (values["nonblock"] or values["wait"] is not None):
        raise click.UsageError("--restart waits for ever: it excludes --wait and --nonblock", context)
    if values["restart_min"] > values["restart_max"]:
        raise click.UsageError("--restart-min is more than --restart-max", context)
    from conch.keeper.job import Stage

    return run_under_hold(
        common,
        child,
        name=values["name"],
        what=f"office {values['name']}",
        stages=(Stage(common.keys.office(values["name"]), 1),),
        values=values,
    )


def _check_look(context: click.Context, looks: list[str], values: dict[str, Any]) -> None:
    if len(looks) > 1:
        raise click.UsageError("--who, --watch and --assert exclude each other", context)
    if values["min_rev"] is not None and looks != ["assert_"]:
        raise click.UsageError("--min-rev goes with --assert", context)
    refuse_with_look(context, f"--{looks[0].rstrip('_')}", values, _FOR_LOOKS)


def _look(common: Settings, office: str, look: str, *, as_json: bool, min_rev: int | None) -> int:
    from conch.cli.look import everyone, fields, first_in_line, holder_of, line, put_json, put_line
    from conch.etcd.connect import open_store
    from conch.holder import host_name
    from conch.log import Log

    log = Log(quiet=common.quiet, form=common.log_format)
    queue = common.keys.office(office)
    dial_s, command_s = common.connection.dial_timeout_s, common.connection.command_timeout_s
    store = open_store(common.connection)
    try:
        if look == "watch":
            for kv in first_in_line(store, queue, dial_timeout_s=dial_s, command_timeout_s=command_s, log=log):
                holder = None if kv is None else holder_of(kv, log)
                if kv is None:
                    put_json({"office": office, "vacant": True}) if as_json else put_line(f"{office} -")
                elif holder is not None:
                    shown = {"office": office, **fields(kv, holder)}
                    put_json(shown) if as_json else put_line(f"{office} {line(kv, holder)}")
            return 0
        found = store.range(replace(everyone(queue), limit=1), timeout_s=min(dial_s, command_s)).kvs
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
