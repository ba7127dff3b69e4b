"""The states of one acquisition."""

import pytest

from conch.errors import IllegalTransition, checked
from conch.keeper.states import NEXT, State


def test_an_acquisition_goes_through_its_states_in_order() -> None:
    """Also after a loss: it is released like any other hold."""
    state = State.IDLE
    for following in (State.STARTING, State.QUEUING, State.CONFIRMING, State.HOLDING, State.LOST, State.RELEASING):
        state = checked(NEXT, state, following)
    assert checked(NEXT, state, State.IDLE) is State.IDLE


@pytest.mark.parametrize(
    ("current", "following"),
    [
        (State.IDLE, State.HOLDING),
        (State.STARTING, State.HOLDING),
        (State.QUEUING, State.HOLDING),
        (State.HOLDING, State.STARTING),
        (State.LOST, State.HOLDING),
        (State.RELEASING, State.HOLDING),
    ],
)
def test_what_makes_no_sense_raises_with_the_names_of_both_states(current: State, following: State) -> None:
    """No hold without a confirmed deadline; no second lease beside the first; no loss that is taken back."""
    with pytest.raises(IllegalTransition, match=f"from {current.value} to {following.value}"):
        checked(NEXT, current, following)


@pytest.mark.parametrize("state", [state for state in State if state is not State.RELEASING])
def test_everything_can_be_released_from_any_state(state: State) -> None:
    """The supervisor may end at any time, and `Release` is served then."""
    assert State.RELEASING in NEXT[state]
