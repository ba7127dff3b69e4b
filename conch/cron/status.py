"""conchd's status over HTTP: what is scheduled, held and running, whether it could claim, and its metrics.

GET only. A slow or odd client gets five seconds and one of a few threads; it can delay other clients, nothing else.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from conch.config import Connection
from conch.cron.history import everything, last_rows
from conch.cron.ledger import Ledger
from conch.cron.records import STATES
from conch.cron.runs import LAGS_S
from conch.cron.scheduler import Scheduler
from conch.errors import ConchError
from conch.etcd.store import KeyValue, Store
from conch.holder import Holder, UnreadableHolder, rfc3339
from conch.keys import Keys

_CLIENT_S = 5.0
_CLIENTS = 32
_ASK_S = 1.0
_PAUSE_S = 0.1
# Within the client's time, so that it is told.
_ETCD_S = 3.0

Tell = Callable[..., None]


class Status:
    """What the endpoints answer. Reads etcd and asks the scheduler; changes nothing."""

    def __init__(self, scheduler: Scheduler, ledger: Ledger, store: Store, connection: Connection, keys: Keys) -> None:
        self._scheduler = scheduler
        self._ledger = ledger
        self._store = store
        self._timeout_s = min(_ETCD_S, connection.command_timeout_s)
        self._keys = keys
        self._registry = CollectorRegistry()
        self._registry.register(_Metrics(self))

    def health(self) -> str:
        """Why this daemon could not claim a tick now; empty if it could."""
        try:
            return self._scheduler.ask(self._scheduler.healthy, _ASK_S)
        except TimeoutError as error:
            return str(error)

    def cron(self) -> dict[str, Any]:
        """The jobs with their next and newest ticks, and the runs of this host."""

        def look() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
            jobs = [
                {
                    "name": job.name,
                    "schedule": job.schedule,
                    "tz": job.tz,
                    "cmd": list(job.cmd),
                    "paused": job.paused,
                    "next_tick": None if tick is None else rfc3339(tick),
                }
                for job, tick in self._scheduler.upcoming()
            ]
            runs = [
                {"name": one.entry.name, "tick": rfc3339(one.entry.tick), "tick_unix": one.entry.tick}
                for one in self._scheduler.running()
            ]
            return jobs, runs

        jobs, runs = self._scheduler.ask(look, _ASK_S)
        jobs.sort(key=lambda job: str(job["name"]))
        last, _ = last_rows(self._store, self._keys, [job["name"] for job in jobs], timeout_s=self._timeout_s)
        for job in jobs:
            newest = last.get(job["name"], {})
            job["last_tick"] = newest.get("tick")
            job |= {field: newest.get(field) for field in ("node", "exit", "state", "duration_s")}
        return {"jobs": jobs, "running": runs}

    def elect(self) -> list[dict[str, Any]]:
        """The offices with their leaders, and how many wait."""
        queues = self._queues(f"{self._keys.prefix}/elect/", 1)
        return [
            {"office": path[0], **_holder(kvs[0]), "waiting": len(kvs) - 1}
            for path, kvs in sorted(queues.items())
            if kvs
        ]

    def sema(self) -> list[dict[str, Any]]:
        """The contenders of all semaphores, in the order of their queues."""
        shown = []
        for path, kvs in sorted(self._queues(f"{self._keys.prefix}/sema/", 2).items()):
            if not path[1].isascii() or not path[1].isdecimal():
                continue
            slots = int(path[1])
            for rank, kv in enumerate(kvs):
                state = "HELD" if rank < slots else "WAIT"
                shown.append({"name": path[0], "max": slots, "state": state, "rank": rank, **_holder(kv)})
        return shown

    def metrics(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)

    def _queues(self, prefix: str, depth: int) -> dict[tuple[str, ...], list[KeyValue]]:
        found = self._store.range(everything(prefix), timeout_s=self._timeout_s).kvs
        queues: dict[tuple[str, ...], list[KeyValue]] = {}
        for kv in sorted(found, key=lambda kv: kv.create_revision):
            path = kv.key.decode("utf-8", "replace").removeprefix(prefix).split("/")
            if len(path) == depth + 1:
                queues.setdefault(tuple(path[:depth]), []).append(kv)
        return queues

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""

        def look() -> tuple[Mapping[tuple[str, str], int], Mapping[float, int], float, float, int]:
            s = self._scheduler
            return dict(s.counts), dict(s.lag_counts), s.lag_sum, s.lease_left_s(), len(s.running())

        counts, lags, lag_sum, left_s, running = self._scheduler.ask(look, _ASK_S)
        runs = CounterMetricFamily("conch_runs", "Ticks that this host has ended, by state", labels=["state"])
        for state in STATES:
            runs.add_metric([state], counts.get(("runs", state), 0))
        yield runs
        claims = CounterMetricFamily("conch_claims", "Claims that this host has tried, by outcome", labels=["outcome"])
        for outcome in ("won", "lost"):
            claims.add_metric([outcome], counts.get(("claims", outcome), 0))
        yield claims
        yield CounterMetricFamily(
            "conch_ticks_missed", "Ticks that nobody claimed in time", counts.get(("missed", ""), 0)
        )
        lag = HistogramMetricFamily("conch_start_lag_seconds", "From the scheduled instant to the start of the run")
        total = counts.get(("lags", ""), 0)
        lag.add_metric([], [(str(bound), lags.get(bound, 0)) for bound in LAGS_S] + [("+Inf", total)], lag_sum)
        yield lag
        errors = CounterMetricFamily("conch_etcd_errors", "Requests to etcd that failed, by kind", labels=["kind"])
        for (what, kind), amount in sorted(counts.items()):
            if what == "etcd_errors":
                errors.add_metric([kind], amount)
        yield errors
        yield GaugeMetricFamily("conch_running", "Runs of this host now", running)
        yield GaugeMetricFamily("conch_lease_left_seconds", "How long our lease lasts without a renewal", left_s)
        yield GaugeMetricFamily(
            "conch_journal_backlog", "Results that wait to be delivered to etcd", self._ledger.backlog
        )
        yield GaugeMetricFamily("conch_healthy", "1 if a tick could be claimed now", 0 if self.health() else 1)


class _Metrics:
    def __init__(self, status: Status) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        """Nothing is collected when this is registered."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        return self._status.collect()


def _holder(kv: KeyValue) -> dict[str, Any]:
    known: dict[str, Any] = {"host": None, "pid": None, "started": None, "cmd": None}
    try:
        holder = Holder.decode(kv.value)
        known = {"host": holder.host, "pid": holder.pid, "started": holder.started, "cmd": holder.cmd}
    except UnreadableHolder:
        pass  # shown by its place in the queue alone
    return {**known, "rev": kv.create_revision, "lease": f"{kv.lease:x}"}


class _Handler(BaseHTTPRequestHandler):
    status: Status
    server_version = "conch"
    sys_version = ""
    protocol_version = "HTTP/1.0"  # a connection a request: nobody keeps one

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            match path:
                case "/healthz":
                    why = self.status.health()
                    self._answer(503 if why else 200, (why or "ok") + "\n", "text/plain; charset=utf-8")
                case "/metrics":
                    self._answer(200, self.status.metrics().decode(), "text/plain; version=0.0.4; charset=utf-8")
                case "/cron":
                    self._json(self.status.cron())
                case "/elect":
                    self._json(self.status.elect())
                case "/sema":
                    self._json(self.status.sema())
                case _:
                    self._answer(404, "not found: /cron /elect /sema /healthz /metrics\n", "text/plain")
        except (ConchError, TimeoutError) as error:
            self._answer(503, f"{error}\n", "text/plain; charset=utf-8")

    def _json(self, data: object) -> None:
        self._answer(200, json.dumps(data) + "\n", "application/json")

    def _answer(self, code: int, text: str, kind: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One plain line; another method than GET is refused as such."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET"
        self.close_connection = True
        self._answer(code, f"{message or explain or HTTPStatus(code).phrase}\n", "text/plain; charset=utf-8")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is the log's."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._room = threading.Semaphore(_CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, if one of a few is free."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads
            self._room.release()
            self.shutdown_request(request)

    def get_request(self) -> Any:
        """Accept a client; without a descriptor to spare, not at once again."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE_S)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Within the time that a client has, however slowly it sends or reads."""
        end = threading.Timer(_CLIENT_S, self._hang_up, (request,))
        end.daemon = True
        try:
            end.start()
            super().process_request_thread(request, client_address)
        except RuntimeError:  # no more threads: without an end to its time it is not served
            self.shutdown_request(request)
        finally:
            end.cancel()
            self._room.release()

    @staticmethod
    def _hang_up(request: socket.socket) -> None:
        try:
            request.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


def serve(
    address: tuple[str, int],
    scheduler: Scheduler,
    ledger: Ledger,
    store: Store,
    connection: Connection,
    keys: Keys,
    tell: Tell,
) -> None:
    """Serve the status from threads of its own; an address that cannot be had is said, and costs nothing else."""
    handler = type("Handler", (_Handler,), {"status": Status(scheduler, ledger, store, connection, keys)})
    try:
        server = _Server(address, handler)
    except (OSError, OverflowError) as error:
        tell("error", "status-failed", msg=f"cannot serve on {address[0]}:{address[1]}: {error}")
        return
    host, port = server.server_address[:2]
    try:
        threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    except RuntimeError as error:  # no more threads
        server.server_close()
        tell("error", "status-failed", msg=f"cannot serve on {address[0]}:{address[1]}: {error}")
        return
    tell("info", "status", addr=f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}")
