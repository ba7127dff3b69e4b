"""JSON as `json` reads and writes it, without importing that: with `re` and `enum` it is slower than the rest of conch.

What is not plain is left to `json`, which is then imported.
"""

from conch.static_typing import Any

_BLANKS = " \t\n\r"
_WORDS = {None: "null", True: "true", False: "false"}


class _AsJson:
    """How the scanner reads: as `json.loads` does by default."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int, parse_constant = float, int, float
    memo: dict[str, str] = {}  # noqa: RUF012


def _new_scanner() -> Any:
    """Return the C function that `json` reads with, None where there is none of that name or kind."""
    try:
        from _json import make_scanner

        return make_scanner(_AsJson)  # type: ignore[arg-type]
    except (ImportError, AttributeError, TypeError):
        return None


_scan = _new_scanner()


def loads(data: bytes) -> Any:
    """Return what `json.loads` does; raises `ValueError` or `RecursionError` as that does."""
    if _scan is not None:
        try:
            text = data.decode("utf-8", "surrogatepass")
            value, end = _scan(text, len(text) - len(text.lstrip(_BLANKS)))
            if not text[end:].strip(_BLANKS):
                return value
        except (ValueError, StopIteration, SystemError):
            pass  # it is no JSON, which Python 3.11 cannot say without `json`; or in another encoding
    import json

    return json.loads(data)


def dumps(value: Any) -> str:
    """Return what `json.dumps(value, ensure_ascii=False)` does."""
    kind = type(value)
    if kind is str:
        text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        if text.isprintable():
            return f'"{text}"'
    if kind is int or (kind is float and value - value == 0.0):  # not infinite, nor NaN
        return repr(value)
    if kind is dict and all(type(name) is str for name in value):
        return "{" + ", ".join([f"{dumps(name)}: {dumps(member)}" for name, member in value.items()]) + "}"
    if kind is list or kind is tuple:
        return "[" + ", ".join([dumps(member) for member in value]) + "]"
    if value is None or kind is bool:
        return _WORDS[value]
    import json

    return json.dumps(value, ensure_ascii=False)
