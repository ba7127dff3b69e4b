"""Which values of a job are secrets, for those who show it: by the name of a variable, or as a password in a URL."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_WORDS = re.compile(r"PASSW|PASSPHRASE|SECRET|TOKEN|CREDENTIAL|PRIVATE")
_PARTS = re.compile(r"(^|[_0-9])(PASS|PWD|KEY|KEYS|AUTH|PAT|DSN|PIN|COOKIE|SIGNATURE)([_0-9]|$)|(KEY|PASS|PWD)$")
_NO_SECRETS = frozenset({"PWD", "OLDPWD"})
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@")


def is_secret(variable: str, value: str) -> bool:
    """Return whether a variable's name looks like that of a secret, or its value has a URL with credentials."""
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", variable).upper()
    if name in _NO_SECRETS:
        return False
    return bool(_WORDS.search(name) or _PARTS.search(name) or _URL.search(value))


def has_credentials(text: str) -> bool:
    """Return whether a URL with credentials (`https://user:password@host`) is in the text."""
    return _URL.search(text) is not None


def mask_urls(text: str) -> str:
    """Return the text with the credentials of its URLs masked."""
    return _URL.sub(rf"\1{MASK}@", text)


def masked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job with its secrets masked. The command itself is shown as it is."""
    shown = dict(fields)
    env = fields.get("env")
    if isinstance(env, dict):
        shown["env"] = {name: MASK if is_secret(name, str(value)) else value for name, value in env.items()}
    for field in ("ping", "on_failure"):
        if isinstance(fields.get(field), str):
            shown[field] = mask_urls(fields[field])
    return shown


def secrets_of(fields: Mapping[str, Any]) -> list[str]:
    """Return the paths of what `masked` masks, such as `env.PASSWORD` or `ping`."""
    env = fields.get("env")
    variables = env.items() if isinstance(env, dict) else ()
    return [f"env.{name}" for name, value in variables if is_secret(name, str(value))] + [
        field
        for field in ("ping", "on_failure")
        if isinstance(fields.get(field), str) and has_credentials(fields[field])
    ]
