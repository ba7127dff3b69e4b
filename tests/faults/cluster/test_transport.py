"""How conch calls etcd: through the gateway if there is one, otherwise over gRPC."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from conch.dev import Cluster, Tls
from tests.support.conch import Bench, wait_for
from tests.support.etcdctl import etcdctl
from tests.support.fronts import Balancer, Front, GrpcOnly, NoWatches, WholeRequests
from tests.support.metrics import difference, requests
from tests.support.proxy import Proxy


@pytest.fixture
def without_gateway(tmp_path: Path) -> Iterator[Bench]:
    """An etcd whose gateway is switched off."""
    with Cluster(arguments=("--enable-grpc-gateway=false",)) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        yield bench
        bench.finish()
        bench.check_etcd()


AUTO = {"CONCH_TRANSPORT": "auto"}


def test_auto_falls_back_to_grpc_where_the_gateway_is_off(without_gateway: Bench) -> None:
    """Holding, queueing, handing over and queries work as usual."""
    bench = without_gateway
    first = bench.hold("o", env=AUTO)
    second = bench.queue("o", command="echo ran >> ran", env=AUTO)
    assert bench.run("elect", "o", "--who", env=AUTO).returncode == 0
    watch = bench.start("elect", "o", "--watch", env=AUTO)
    wait_for(lambda: watch.out.count("\n") >= 1, "the watch shows the leader")
    first.signal(15)
    assert second.wait() == 0
    wait_for(lambda: watch.out.endswith("o -\n"), "the watch shows that it is vacant")
    bench.run("cron", "add", "j", "--schedule", "@daily", "--", "true", env=AUTO)
    assert "j" in bench.run("cron", "ls", env=AUTO).stdout
    bench.run("cron", "rm", "j", env=AUTO)


def test_http_says_that_the_gateway_is_off(without_gateway: Bench) -> None:
    """It prints one line and exits 69."""
    done = without_gateway.run("elect", "o", "--transport", "http", "--quiet", "--", "true")
    assert done.returncode == 69
    assert "gateway" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("transport", "speaks_http2"), [("auto", False), ("http", False), ("grpc", True)])
def test_transport_is_the_requested_one(conch: Bench, transport: str, speaks_http2: bool) -> None:
    """The wire shows this, and etcd serves the same requests for each."""
    proxy = Proxy(conch.endpoints)
    before = requests(conch.endpoints)
    done = conch.run("elect", "o", "--endpoints", proxy.endpoint, "--transport", transport, "--", "true")
    assert done.returncode == 0
    made = difference(before, requests(conch.endpoints))
    assert {"LeaseGrant", "Txn", "LeaseRevoke"} <= made.keys()
    assert ("Txn" in proxy.calls) is True
    assert proxy.http2 is speaks_http2
    proxy.close()


def test_unknown_transport_is_bad_input(conch: Bench) -> None:
    """conch exits 64."""
    assert conch.run("elect", "o", "--transport", "udp", "--", "true").returncode == 64


def test_auto_falls_back_to_grpc_where_etcd_identifies_us_by_certificate(tmp_path: Path) -> None:
    """Through the gateway etcd does not see a client's certificate; over gRPC its common name is the user."""
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    paths = {}
    for who, made in (
        ("server", authority.issue_cert("127.0.0.1", "localhost")),
        ("root", authority.issue_cert("root", common_name="root")),
        ("conch", authority.issue_cert("conch", common_name="conch")),
    ):
        paths[who] = (str(tmp_path / f"{who}.pem"), str(tmp_path / f"{who}.key"))
        made.private_key_pem.write_to_path(paths[who][1])
        Path(paths[who][0]).write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    tls = Tls(str(ca), *paths["server"], str(ca), *paths["root"])
    with Cluster(tls=tls) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)

        def admin(*words: str) -> str:
            cert, key = paths["root"]
            return etcdctl("--endpoints", bench.endpoints, "--cacert", str(ca), "--cert", cert, "--key", key, *words)

        for user in ("root", "conch"):
            admin("user", "add", user, "--no-password")
        admin("role", "add", "conch")
        admin("role", "grant-permission", "conch", "--prefix=true", "readwrite", bench.prefix)
        admin("user", "grant-role", "root", "root")
        admin("user", "grant-role", "conch", "conch")
        admin("auth", "enable")
        cert, key = paths["conch"]
        env = {"CONCH_CACERT": str(ca), "CONCH_CERT": cert, "CONCH_KEY": key, **AUTO}
        done = bench.run("elect", "o", "--", "true", env=env)
        assert done.returncode == 0, done.stderr
        assert bench.run("elect", "o", "--who", env=env).returncode == 1
        refused = bench.run("elect", "o", "--quiet", "--", "true", env={**env, "CONCH_TRANSPORT": "http"})
        assert refused.returncode == 69
        assert "common name" in refused.stderr
        bench.finish()


@pytest.fixture
def fronts() -> Iterator[list[Front]]:
    """The fronts of a test; they are closed afterwards."""
    made: list[Front] = []
    yield made
    for one in made:
        one.close()


def test_auto_falls_back_to_grpc_where_the_port_speaks_nothing_else(conch: Bench, fronts: list[Front]) -> None:
    """Queries and commands work; with `--transport http` conch exits 69."""
    front = GrpcOnly(conch.endpoints)
    fronts.append(front)
    env = {**AUTO, "CONCH_ENDPOINTS": front.endpoint}
    assert conch.run("elect", "o", "--who", env=env).returncode == 1
    assert conch.run("elect", "o", "--", "true", env=env).returncode == 0
    strict = conch.run(
        "elect", "o", "--transport", "http", "--dial-timeout", "1s", "--endpoints", front.endpoint, "--", "true"
    )
    assert strict.returncode == 69


def test_auto_falls_back_to_grpc_where_etcd_checks_host_names_over_http(tmp_path: Path) -> None:
    """`--host-whitelist` is only for HTTP."""
    with Cluster(arguments=("--host-whitelist", "etcd.example")) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        assert bench.run("elect", "o", "--", "true", env=AUTO).returncode == 0
        assert bench.run("elect", "o", "--who", env=AUTO).returncode == 1
        bench.finish()
        bench.check_etcd()


@pytest.mark.parametrize("transport", ["auto", "http"])
def test_waiter_is_promoted_through_a_proxy_that_takes_whole_requests(
    conch: Bench, fronts: list[Front], transport: str
) -> None:
    """A watch that is requested by a request without end would never reach etcd."""
    front = WholeRequests(conch.endpoints)
    fronts.append(front)
    first = conch.hold("o")
    env = {"CONCH_TRANSPORT": transport, "CONCH_ENDPOINTS": front.endpoint}
    second = conch.queue("o", command="echo ran >> ran", env=env)
    wait_for(lambda: front.watches, "the other way to ask is tried")
    first.signal(15)
    assert second.wait() == 0
    assert conch.read("ran") == "ran\n"


def test_waiter_whose_watch_alone_hangs_is_promoted(conch: Bench, fronts: list[Front]) -> None:
    """Behind a balancer each connection may go to another member: working renewals prove nothing about a watch."""
    front = Balancer(conch.endpoints)
    fronts.append(front)
    first = conch.hold("o")
    env = {"CONCH_TRANSPORT": "http", "CONCH_ENDPOINTS": front.endpoint}
    second = conch.queue("o", command="echo ran >> ran", env=env)
    wait_for(lambda: front.confirmed == 2, "its watches are there: our key, and the one ahead")
    front.freeze()
    first.signal(15)
    assert second.wait(40) == 0
    assert conch.read("ran") == "ran\n"


def test_waiter_that_may_not_watch_polls(conch: Bench, fronts: list[Front]) -> None:
    """Without events it polls for its turn."""
    front = NoWatches(conch.endpoints)
    fronts.append(front)
    first = conch.hold("o")
    env = {"CONCH_TRANSPORT": "http", "CONCH_ENDPOINTS": front.endpoint}
    second = conch.queue("o", command="echo ran >> ran", env=env)
    first.signal(15)
    assert second.wait(30) == 0
    assert conch.read("ran") == "ran\n"
