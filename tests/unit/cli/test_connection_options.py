"""What the common options mean: user and password, and which commands have them."""

import os
from pathlib import Path

import pytest

from conch.cli.click_adapter import explicit, to_click
from conch.cli.connection_options import COMMON, settings
from conch.cli.dev import DEV
from conch.cli.elect import ELECT
from conch.cli.spec import Line
from conch.etcd.connection import Settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours from outside."""
    for name in list(os.environ):
        if name.startswith(("CONCH_", "ETCDCTL_")):
            monkeypatch.delenv(name)


def test_dev_has_no_connection_options() -> None:
    """It makes the connection."""
    assert not set(DEV.options) & set(COMMON)


def found(arguments: list[str]) -> Settings:
    context = to_click(ELECT).make_context("elect", ["n", *arguments])
    with context:
        return settings(Line(context.params, explicit(), None))


def test_password_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--user name:password, --password-file, CONCH_PASSWORD, ETCDCTL_PASSWORD."""
    path = tmp_path / "password"
    path.write_text("of-file\n")
    monkeypatch.setenv("ETCDCTL_PASSWORD", "of-etcdctl")
    assert found(["--user", "u"]).connection.password == "of-etcdctl"
    monkeypatch.setenv("CONCH_PASSWORD", "of-conch")
    assert found(["--user", "u"]).connection.password == "of-conch"
    assert found(["--user", "u", "--password-file", str(path)]).connection.password == "of-file"
    both = found(["--user", "u:of:flag", "--password-file", str(path)]).connection
    assert (both.user, both.password) == ("u", "of:flag")
    assert "of:flag" not in repr(both)
    assert found([]).connection.password is None
