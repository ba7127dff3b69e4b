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


class IllegalTransition(Exception):
    """An event that makes no sense in a state: a defect of conch."""


def enter(current: State, following: State) -> State:
    """Return the state that follows; raise `IllegalTransition` if it may not."""
    if following not in NEXT[current]:
        raise IllegalTransition(f"cannot go from {current.value} to {following.value}")
    return following
