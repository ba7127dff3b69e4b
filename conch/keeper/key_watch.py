"""Hearing that keys go: those right ahead of us in a queue, and our own."""

import threading
from collections.abc import Callable, Mapping
from functools import partial

from conch.etcd.store import Compacted, Range, Store, StoreError, Watch
from conch.record import Record

# How long to leave a watch alone that etcd refuses.
_REFUSED_S = 1.0

Tell = Callable[..., None]


class KeyDeleted(Record):
    """A key was deleted that watch number `watch` was on; None: it cannot tell which, look again and watch anew."""

    watch: int
    key: bytes | None


class WatchUnavailable(Record):
    """Watch number `watch` has heard nothing for some seconds, because it cannot be had; it goes on trying."""

    watch: int


class KeyWatch:
    """One watch at a time, in a thread of its own; `number` tells its news from an earlier one's.

    Its methods are for one thread; news come from others, through `put`.
    """

    def __init__(self, store: Store, put: Callable[[KeyDeleted | WatchUnavailable], None], tell: Tell) -> None:
        self._store = store
        self._put = put
        self._tell = tell
        self._watch: Watch | None = None
        self._watched: set[bytes] = set()
        self.number = 0

    def watch(self, wanted: Mapping[bytes, int]) -> None:
        """Report the deletion of each of these keys after the revision at which it was seen.

        Keys are added to the watch that is on; those that it is on already are left to it.
        """
        new = {key: seen_at for key, seen_at in wanted.items() if self._watch is None or key not in self._watched}
        self._watched |= new.keys()
        if self._watch is not None:
            for key, seen_at in new.items():
                self._watch.add(Range(key), seen_at + 1)
            return
        self.number += 1
        self._watch = self._store.watch(
            [(Range(key), at + 1) for key, at in new.items()],
            deletes_only=True,
            blind=partial(self._blind, self.number),
        )
        listener = threading.Thread(target=self._listen, args=(self._watch, self.number), name="lookout", daemon=True)
        listener.start()

    def end(self) -> None:
        """Report nothing more."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
            self._watched = set()

    def retry_later(self, number: int | None = None) -> None:
        """Ask for a look and a new watch in a while, because etcd refuses it at present."""
        gone = KeyDeleted(self.number if number is None else number, None)
        timer = threading.Timer(_REFUSED_S, self._put, (gone,))
        timer.daemon = True
        timer.start()

    def _blind(self, number: int) -> None:
        self._put(WatchUnavailable(number))

    def _listen(self, watch: Watch, number: int) -> None:
        try:
            for events in watch:
                for event in events:
                    if event.deleted:
                        self._put(KeyDeleted(number, event.kv.key))
        except Compacted:
            self._put(KeyDeleted(number, None))
        except StoreError as error:
            self._tell("warning", "watch-failed", msg=str(error))
            self.retry_later(number)
