"""Certificates replaced under a running conchd: it uses them after SIGHUP, if etcd accepts them."""

import secrets
import signal
from pathlib import Path

import psutil
import pytest
import trustme

from conch.dev import Cluster, Tls
from tests.support.conch import Bench, Wrapper, throughout, wait_for
from tests.support.etcdctl import etcdctl


def write(folder: Path, name: str, cert: trustme.LeafCert) -> tuple[str, str]:
    """Write a certificate and its key; return their paths."""
    paths = (str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
    Path(paths[0]).write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    cert.private_key_pem.write_to_path(paths[1])
    return paths


def connections(daemon: Wrapper) -> set[int]:
    """Return the local ports of its keeper's connections."""
    found = psutil.Process(daemon.keeper()).net_connections("tcp")
    return {one.laddr.port for one in found if one.status == psutil.CONN_ESTABLISHED}


def check_registered(daemon: Wrapper) -> None:
    assert not daemon.events("registration-lost", "watch-interrupted", "claim-failed"), daemon.err


@pytest.mark.timeout(120)
def test_new_certificate_is_the_new_identity(tmp_path: Path) -> None:
    """Over gRPC its common name is the user: the old user may be deleted, and nothing is lost."""
    authority = trustme.CA()
    ca = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(ca)
    paths = {
        who: write(tmp_path, who, authority.issue_cert(*names, common_name=who))
        for who, names in (("server", ("127.0.0.1", "localhost")), ("root", ("root",)))
    }
    cert, key = write(tmp_path, "ours", authority.issue_cert("old", common_name="old"))
    with Cluster(tls=Tls(ca, *paths["server"], ca, *paths["root"])) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)

        def admin(*words: str) -> str:
            ours = ["--cacert", ca, "--cert", paths["root"][0], "--key", paths["root"][1]]
            return etcdctl("--endpoints", bench.endpoints, *ours, *words)

        admin("role", "add", "conch")
        admin("role", "grant-permission", "conch", "--prefix=true", "readwrite", bench.prefix)
        for user, role in (("root", "root"), ("old", "conch"), ("new", "conch")):
            admin("user", "add", user, "--no-password")
            admin("user", "grant-role", user, role)
        admin("auth", "enable")
        env = {"CONCH_CACERT": ca, "CONCH_CERT": cert, "CONCH_KEY": key, "CONCH_TRANSPORT": "grpc"}
        daemon = bench.start("conchd", "--ttl", "3s", "--state-dir", str(tmp_path / "state"), env=env)
        daemon.wait_event("registered")
        # etcd does not admit this one, so the old one stays
        write(tmp_path, "ours", authority.issue_cert("nobody", common_name="nobody"))
        daemon.signal(signal.SIGHUP)
        assert daemon.wait_event("not-reloaded")["what"] == "certificates"
        assert "certificates" not in daemon.wait_event("reloaded")["msg"]
        write(tmp_path, "ours", authority.issue_cert("new", common_name="new"))
        daemon.signal(signal.SIGHUP)
        assert "certificates" in daemon.wait_event("reloaded", 2)["msg"]
        throughout(6, lambda: check_registered(daemon))  # the old connection is closed meanwhile
        admin("user", "delete", "old")
        job = {"CONCH_PREFIX": bench.prefix, **env}
        done = bench.run("cron", "add", "j", "--schedule", "@every 1s", "--", "true", env=job)
        assert done.returncode == 0, done.stderr

        def ran() -> bool:
            return len(bench.run("cron", "history", "j", "--json", env=job).stdout.splitlines()) >= 4

        wait_for(ran, "its watch hears of a job, and its ticks run")
        check_registered(daemon)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        bench.finish()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_connections_are_new_ones_after_sighup(tmp_path: Path, transport: str) -> None:
    """All are, even those of watches and leases; unusable files change nothing."""
    authority = trustme.CA()
    ca = str(tmp_path / "ca.pem")
    authority.cert_pem.write_to_path(ca)
    server = write(tmp_path, "server", authority.issue_cert("127.0.0.1", "localhost"))
    client = write(tmp_path, "client", authority.issue_cert("client@example.org"))
    with Cluster(tls=Tls(ca, *server, ca, *client)) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        cert, key = write(tmp_path, "ours", authority.issue_cert("us@example.org"))
        env = {"CONCH_CACERT": ca, "CONCH_CERT": cert, "CONCH_KEY": key, "CONCH_TRANSPORT": transport}
        daemon = bench.start("conchd", "--ttl", "3s", "--state-dir", str(tmp_path / "state"), env=env)
        daemon.wait_event("registered")
        before = wait_for(lambda: connections(daemon), "connections")
        good = Path(cert).read_bytes()
        other = write(tmp_path, "other", authority.issue_cert("other@example.org"))[1]
        for count, (path, data, why) in enumerate(
            ((cert, good[: len(good) // 2], "fit"), (key, Path(other).read_bytes(), "fit"), (ca, b"", "fit")), 1
        ):
            kept = Path(path).read_bytes()
            Path(path).write_bytes(data)
            daemon.signal(signal.SIGHUP)
            line = daemon.wait_event("not-reloaded", count)
            assert line["what"] == "certificates"
            assert why in line["msg"]
            daemon.wait_event("reloaded", count)
            Path(path).write_bytes(kept)
        assert connections(daemon) & before
        daemon.signal(signal.SIGHUP)
        assert "certificates" in daemon.wait_event("reloaded", 4)["msg"]
        wait_for(lambda: connections(daemon) and not connections(daemon) & before, "all are new")
        check_registered(daemon)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        bench.finish()
