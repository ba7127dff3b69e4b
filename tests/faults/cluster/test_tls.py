"""https: what works, and the line that says why something does not."""

import datetime
import secrets
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from conch.dev import Cluster, Tls
from tests.faults.cluster.test_smoke import CHECKS, smoke
from tests.support.conch import Bench, wait_for
from tests.support.etcdctl import etcdctl
from tests.support.proxy import Proxy

PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@dataclass
class Certificates:
    """Certificate files made for this test run."""

    folder: Path
    authority: trustme.CA

    def write(self, name: str, cert: trustme.LeafCert) -> tuple[str, str]:
        """Write a certificate and its key; return their paths."""
        paths = (str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key"))
        Path(paths[0]).write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
        cert.private_key_pem.write_to_path(paths[1])
        return paths

    @property
    def cacert(self) -> str:
        path = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(path))
        return str(path)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"), trustme.CA())


@pytest.fixture(scope="module")
def cluster(certificates: Certificates) -> Iterator[Cluster]:
    """One member that requires client certificates of its authority."""
    server = certificates.write("server", certificates.authority.issue_cert("127.0.0.1", "localhost"))
    client = certificates.write("client", certificates.authority.issue_cert("client@example.org"))
    tls = Tls(certificates.cacert, *server, certificates.cacert, *client)
    with Cluster(tls=tls) as cluster:
        yield cluster


@pytest.fixture
def options(certificates: Certificates, cluster: Cluster) -> dict[str, str]:
    """Return the environment with everything that a client needs."""
    return {
        "CONCH_CACERT": certificates.cacert,
        "CONCH_CERT": str(certificates.folder / "client.pem"),
        "CONCH_KEY": str(certificates.folder / "client.key"),
    }


@pytest.fixture
def secure(cluster: Cluster, tmp_path: Path) -> Iterator[Bench]:
    """A bench on the https member."""
    bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
    yield bench
    bench.finish()


def keys(bench: Bench, options: dict[str, str]) -> list[str]:
    flags = [f"--{name.removeprefix('CONCH_').lower()}={value}" for name, value in options.items()]
    return etcdctl("--endpoints", bench.endpoints, *flags, "get", "--prefix", bench.prefix, "--keys-only").split()


def test_smoke_over_https(secure: Bench, options: dict[str, str]) -> None:
    """elect and sema hold, queue, hand over and answer queries as over http."""
    for kind, name in (("elect", "o"), ("sema", "s")):
        secure.kind = kind
        first = secure.hold(name, "--ttl", "2s", env=options)
        second = secure.queue(name, command="echo ran >> ran", env=options)
        assert secure.run(kind, name, "--who", env=options).returncode == 0
        first.signal(15)
        assert second.wait() == 0
        secure.read("ran")
    watch = secure.start("elect", "o", "--watch", env=options)
    wait_for(lambda: watch.out == "o -\n", "the watch")
    assert secure.run("elect", "o", "--assert", env=options).returncode == 1
    wait_for(lambda: keys(secure, options) == [], "no key left")


def test_smoke_script_passes_over_https(secure: Bench, options: dict[str, str]) -> None:
    """Elections, semaphores and schedules all use client certificates."""
    etcdctls = {name.replace("CONCH_", "ETCDCTL_"): value for name, value in options.items()}
    done = smoke(secure, **options, **etcdctls)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASS") == CHECKS
    flags = [f"--{name.removeprefix('CONCH_').lower()}={value}" for name, value in options.items()]
    etcdctl("--endpoints", secure.endpoints, *flags, "del", "--prefix", secure.prefix)


def test_options_come_from_flags_and_from_etcdctls_variables(secure: Bench, options: dict[str, str]) -> None:
    """etcdctl takes the same flags."""
    env = {name.replace("CONCH_", "ETCDCTL_"): value for name, value in options.items()}
    assert secure.run("elect", "o", "--", "true", env=env).returncode == 0
    flags = [part for name, value in options.items() for part in (f"--{name.removeprefix('CONCH_').lower()}", value)]
    assert secure.run("elect", "o", *flags, "--", "true").returncode == 0


def refused(bench: Bench, env: dict[str, str]) -> str:
    """Run a command that must exit 69 with one line; return the line."""
    for limit in ("1s", "5s", "20s"):  # a busy machine may need more than one second for a handshake
        done = bench.run("elect", "o", "--quiet", "--dial-timeout", limit, "--", "true", env=env)
        assert done.returncode == 69, done.stderr
        if "no answer in time" not in done.stderr:
            break
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_wrong_authority_is_reported(secure: Bench, options: dict[str, str], tmp_path: Path) -> None:
    """The server's is neither the given one nor one of the system's."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    assert "unable to get local issuer certificate" in refused(secure, {**options, "CONCH_CACERT": str(other)})
    assert "certificate" in refused(secure, {**options, "CONCH_CACERT": ""})


def test_missing_client_certificate_is_reported(secure: Bench, certificates: Certificates) -> None:
    """The line names the options to set."""
    assert "--cert, --key" in refused(secure, {"CONCH_CACERT": certificates.cacert})


def test_expired_certificate_is_reported(certificates: Certificates, tmp_path: Path) -> None:
    """The line has TLS's own reason."""
    pair = certificates.write("expired", certificates.authority.issue_cert("127.0.0.1", not_after=PAST))
    with tls_server(*pair) as endpoint:
        bench = Bench(f"https://{endpoint}", secrets.token_hex(8), tmp_path)
        assert "certificate has expired" in refused(bench, {"CONCH_CACERT": certificates.cacert})


def test_wrong_host_name_is_reported(certificates: Certificates, tmp_path: Path) -> None:
    """No option turns this check off."""
    pair = certificates.write("elsewhere", certificates.authority.issue_cert("elsewhere.example"))
    with tls_server(*pair) as endpoint:
        bench = Bench(f"https://{endpoint}", secrets.token_hex(8), tmp_path)
        assert "another host name" in refused(bench, {"CONCH_CACERT": certificates.cacert})


class tls_server:  # noqa: N801 - used like a function
    """A server that does nothing but TLS."""

    def __init__(self, cert: str, key: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["h2"])
        self._context.load_cert_chain(cert, key)

    def __enter__(self) -> str:
        import contextlib
        import socket
        import threading

        self._server = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                try:
                    client, _ = self._server.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), client:
                    self._context.wrap_socket(client, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        import socket

        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("CONCH_CACERT", None, "--cacert: cannot read"),
        ("CONCH_CERT", None, "--cert: cannot read"),
        ("CONCH_KEY", None, "--key: cannot read"),
        ("CONCH_CACERT", "junk", "--cacert: no certificate in"),
        ("CONCH_CERT", "junk", "--cert, --key:"),
        ("CONCH_KEY", "junk", "--cert, --key:"),
    ],
)
def test_unusable_files_exit_64(
    secure: Bench, options: dict[str, str], tmp_path: Path, option: str, content: str | None, message: str
) -> None:
    """One line names the option and the file."""
    path = tmp_path / "given"
    if content is not None:
        path.write_text(content)
    done = secure.run("elect", "o", "--", "true", env={**options, option: str(path)})
    assert done.returncode == 64
    assert message in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nothing_goes_to_an_https_endpoint_in_the_clear(
    cluster: Cluster, tmp_path: Path, options: dict[str, str]
) -> None:
    """With or without options, the first byte of a connection is TLS's."""
    import socket

    for env in ({}, options):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(10)
            bench = Bench(f"https://127.0.0.1:{server.getsockname()[1]}", secrets.token_hex(8), tmp_path)
            wrapper = bench.start("elect", "o", "--dial-timeout", "2s", "--", "true", env=env)
            client, _ = server.accept()
            client.settimeout(10)
            assert client.recv(1) == b"\x16"  # a TLS handshake record
            client.close()
            wrapper.kill()
            bench.finish()


def test_tls_files_are_ignored_for_http_endpoints(conch: Bench, options: dict[str, str]) -> None:
    """One environment may serve both."""
    plain = {"CONCH_ENDPOINTS": f"http://{conch.endpoints}"}
    assert conch.run("elect", "o", "--", "true", env={**options, **plain}).returncode == 0


def test_certificates_imply_tls_for_endpoints_without_a_scheme(secure: Bench, options: dict[str, str]) -> None:
    """etcdctl does so, too; otherwise the certificates would be ignored silently."""
    bare = {"CONCH_ENDPOINTS": secure.endpoints.replace("https://", "")}
    assert secure.run("elect", "o", "--", "true", env={**options, **bare}).returncode == 0


def test_certificate_file_that_is_missing_for_a_while_ends_no_hold(
    certificates: Certificates, options: dict[str, str], tmp_path: Path
) -> None:
    """It may be rotated just when the member restarts."""
    server = certificates.write("again", certificates.authority.issue_cert("127.0.0.1"))
    cacert = tmp_path / "ca.pem"
    cacert.write_bytes(certificates.authority.cert_pem.bytes())
    with Cluster(tls=Tls(certificates.cacert, *server)) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        wrapper = bench.hold("o", env={"CONCH_CACERT": str(cacert)})
        cacert.rename(tmp_path / "away")
        cluster.restart(cluster.members[0])
        wrapper.wait_event("renew-failed")
        (tmp_path / "away").rename(cacert)
        wrapper.wait_event("renewed")
        assert not wrapper.events("lost")
        bench.finish()


def test_plain_server_behind_an_https_endpoint_is_reported(
    conch: Bench, options: dict[str, str], tmp_path: Path
) -> None:
    """The wrong scheme is a common mistake."""
    bench = Bench(f"https://{conch.endpoints}", secrets.token_hex(8), tmp_path)
    line = refused(bench, options)
    assert "it does not speak TLS" in line or "does it speak TLS?" in line


def test_https_server_behind_a_plain_endpoint_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    """So is the opposite mistake."""
    bench = Bench(cluster.members[0].endpoint, secrets.token_hex(8), tmp_path)
    assert "https" in refused(bench, {})


def test_proxy_sees_no_name_and_no_password(cluster: Cluster, tmp_path: Path) -> None:
    """A proxy that reads HTTP/2 finds no call."""
    proxy = Proxy(cluster.members[0].endpoint)
    bench = Bench(f"https://{proxy.endpoint}", secrets.token_hex(8), tmp_path)
    assert bench.run("elect", "o", "--dial-timeout", "1s", "--wait", "3s", "--", "true").returncode == 69
    assert proxy.calls == []
    proxy.close()
