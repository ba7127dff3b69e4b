"""Enumerations, compared with those of the standard library."""

import enum
from typing import Any

import pytest

from conch.enums import Enum


def members(base: Any) -> Any:
    """The same enumeration on either base."""

    class Light(base):  # type: ignore[misc]
        """When to go."""

        RED = "red"
        GREEN = "green"

    return Light


@pytest.mark.parametrize("base", [Enum, enum.Enum])
def test_members(base: Any) -> None:
    """Names, values and order; each is itself only."""
    light = members(base)
    assert [(member.name, member.value) for member in light] == [("RED", "red"), ("GREEN", "green")]
    assert (light("red"), len(light)) == (light.RED, 2)
    assert light.RED in light
    assert light.RED != light.GREEN
    assert frozenset(light) - {light.RED} == {light.GREEN}
    assert repr(light.RED) == "<Light.RED: 'red'>"
    assert isinstance(light.RED, light)
    assert light.__doc__ == "When to go."


@pytest.mark.parametrize("base", [Enum, enum.Enum])
def test_value_of_no_member(base: Any) -> None:
    """It is an error that names it."""
    with pytest.raises(ValueError, match="'blue' is not a valid"):
        members(base)("blue")
