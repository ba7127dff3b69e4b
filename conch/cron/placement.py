"""Where a job may run: which hosts may claim its ticks, by their registrations, and why the others may not.

Everybody asks the same functions: the daemons for their ranking, plans and claims, the commands for their warnings.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from conch.cron.features import CAN
from conch.cron.job import Job
from conch.cron.values import fields_of
from conch.etcd.store import KeyValue
from conch.keys import CordonKey, Keys, NodeKey
from conch.record import Record

# How many jobs and hosts a message names.
_NAMED = 5


class Place(Enum):
    """What a daemon does about the ticks of a job."""

    CLAIM = "claim"  # it may claim them
    REPORT = "report"  # no live host may; this one reports them as missed
    NONE = "none"  # other hosts may, or report them


class Host(Record):
    """A live conchd as its registration describes it: `tags`, and the features of jobs that it `can` run.

    A release that knows no features can run none that needs one. `fields` are those of the registration.
    """

    name: str
    tags: frozenset[str]
    can: frozenset[str]
    draining: bool = False
    cordoned: bool = False
    fields: Mapping[str, Any] = {}


def host_of(name: str, fields: Mapping[str, Any], *, cordoned: bool) -> Host:
    """Read a registration, whose fields anyone may have written; what is unreadable counts as absent.

    A release that knows no features knows no cordon either: it goes on claiming.
    """
    can = _texts(fields.get("can"))
    tags = _texts(fields.get("tags")) | {f"host={name}"}
    return Host(name, tags, can, fields.get("draining") is True, cordoned and bool(can), fields)


def this_host(name: str, tags: Iterable[str], *, cordoned: bool) -> Host:
    """Describe a daemon of this release."""
    return Host(name, frozenset(tags) | {f"host={name}"}, CAN, cordoned=cordoned)


def _texts(value: object) -> frozenset[str]:
    return frozenset(text for text in value if isinstance(text, str)) if isinstance(value, list) else frozenset()


def hosts_of(keys: Keys, nodes: Iterable[KeyValue], cordons: Iterable[KeyValue]) -> list[Host]:
    """Return the live hosts, by name, from the keys of registrations and cordons."""
    cordoned = {key.host for kv in cordons if isinstance(key := keys.parse(kv.key), CordonKey)}
    found = [(key.host, kv) for kv in nodes if isinstance(key := keys.parse(kv.key), NodeKey)]
    return [host_of(name, fields_of(kv.value), cordoned=name in cordoned) for name, kv in sorted(found)]


def why_not(job: Job, host: Host) -> str:
    """Return why a host may not claim ticks of a job; empty if it may."""
    missing = [tag for tag in job.on if tag not in host.tags]
    if missing:
        return f"it has not the tag{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
    unknown = [feature for feature in job.needs if feature not in host.can]
    if unknown:
        return f"it is too old for {', '.join(unknown)}"
    if host.cordoned:
        return "it is cordoned"
    return "it is draining" if host.draining else ""


def why_nowhere(job: Job, hosts: Sequence[Host]) -> str:
    """Return why none of the live hosts may claim ticks of a job; empty if one may."""
    if not hosts:
        return "no conchd is alive"
    if any(not why_not(job, host) for host in hosts):
        return ""
    tagged = [host for host in hosts if host.tags.issuperset(job.on)]
    if not tagged:
        return f"no live conchd has the tag{'s' if len(job.on) > 1 else ''} {', '.join(job.on)}"
    reasons = (
        (f"too old for {', '.join(job.needs)}", lambda host: not host.can.issuperset(job.needs)),
        ("cordoned", lambda host: host.cordoned),
        ("draining", lambda host: host.draining),
    )
    return "; ".join(_those(tagged, what, holds) for what, holds in reasons if any(map(holds, tagged)))


def too_old(job: Job, hosts: Sequence[Host]) -> str:
    """Return which hosts with the job's tags are too old for it, and what for; empty if none is."""
    old = [host for host in hosts if host.tags.issuperset(job.on) and not host.can.issuperset(job.needs)]
    unknown = sorted({feature for host in old for feature in job.needs if feature not in host.can})
    return _those(old, f"too old for {', '.join(unknown)}", lambda _: True) if old else ""


def _those(hosts: Sequence[Host], what: str, holds: Callable[[Host], bool]) -> str:
    found = [host.name for host in hosts if holds(host)]
    return f"host{'s' if len(found) > 1 else ''} {named(found)} {'are' if len(found) > 1 else 'is'} {what}"


def named(names: Sequence[str]) -> str:
    """Return names for a message: a few of them, and how many others there are."""
    others = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {others} more" if others > 0 else "")
