"""What the scheduler hears from etcd: one listing, then one watch, and both again after an interruption."""

import threading
from collections.abc import Callable, Sequence

from conch.cron.faults import Lasting
from conch.cron.views import pages
from conch.etcd.store import Compacted, Event, KeyValue, Range, RangeResult, Store, StoreError, Watch
from conch.keys import Keys, prefix_end

Log = Callable[..., None]

_KINDS = ("job", "fire", "now", "run", "kill", "cordon")
_RETRY_S = 1.0
Listing = Sequence[tuple[Range, RangeResult]]


class Watcher:
    """Lists and watches in a thread of its own, and passes on what it hears to the scheduler's thread, in order.

    An event is passed on once. After an interruption the watch resumes at the next revision; where that is compacted,
    or the etcd is another one, everything is listed anew.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        log: Log,
        *,
        call: Callable[..., None],
        run_ids: Callable[[], set[str]],
        listed: Callable[[Listing, set[str]], None],
        events: Callable[[Sequence[Event]], None],
        watching: Callable[[bool], None],
        timeout_s: float,
    ) -> None:
        """`call(f, …)` calls in the scheduler's thread: there `listed`, `events` and `watching` (whether it works).

        `run_ids` asks, from any thread, which runs have run keys by now.
        """
        self._store = store
        self._keys = keys
        self._log = log
        self._call = call
        self._run_ids = run_ids
        self._listed = listed
        self._events = events
        self._watching = watching
        self._timeout_s = timeout_s
        self._watch: Watch | None = None
        self._outdated = threading.Event()  # what is listed, or being listed, must be listed again

    def start(self, watched: list[tuple[Range, int]] | None) -> None:
        """Watch these ranges from these revisions on; None: list them first."""
        threading.Thread(target=self._run, args=(watched,), name="watch", daemon=True).start()

    def list_again(self) -> None:
        """Have everything listed and watched anew."""
        self._outdated.set()
        if self._watch is not None:
            self._watch.cancel()

    def ranges(self) -> list[Range]:
        """What is watched."""
        prefixes = [self._keys.cron(kind).encode() for kind in _KINDS] + [self._keys.node().encode()]
        return [Range(prefix, prefix_end(prefix)) for prefix in prefixes]

    def list_all(self, timeout_s: float, run_ids: set[str]) -> list[tuple[Range, int]]:
        """Pass on all that is there; return what to watch, and from which revisions on. Raises `StoreError`.

        `run_ids` are the runs that have run keys before the listing begins.
        """
        listed = []
        for what in self.ranges():
            # Claims are of interest only as they are made. A read of one key spares etcd counting them all.
            read = Range(what.key) if what.key == self._keys.cron("fire").encode() else what
            found = list(pages(self._store, read, timeout_s=timeout_s))
            kvs = tuple(kv for page in found for kv in page.kvs)
            # the revision of the first page: what changed while the others were read comes again as events
            listed.append((what, RangeResult(found[0].header, kvs, len(kvs))))
        self._call(self._listed, listed, run_ids)
        return [(what, found.header.revision + 1) for what, found in listed]

    def _run(self, watched: list[tuple[Range, int]] | None) -> None:
        """List, watch until the watch breaks, pause, and so on until the process ends."""
        fault = Lasting("watch-failed", self._log)
        while True:
            try:
                if watched is None:
                    self._outdated.clear()
                    watched = self.list_all(self._timeout_s, self._run_ids())
                fault.over()
                self._call(self._watching, True)
                self._watch = self._store.watch(watched, log=self._on_interruption)
                if self._outdated.is_set():
                    self._watch.cancel()
                for events in self._watch:
                    self._call(self._events, events)
            except Compacted:
                pass  # the listing shows what has gone meanwhile
            except StoreError as error:
                fault.failed(msg=str(error))
                self._call(self._watching, False)
            threading.Event().wait(_RETRY_S)
            watched = None

    def _on_interruption(self, event: str) -> None:
        self._log("warning", event)
        self._call(self._watching, event == "watch-resumed")


def keys_of(listing: Listing) -> dict[bytes, KeyValue]:
    """All keys of a listing."""
    return {kv.key: kv for _, found in listing for kv in found.kvs}
