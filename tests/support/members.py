"""Changes the members of a running cluster, as an operator does."""

from collections.abc import Sequence

from conch.dev import Cluster, Member, find_etcd, free_ports
from tests.support.conch import wait_for
from tests.support.etcdctl import etcdctl, told


def _of_others(cluster: Cluster, member: Member) -> list[str]:
    return ["--endpoints", ",".join(one.endpoint for one in cluster.members if one is not member)]


def _id(ctl: Sequence[str], member: Member) -> str:
    """The number that the cluster knows a member by: `etcdctl` takes it in hexadecimal."""
    lines = etcdctl(*ctl, "member", "list").splitlines()
    (found,) = (line.split(", ")[0] for line in lines if member.peer_url in line)
    return found


def add_learner(cluster: Cluster) -> Member:
    """One member more, that only learns; started, and perhaps not answering yet."""
    learner = Member("learner", cluster.members[0].folder.with_name("learner"), find_etcd(), *free_ports(2))
    ctl = _of_others(cluster, learner)
    etcdctl(*ctl, "member", "add", learner.name, "--learner", f"--peer-urls={learner.peer_url}")
    cluster.members.append(learner)
    cluster.join(learner)
    return learner


def replace_by_learner(cluster: Cluster, old: Member, name: str, ports: Sequence[int]) -> Member:
    """Stop and remove a member for good, and start a new one that only learns; `promote` it."""
    ctl = _of_others(cluster, old)
    number = _id(ctl, old)
    new = cluster.replace(old, name, ports)
    # the others may have to elect a leader first
    wait_for(lambda: told(*ctl, "member", "remove", number), "the member is removed", 30)
    # refused for as long as the others have not been connected for 5 s
    add = ["member", "add", name, "--learner", f"--peer-urls={new.peer_url}"]
    wait_for(lambda: told(*ctl, *add), "the learner is added", 30)
    cluster.join(new)
    return new


def promote(cluster: Cluster, learner: Member) -> None:
    """Make a voter of it, once it has learnt enough."""
    ctl = _of_others(cluster, learner)
    number = _id(ctl, learner)
    wait_for(lambda: told(*ctl, "member", "promote", number), "the learner is promoted", 30)
