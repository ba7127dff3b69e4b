"""The states of one acquisition in the keeper, and which may follow which."""

from conch.enums import Enum


class State(Enum):
    """How far the acquirer has got."""

    IDLE = "idle"  # nothing is held or queued for
    STARTING = "starting"  # asking etcd for a lease
    QUEUING = "queuing"  # entering the queues, or waiting in one
    CONFIRMING = "confirming"  # first in line, but the last renewal is too old to start something
    HOLDING = "holding"
    LOST = "lost"  # the hold is gone; the supervisor has been told, and releases it
    RELEASING = "releasing"


NEXT: dict[State, frozenset[State]] = {
    State.IDLE: frozenset({State.STARTING, State.RELEASING}),
    State.STARTING: frozenset({State.QUEUING, State.RELEASING}),
    State.QUEUING: frozenset({State.CONFIRMING, State.RELEASING}),
    State.CONFIRMING: frozenset({State.HOLDING, State.RELEASING}),
    State.HOLDING: frozenset({State.LOST, State.RELEASING}),
    State.LOST: frozenset({State.RELEASING}),
    State.RELEASING: frozenset({State.IDLE}),
}
