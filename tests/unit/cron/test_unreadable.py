"""Reports of keys and values that conch cannot read."""

from conch.cron.unreadable import Unreadable


def test_unreadable_keys_are_reported_once_and_not_without_end() -> None:
    """One line per key; after a thousand keys no more are remembered or named."""
    lines: list[dict[str, str]] = []

    def log(level: str, event: str, **text: str) -> None:
        assert (level, event) == ("warning", "unreadable")
        lines.append(text)

    report = Unreadable(log)
    for _ in range(3):
        report(b"/p/\xff", "why")
    assert lines == [{"key": "/p/\ufffd", "msg": "why"}]
    for number in range(3000):
        report(b"%d" % number + b"x" * 10_000, "why")
    assert len(lines) == 1001
    assert "no others are named" in lines[-1]["msg"]
    assert max(len(line["key"]) for line in lines) <= 500
