"""JSON as `json` reads and writes it, without importing that: with `re` and `enum` it is slower than the rest of conch.

What is not plain is left to `json`, which is then imported.
"""

from conch.static_typing import Any

_BLANKS = " \t\n\r"


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


def _new_encoder() -> Any:
    """Return the C function that `json` writes with, None where there is none of that name or kind."""
    try:
        from _json import encode_basestring, make_encoder

        encoder = make_encoder(None, _refuse, encode_basestring, None, ": ", ", ", False, False, True)
        return encoder if "".join(encoder({"a": [1, "ä", None]}, 0)) == '{"a": [1, "ä", null]}' else None
    except (ImportError, AttributeError, TypeError):
        return None


def _refuse(value: Any) -> Any:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_scan, _encode = _new_scanner(), _new_encoder()


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
    if _encode is not None:
        return "".join(_encode(value, 0))
    import json

    return json.dumps(value, ensure_ascii=False)
