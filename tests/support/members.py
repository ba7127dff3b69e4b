"""Changes the members of a running cluster, as an operator does."""

from collections.abc import Sequence

from conch.dev import Cluster, Member, find_etcd, free_ports
from tests.support.conch import wait_for
from tests.support.etcdctl import etcdctl, leader, told


def _of_others(cluster: Cluster, member: Member) -> list[str]:
    return ["--endpoints", ",".join(other.endpoint for other in cluster.members if other is not member)]


def _id(ctl: Sequence[str], member: Member) -> str:
    """Return the number of a member in hexadecimal, as `etcdctl` expects it."""
    lines = etcdctl(*ctl, "member", "list").splitlines()
    (found,) = (line.split(", ")[0] for line in lines if member.peer_url in line)
    return found


def add_learner(cluster: Cluster) -> Member:
    """Add a learner and start it; it may not answer yet."""
    learner = Member("learner", cluster.members[0].folder.with_name("learner"), find_etcd(), *free_ports(2))
    ctl = _of_others(cluster, learner)
    etcdctl(*ctl, "member", "add", learner.name, "--learner", f"--peer-urls={learner.peer_url}")
    cluster.members.append(learner)
    cluster.join(learner)
    return learner


def replace_by_learner(cluster: Cluster, old: Member, name: str, ports: Sequence[int]) -> Member:
    """Stop and remove a member for good, and start a learner in its place, to be `promote`d."""
    ctl = _of_others(cluster, old)
    number = _id(ctl, old)
    new = cluster.replace(old, name, ports)
    # the others may have to elect a leader first
    wait_for(lambda: told(*ctl, "member", "remove", number), "the member is removed", 30)
    # refused until the others have been connected for 5 s
    add = ["member", "add", name, "--learner", f"--peer-urls={new.peer_url}"]
    wait_for(lambda: told(*ctl, *add), "the learner is added", 30)
    cluster.join(new)
    return new


def promote(cluster: Cluster, learner: Member) -> None:
    """Make a learner a voter, once it has caught up."""
    ctl = _of_others(cluster, learner)
    number = _id(ctl, learner)
    wait_for(lambda: told(*ctl, "member", "promote", number), "the learner is promoted", 30)


def move_leader(cluster: Cluster) -> None:
    """Have another member lead."""
    old = wait_for(lambda: leader(cluster), "a leader", 30)
    assert old is not None
    new = next(member for member in cluster.members if member is not old)
    etcdctl("--endpoints", old.endpoint, "move-leader", _id(["--endpoints", old.endpoint], new))
    wait_for(lambda: leader(cluster) not in (None, old), "the other member leads", 30)
