"""Waits for the result of a tick, and says how it ended as an exit code."""

import time

from conch.cli.cron_client import CronClient
from conch.core import clock
from conch.cron.values import fields_of
from conch.cron.views import everything
from conch.errors import EXIT_LOST, EXIT_NOT_ACQUIRED, EXIT_UNAVAILABLE, ConchError
from conch.etcd.store import Compacted, KeyValue, Range, Unreachable
from conch.keys import Keys, NodeKey
from conch.log import escape
from conch.record import Record, replace
from conch.static_typing import Any, Mapping

EXIT_TIMEOUT = 124  # as timeout(1)
# How long a host's registration may be gone before its run counts as lost, in seconds: it may register anew.
_GONE_S = 15.0
_RETRY_S = 0.2
_LOOK_S = 1.0


class Claimed(Record):
    """A tick that a host has claimed; `each` if it is one of those that run on every host."""

    tick: int
    host: str
    each: bool

    def key(self, keys: Keys, kind: str, name: str) -> bytes:
        """Return its key of a kind, `fire` or `result`."""
        return keys.cron(kind, name, self.tick, *((self.host,) if self.each else ())).encode()


def await_result(client: CronClient, name: str, claimed: Claimed, until: float | None = None) -> Mapping[str, Any]:
    """Return the fields of a tick's result once it is there.

    Raises `ConchError` with exit code 69 if its host is gone, or 75 if there is none by `until` (CLOCK_BOOTTIME). etcd
    is read at each change, and may be away in between.
    """
    host = claimed.host
    key, node = claimed.key(client.keys, "result", name), client.keys.node(host).encode()
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


def claims_of(client: CronClient, name: str, tick: int) -> list[Claimed]:
    """Return who has claimed a tick: one host, or every host of a job that runs on each."""
    key = client.keys.cron("fire", name, tick)
    reads = [Range(key.encode()), everything(f"{key}/")]
    answers = client.store.txn([], reads, timeout_s=client.timeout_s).ranges
    return [claimed for found in answers for kv in found.kvs if (claimed := _claimed(client, kv)) is not None]


def _claimed(client: CronClient, kv: KeyValue) -> Claimed | None:
    key, host = client.keys.tick_of(kv.key), fields_of(kv.value).get("host")
    return None if key is None or not isinstance(host, str) else Claimed(key.tick, key.host or host, bool(key.host))


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


def live_claims(client: CronClient, name: str) -> list[Claimed]:
    """Return the claims of a job that have no result, and whose hosts live."""
    reads = [everything(client.keys.ticks(kind, name)) for kind in ("fire", "result")]
    reads[1] = replace(reads[1], keys_only=True)
    nodes = everything(client.keys.node())
    claims, results, hosts = client.store.txn([], [*reads, nodes], timeout_s=client.timeout_s).ranges
    alive = {key.host for kv in hosts.kvs if isinstance(key := client.keys.parse(kv.key), NodeKey)}
    ended = {kv.key for kv in results.kvs}
    found = [claimed for kv in claims.kvs if (claimed := _claimed(client, kv)) is not None]
    return [
        claimed for claimed in found if claimed.host in alive and claimed.key(client.keys, "result", name) not in ended
    ]


def printable(output: str) -> str:
    """Return what a run printed with its control characters as escapes; lines and tabs stay."""
    return "\n".join("\t".join(map(escape, text.split("\t"))) for text in output.split("\n"))
