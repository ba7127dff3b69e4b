"""A fleet of daemons on one machine, and the keys of their ticks in etcd."""

import json
import time
from pathlib import Path
from typing import Any

from tests.support.conch import Bench, Wrapper, wait_for


class Fleet:
    """Starts conchd under chosen host names; all its keys lie below the bench's prefix."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.daemons: dict[str, Wrapper] = {}
        self._number = 0

    def start(
        self, host: str, *flags: str, env: dict[str, str] | None = None, ready: bool = True, **how: Any
    ) -> Wrapper:
        """Start or restart a daemon and wait until it is registered."""
        state = self.bench.folder / f"state-{host}"
        daemon = self.bench.start(
            "conchd", "--state-dir", str(state), "--drain", "1s", *flags, env={"CONCH_HOST": host, **(env or {})}, **how
        )
        self.daemons[host] = daemon
        if ready:
            daemon.wait_event("registered")
        return daemon

    def state(self, host: str) -> Path:
        return self.bench.folder / f"state-{host}"

    def add(self, name: str, schedule: str, *flags: str, command: str = "true") -> None:
        """Add a job with a shell command."""
        done = self.bench.run("cron", "add", name, "--schedule", schedule, *flags, "--", "sh", "-c", command)
        assert done.returncode == 0, done.stderr

    def run_now(self, name: str) -> int:
        """Request a run with `cron run` and return its tick. A daemon may still be about to register."""
        until = time.monotonic() + 10
        while True:
            done = self.bench.run("cron", "run", name)
            if done.returncode == 0:
                return self.unix(done.stdout.strip())
            assert "no conchd is alive" in done.stderr, done.stderr
            assert time.monotonic() < until, done.stderr

    def ask(self, name: str, number: int | None = None) -> str:
        """Write a request to run now, under a chosen number; return its lease, which the claim will name."""
        lease = self.bench.etcd.lease(60)
        self._number = max(self._number + 1, int(time.time())) if number is None else number
        self.bench.etcd.put(f"{self.bench.prefix}/cron/now/{name}/{self._number}", "{}", lease)
        return f"{lease.id:x}"

    def claimed(self, name: str, request: str, timeout_s: float = 20.0) -> int:
        """Wait until a request is claimed and return its tick."""

        def claims() -> list[int]:
            return [tick for tick, claim in self.ticks("fire", name).items() if claim.get("request") == request]

        return wait_for(claims, f"a claim of the request {request} of {name}", timeout_s)[0]

    def request(self, name: str) -> int:
        """Write a request, wait until it is claimed, and return its tick."""
        return self.claimed(name, self.ask(name))

    @staticmethod
    def unix(text: str) -> int:
        import datetime

        return int(datetime.datetime.fromisoformat(text).timestamp())

    def value(self, kind: str, *path: object) -> dict[str, Any] | None:
        """Return the value of a key below `cron/`, or None."""
        value, _ = self.bench.etcd.get("/".join((self.bench.prefix, "cron", kind, *map(str, path))))
        return None if value is None else json.loads(value)

    def node(self, host: str) -> dict[str, Any] | None:
        """Return a host's registration, or None."""
        value, _ = self.bench.etcd.get(f"{self.bench.prefix}/node/{host}")
        return None if value is None else dict(json.loads(value))

    def registration(self, host: str) -> int:
        """Return the create-revision of a host's registration, 0 if there is none."""
        _, meta = self.bench.etcd.get(f"{self.bench.prefix}/node/{host}")
        return 0 if meta is None else int(meta.create_revision)

    def ticks(self, kind: str, name: str) -> dict[int, dict[str, Any]]:
        """Return all claims (`fire`) or results (`result`) of a job by tick."""
        found = self.bench.etcd.get_prefix(f"{self.bench.prefix}/cron/{kind}/{name}/")
        return {int(meta.key.rpartition(b"/")[2]): json.loads(value) for value, meta in found}

    def result(self, name: str, tick: int, timeout_s: float = 20.0) -> dict[str, Any]:
        """Wait for the result of a tick and return it."""
        found = wait_for(lambda: self.value("result", name, tick), f"a result of {name} {tick}", timeout_s)
        assert found is not None
        return found

    def results(self, name: str, count: int, timeout_s: float = 30.0) -> dict[int, dict[str, Any]]:
        """Wait until a job has so many results and return all of them."""
        wait_for(lambda: len(self.ticks("result", name)) >= count, f"{count} results of {name}", timeout_s)
        return self.ticks("result", name)

    def history(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of `cron history`."""
        done = self.bench.run("cron", "history", name, "-n", "1000", "--json")
        assert done.returncode == 0, done.stderr
        return list(self.bench.jsons(done.stdout))

    def clean(self) -> None:
        """End the daemons and remove the keys that outlive them by design."""
        for daemon in self.daemons.values():
            if daemon.process.poll() is None:
                daemon.process.terminate()
        for daemon in self.daemons.values():
            daemon.wait()
        self.bench.etcd.delete_prefix(self.bench.prefix + "/cron/")


def once(tick: int) -> str:
    """Return a schedule whose only tick for decades is this one."""
    return f"@every {tick}s"


def until_second(fraction: float = 0.0) -> int:
    """Wait until the next full second plus a fraction; return that second."""
    now = time.time()
    second = int(now) + 1
    time.sleep(max(0.0, second + fraction - now))
    return second
