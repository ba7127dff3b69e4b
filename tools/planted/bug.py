"""A bug to plant."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """In `file` of conch, `old` (which is there once) becomes `new`; one of the `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
