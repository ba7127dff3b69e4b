"""Watches for the deletion of keys: those right ahead of us in a queue, and our own."""

from conch import threads
from conch.etcd.store import Compacted, Range, Store, StoreError, Watch
from conch.keeper.events import KeyDeleted, WatchBroken, WatchEvent, WatchUnavailable
from conch.static_typing import Callable, Mapping

# How long to wait before watching again where etcd refuses it.
_REFUSED_S = 1.0


class KeyWatch:
    """One watch at a time, read in a thread of its own; its `number` tells its events from those of earlier ones.

    The methods are for one thread; `put` is called with the events from others.
    """

    def __init__(self, store: Store, put: Callable[[WatchEvent], None], log: Callable[..., None]) -> None:
        self._store = store
        self._put = put
        self._log = log
        self._watch: Watch | None = None
        self._watched: set[bytes] = set()
        self.number = 0

    def watch(self, keys: Mapping[bytes, int]) -> None:
        """Report the deletion of each of these keys after the revision at which it was seen.

        Adds to the current watch, which goes on as it is for keys that it has already.
        """
        new = {key: seen_at for key, seen_at in keys.items() if self._watch is None or key not in self._watched}
        self._watched |= new.keys()
        if self._watch is not None:
            for key, seen_at in new.items():
                self._watch.add(Range(key), seen_at + 1)
            return
        self.number += 1
        number = self.number
        self._watch = self._store.watch(
            [(Range(key), seen_at + 1) for key, seen_at in new.items()],
            deletes_only=True,
            blind=lambda: self._put(WatchUnavailable(number)),
        )
        threads.start(self._read, self._watch, number)

    def end(self) -> None:
        """End the current watch."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
            self._watched = set()

    def retry_later(self) -> None:
        """Report the current watch as broken in a while: etcd refuses it at present."""
        self._break_later(self.number)

    def _break_later(self, number: int) -> None:
        threads.start_later(_REFUSED_S, self._put, WatchBroken(number))

    def _read(self, watch: Watch, number: int) -> None:
        try:
            for events in watch:
                for event in events:
                    if event.deleted:
                        self._put(KeyDeleted(number, event.kv.key))
        except Compacted:
            self._put(WatchBroken(number))
        except StoreError as error:
            self._log("warning", "watch-failed", msg=str(error))
            self._break_later(number)
