"""Waits for the result of a tick, and says how it ended as an exit code."""

import time

from conch.cli.cron_client import CronClient
from conch.core import clock
from conch.cron.values import fields_of
from conch.cron.views import everything
from conch.errors import EXIT_LOST, EXIT_NOT_ACQUIRED, EXIT_UNAVAILABLE, ConchError
from conch.etcd.store import Compacted, Range, Unreachable
from conch.log import escape
from conch.record import replace
from conch.static_typing import Any, Mapping

EXIT_TIMEOUT = 124  # as timeout(1)
# How long a host's registration may be gone before its run counts as lost, in seconds: it may register anew.
_GONE_S = 15.0
_RETRY_S = 0.2
_LOOK_S = 1.0


def await_result(client: CronClient, name: str, tick: int, host: str, until: float | None = None) -> Mapping[str, Any]:
    """Return the fields of a tick's result once it is there.

    Raises `ConchError` with exit code 69 if its host is gone, or if there is none by `until` (CLOCK_BOOTTIME). What is
    in etcd is read at each change; etcd may be away in between.
    """
    key, node = client.keys.cron("result", name, tick).encode(), client.keys.node(host).encode()
    gone_since: float | None = None
    while True:
        try:
            answer = client.store.txn([], [Range(key), Range(node)], timeout_s=client.timeout_s)
            found, registered = (read.kvs for read in answer.ranges)
            if found:
                return fields_of(found[0].value)
            gone_since = None if registered else (gone_since or clock.now())
            if gone_since is not None and clock.now() - gone_since > _GONE_S:
                text = f"conchd on {host} is gone: what became of {name} is recorded when it is back"
                raise ConchError(text, code=EXIT_UNAVAILABLE)
            if gone_since is None and until is None:
                _await_change(client, (key, node), answer.header.revision)
            else:
                time.sleep(_LOOK_S)
        except (Unreachable, Compacted):
            time.sleep(_RETRY_S)
        if until is not None and clock.now() > until:
            raise ConchError(f"no answer from conchd on {host}", code=EXIT_NOT_ACQUIRED)


def _await_change(client: CronClient, keys: tuple[bytes, ...], revision: int) -> None:
    watch = client.store.watch([(Range(key), revision + 1) for key in keys])
    for _ in watch:
        break
    watch.cancel()


def host_of(client: CronClient, name: str, tick: int) -> str:
    """Return which host has claimed a tick; empty if the claim is gone."""
    found = client.store.range(Range(client.keys.cron("fire", name, tick).encode()), timeout_s=client.timeout_s).kvs
    return str(fields_of(found[0].value).get("host", "")) if found else ""


def exit_code(result: Mapping[str, Any]) -> int:
    """Return the run's own exit code; what ended without one gets the code that a shell user expects."""
    code, state = result.get("exit"), result.get("state")
    if state == "ok":
        return 0
    if isinstance(code, int) and 0 < code < 256:
        return code
    if state == "timeout":
        return EXIT_TIMEOUT
    return EXIT_NOT_ACQUIRED if state == "skipped" else EXIT_LOST


def live_ticks(client: CronClient, name: str) -> dict[int, str]:
    """Return the ticks of a job that are claimed and have no result, each with its host, if that lives."""
    reads = [everything(client.keys.ticks(kind, name)) for kind in ("fire", "result")]
    reads[1] = replace(reads[1], keys_only=True)
    nodes = everything(client.keys.node())
    claims, results, hosts = client.store.txn([], [*reads, nodes], timeout_s=client.timeout_s).ranges
    alive = {kv.key.decode("utf-8", "replace").rpartition("/")[2] for kv in hosts.kvs}
    ended = {key.tick for kv in results.kvs if (key := client.keys.tick_of(kv.key)) is not None}
    found = {}
    for kv in claims.kvs:
        key, host = client.keys.tick_of(kv.key), str(fields_of(kv.value).get("host", ""))
        if key is not None and key.tick not in ended and host in alive:
            found[key.tick] = host
    return found


def printable(output: str) -> str:
    """Return what a run printed with its control characters as escapes; lines and tabs stay."""
    return "\n".join("\t".join(map(escape, text.split("\t"))) for text in output.split("\n"))
