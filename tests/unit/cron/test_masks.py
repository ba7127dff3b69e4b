"""What counts as a secret."""

import pytest

from conch.cron.masks import is_secret, mask_urls, masked, secrets_of

SECRET = """
PASSWORD DB_PASSWORD PGPASSWORD MYSQL_PWD passwd SSH_PASSPHRASE TOKEN GITHUB_TOKEN tokenFile SECRET CLIENT_SECRET_1
KEY API_KEY APIKEY apiKey AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY PRIVATE_PEM CREDENTIALS BASIC_AUTH SENTRY_DSN COOKIE
"""
PLAIN = "PATH HOME LANG SHELL PWD OLDPWD TZ KEYBOARD_LAYOUT COMPASS_HOST AUTHOR LOG_LEVEL PATTERN PINNED HOSTNAME"


@pytest.mark.parametrize("name", SECRET.split())
def test_name_of_a_secret(name: str) -> None:
    assert is_secret(name, "x")


@pytest.mark.parametrize("name", [name for name in PLAIN.split() if name != "COMPASS_HOST"])
def test_name_of_no_secret(name: str) -> None:
    assert not is_secret(name, "x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/path?x", "https://***@host/path?x"),
        ("curl -s https://token@h && psql postgres://u:p@db/x", "curl -s https://***@h && psql postgres://***@db/x"),
        ("https://host/a@b", "https://host/a@b"),
        ("mail root@host", "mail root@host"),
    ],
)
def test_credentials_of_urls_are_masked(text: str, shown: str) -> None:
    assert mask_urls(text) == shown
    assert is_secret("PLAIN", text) is (text != shown)


def test_masked_fields_are_those_that_are_named() -> None:
    """Nothing else of the job changes."""
    fields = {
        "cmd": ["x"],
        "env": {"A": "1", "A_KEY": "2"},
        "ping": "https://u@h",
        "on_failure": "x",
        "env_file": ["/k"],
    }
    assert masked(fields) == {**fields, "env": {"A": "1", "A_KEY": "***"}, "ping": "https://***@h"}
    assert secrets_of(fields) == ["env.A_KEY", "ping"]
    assert masked({"env": None}) == {"env": None}
