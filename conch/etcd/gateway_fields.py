"""The fields of the gateway's JSON, each read as the type that it must have; anything else raises `BadAnswer`.

As protobuf's mapping to JSON has it: 64-bit numbers are strings (or numbers), bytes are base64, a field that has its
default (zero, false, no keys) is left out, and a null stands for the default.
"""

from binascii import a2b_base64

from conch.etcd.answers import BadAnswer
from conch.static_typing import Any


def odd(field: str, value: Any) -> BadAnswer:
    """Return the error that names a field and shows its value."""
    if isinstance(value, dict | list):
        shown = "a list" if isinstance(value, list) else "an object"
    else:
        shown = "null" if value is None else f"{value!r:.60}"
    return BadAnswer(f"an odd answer: {field} is {shown}")


def as_object(value: Any, field: str) -> dict[str, Any]:
    """Return `value` if it is an object; `field` names it in the error."""
    if not isinstance(value, dict):
        raise odd(field, value)
    return value


def part(answer: dict[str, Any], field: str) -> dict[str, Any]:
    """Read an object that must be there."""
    return as_object(answer.get(field), field)


def objects(answer: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """Read a list of objects."""
    value = answer.get(field)
    if value is None:
        return []
    if not isinstance(value, list):
        raise odd(field, value)
    return [as_object(element, f"one of {field}") for element in value]


def int64(answer: dict[str, Any], field: str) -> int:
    """Read a signed number."""
    return _number(answer, field, -(2**63), 2**63)


def uint64(answer: dict[str, Any], field: str) -> int:
    """Read an unsigned number."""
    return _number(answer, field, 0, 2**64)


def flag(answer: dict[str, Any], field: str) -> bool:
    """Read true or false."""
    value = answer.get(field)
    if value is not None and not isinstance(value, bool):
        raise odd(field, value)
    return bool(value)


def text(answer: dict[str, Any], field: str) -> str:
    """Read a string."""
    value = answer.get(field)
    if value is not None and not isinstance(value, str):
        raise odd(field, value)
    return value or ""


def data(answer: dict[str, Any], field: str) -> bytes:
    """Read bytes."""
    encoded = text(answer, field)
    try:
        return a2b_base64(encoded.encode("ascii"), strict_mode=True) if encoded else b""
    except ValueError:
        raise odd(field, encoded) from None


def _number(answer: dict[str, Any], field: str, least: int, end: int) -> int:
    value = answer.get(field)
    if value is None:
        return 0
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit():
        number = int(value)
    if number is None or not least <= number < end:
        raise odd(field, value)
    return number
