"""`conch cron logs`: what runs of a job printed last, as far as their results keep it."""

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JSON, CronClient
from conch.cli.cron_outcome import printable
from conch.cli.cron_run import TICK
from conch.cli.output import put_json, put_line
from conch.cli.spec import NAME_ARGUMENT, Command, Line, Option, int_range
from conch.errors import EXIT_NO, ConchError
from conch.log import escape
from conch.static_typing import Any, Mapping

# How many results one request reads: each may keep 4 KiB.
_PAGE = 50


def run(line: Line) -> int:
    """Print the kept outputs, the oldest first; exit 1 if none is kept."""
    name, tick, last = line.values["name"], line.values["tick"], line.values["last"]
    with CronClient(line) as client:
        found = _of_tick(client, name, tick) if tick is not None else _newest(client, name, last)
        if not found:
            client.read_job(name)
            which = "this tick" if tick is not None else name
            raise ConchError(f"no output of {which} is kept: see --keep-output", code=EXIT_NO)
    for tick, result in found:
        _put(name, tick, result, with_head=len(found) > 1, as_json=line.values["as_json"])
    return 0


def _of_tick(client: CronClient, name: str, tick: int) -> list[tuple[int, Mapping[str, Any]]]:
    from conch.cron.values import fields_of
    from conch.etcd.store import Range

    kvs = client.store.range(Range(client.keys.cron("result", name, tick).encode()), timeout_s=client.timeout_s).kvs
    return [(tick, fields) for kv in kvs if (fields := fields_of(kv.value)).get("output")]


def _newest(client: CronClient, name: str, last: int) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the newest results that keep an output, the oldest of them first."""
    from conch.cron.values import fields_of
    from conch.cron.views import newest
    from conch.record import replace

    found: list[tuple[int, Mapping[str, Any]]] = []
    what = newest(client.keys, "result", name, _PAGE)
    while len(found) < last:
        page = client.store.range(what, timeout_s=client.timeout_s)
        for kv in page.kvs:
            key, fields = client.keys.tick_of(kv.key), fields_of(kv.value)
            if key is not None and isinstance(fields.get("output"), str) and fields["output"]:
                found.append((key.tick, fields))
        if page.count <= len(page.kvs) or not page.kvs:
            break
        what = replace(what, end=page.kvs[-1].key)
    return found[:last][::-1]


def _put(name: str, tick: int, result: Mapping[str, Any], *, with_head: bool, as_json: bool) -> None:
    from conch.times import rfc3339

    output = str(result["output"])
    if as_json:
        fields = {field: result.get(field) for field in ("state", "exit", "node", "output")}
        put_json({"name": name, "tick": rfc3339(tick), "tick_unix": tick, **fields})
        return
    if with_head:
        code = "" if result.get("exit") is None else f" {result['exit']}"
        put_line(escape(f"==> {rfc3339(tick)} {result.get('state')}{code} on {result.get('node')} <=="))
    put_line(printable(output).removesuffix("\n"))


LOGS = Command(
    "cron logs",
    "Show the end of what runs of a job printed.\n\nA result keeps the last 4 KiB of a run that failed; see "
    "--keep-output of conch cron add.",
    (
        TICK,
        Option(("--last",), "Show the newest N outputs.", int_range(1, 1000), metavar="N", default="1"),
        JSON,
        *COMMON,
    ),
    run,
    NAME_ARGUMENT,
    examples=(("conch cron logs backup --last 3", "the outputs of the last three runs that failed"),),
)
