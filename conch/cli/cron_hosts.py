"""`conch cron hosts`, `cordon` and `uncordon`: the hosts that run conchd, and which of them claim ticks."""

import json
import time

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JSON, CronClient
from conch.cli.output import put_json, put_line
from conch.cli.spec import Argument, Command, Kind, Line
from conch.static_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conch.cron.placement import Host

# -- hosts ----------------------------------------------------------------------------------------------------


def run_hosts(line: Line) -> int:
    """List the live daemons, and warn of jobs that none of them may run."""
    from conch.cli.cron_show import pages_of_jobs
    from conch.cli.cron_table import put_table
    from conch.cli.cron_where import Nowhere, live_hosts

    with CronClient(line) as client:
        hosts = live_hosts(client)
        nowhere = Nowhere(client, hosts)
        for jobs in pages_of_jobs(client):
            nowhere.add(jobs)
    if line.values["as_json"]:
        for host in hosts:
            put_json(_host_object(host))
    else:
        now = time.time()
        head = ["HOST", "VERSION", "SINCE", "RUNNING", "CLOCK", "STATE", "TAGS"]
        put_table(head, [_host_cells(host, now) for host in hosts])
    nowhere.warn()
    return 0


def _host_object(host: "Host") -> dict[str, object]:
    fields = host.fields
    return {
        "host": host.name,
        "version": _text(fields.get("version")),
        "since": _text(fields.get("started")),
        "running": _number(fields.get("running")),
        "max_runs": _number(fields.get("max_runs")),
        "tags": sorted(host.tags),
        "clock_ahead_s": _number(fields.get("ahead_s")),
        "cordoned": host.cordoned,
        "draining": host.draining,
    }


def _host_cells(host: "Host", now: float) -> list[str]:
    from conch.cli.cron_table import instant
    from conch.cron.values import seconds_of

    data = _host_object(host)
    ahead, most = data["clock_ahead_s"], data["max_runs"]
    states = [state for state in ("cordoned", "draining") if data[state]]
    return [
        host.name,
        str(data["version"] or "-"),
        instant(int(seconds_of(data["since"])) or None, now),
        "-" if most is None else f"{data['running']}/{most}",
        "-" if ahead is None else f"{ahead:+.1f}s",
        ",".join(states) or "live",
        " ".join(tag for tag in sorted(host.tags) if tag != f"host={host.name}") or "-",
    ]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | float | None:
    sane = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31
    return value if sane else None


HOSTS = Command(
    "cron hosts",
    "List the hosts that run conchd: version, live runs, clock, tags, and whether they claim ticks.\n\n"
    "RUNNING and CLOCK (ahead of the other hosts) are what the host wrote last: at most a minute old.",
    (JSON, *COMMON),
    run_hosts,
    argument=None,
)

# -- cordon and uncordon --------------------------------------------------------------------------------------


def _host(text: str) -> str:
    from conch.keys import check_name

    return check_name(text)


HOST_ARGUMENT = Argument("host", Kind("host", _host), "HOST")


def run_cordon(line: Line) -> int:
    """Have the host claim nothing more."""
    from conch.etcd.store import CreateRevisionIs, Put
    from conch.holder import host_name
    from conch.times import rfc3339

    name = line.values["host"]
    with CronClient(line) as client:
        key = client.keys.cron("cordon", name).encode()
        value = json.dumps({"by": host_name(), "at": rfc3339(time.time())}).encode()
        written = client.store.txn([CreateRevisionIs(key, 0)], [Put(key, value)], timeout_s=client.timeout_s)
        _warn_of_host(client, name)
    put_line(f"{name} is cordoned: it claims nothing more" if written.succeeded else f"{name} was cordoned already")
    return 0


def run_uncordon(line: Line) -> int:
    """Have the host claim ticks again."""
    from conch.etcd.store import Delete, Range

    name = line.values["host"]
    with CronClient(line) as client:
        key = client.keys.cron("cordon", name).encode()
        found = client.store.txn([], [Range(key, keys_only=True), Delete(key)], timeout_s=client.timeout_s).ranges[0]
        _warn_of_host(client, name)
    put_line(f"{name} claims ticks again" if found.kvs else f"{name} was not cordoned")
    return 0


def _warn_of_host(client: CronClient, name: str) -> None:
    from conch.cli.cron_where import live_hosts

    hosts = {host.name: host for host in live_hosts(client)}
    if name not in hosts:
        client.log("warning", "unknown-host", host=name, msg="no live conchd has this name")
    elif not hosts[name].can:
        client.log("warning", "too-old", host=name, msg="its conchd is of a release that knows no cordon")


CORDON = Command(
    "cron cordon",
    "Keep a host from claiming ticks, until `conch cron uncordon`. What runs there continues.",
    COMMON,
    run_cordon,
    HOST_ARGUMENT,
)
UNCORDON = Command(
    "cron uncordon",
    "Let a host claim ticks again.",
    COMMON,
    run_uncordon,
    HOST_ARGUMENT,
)
