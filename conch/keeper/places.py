"""Our places in the queues entered under one lease."""

from conch.keeper.queue import Place, PlaceLost, Queue
from conch.static_typing import Callable

# Calls it with a time limit in seconds until etcd answers.
UntilAnswered = Callable[[Callable[[float], Place]], Place]


class Places:
    """The queues in the order in which we entered them, and our place in each as it was last read.

    The place in the last one decides; those before it are kept until the lease ends.
    """

    def __init__(self) -> None:
        self._places: list[tuple[Queue, Place]] = []

    def __bool__(self) -> bool:
        """Whether a queue was entered."""
        return bool(self._places)

    def add(self, queue: Queue, place: Place) -> None:
        """Note that a further queue was entered."""
        self._places.append((queue, place))

    @property
    def last(self) -> tuple[Queue, Place]:
        """The queue entered last, and our place in it."""
        return self._places[-1]

    def read(self, until_answered: UntilAnswered) -> Place:
        """Read our place in each queue anew and return that in the last one. Raises `PlaceLost`.

        Those in the earlier queues are read too: a new watch of them begins there.
        """
        for at, (queue, place) in enumerate(self._places):
            now = until_answered(lambda limit_s, queue=queue, rev=place.rev: queue.read(rev, timeout_s=limit_s))  # type: ignore[misc]
            self._places[at] = (queue, now)
        return self._places[-1][1]

    def check_deleted(self, key: bytes) -> None:
        """Raise `PlaceLost` if the key that was deleted is one of ours."""
        if any(key == queue.key.encode() for queue, _ in self._places):
            raise PlaceLost

    def watched_keys(self) -> dict[bytes, int]:
        """Return our own keys and those right ahead of us, each with the revision at which it was seen."""
        _, place = self.last
        keys = dict.fromkeys(place.ahead, place.seen_at)
        keys.update((queue.key.encode(), own.seen_at) for queue, own in self._places)
        return keys
