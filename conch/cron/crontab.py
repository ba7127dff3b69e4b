"""Reads a crontab as crontab(5) describes it, and writes it as the TOML that `conch cron apply` takes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conch.cron.crontab_names import unique_names
from conch.cron.definition import build
from conch.cron.job_export import head_of, table_of
from conch.cron.schedule_advice import check_written
from conch.errors import BadInput

_VARIABLE = re.compile(r"""\s*(["']?)([A-Za-z_][A-Za-z0-9_]*)\1\s*=\s*(.*)""")
_FIELDS = re.compile(r"((?:\S+\s+){4}\S+)\s+(.*)")
_NICKNAME = re.compile(r"(@\S+)\s+(.*)")
# cronie's range of which it draws one value
_RANDOM = re.compile(r"(?<![^,\s])(\d*)~(\d*)(?![^,/\s])")
# What cron does and conch does not, by variable.
_NOT_OURS = frozenset({"MAILTO", "MAILFROM", "CONTENT_TYPE", "CONTENT_TRANSFER_ENCODING", "RANDOM_DELAY"})
_SHELL = "/bin/sh"
# Gives `$2` to the command line `$1` on its stdin; `$0` is the crontab's shell.
_WITH_INPUT = 'printf %s "$2" | "$0" -c "$1"'


@dataclass(frozen=True, slots=True)
class Entry:
    """A line with a schedule: the job that it becomes, without a name, and the comments above it."""

    line: int
    text: str
    command: str
    fields: Mapping[str, Any]
    user: str | None
    comments: Sequence[str]


@dataclass(slots=True)
class Crontab:
    """What was read of a crontab: entries and comments in their order, and what conch cannot do."""

    items: list[Entry | list[str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _State:
    """What the lines before an entry have set."""

    zone: str | None
    env: dict[str, str] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)


def read_crontab(label: str, content: bytes, *, system: bool, zone: str | None) -> Crontab:
    """Read a crontab; with `system` its lines have a user after the schedule. Raises `BadInput` with the line."""
    crontab, state = Crontab(), _State(zone)
    for number, raw in enumerate(content.split(b"\n"), start=1):
        where = f"{label}:{number}"
        try:
            line = raw.decode().strip(" \t\r\f\v")
        except UnicodeDecodeError:
            raise BadInput(f"{where}: not UTF-8") from None
        if "\0" in line:
            raise BadInput(f"{where}: a NUL is in it")
        if not line or line.startswith("#"):
            if line:
                state.comments.append(" ".join(line[1:].split("\t")).strip())
            elif state.comments:
                crontab.items.append(state.comments)
                state.comments = []
            continue
        variable = _VARIABLE.fullmatch(line)
        if variable is not None:
            _set_variable(crontab, state, where, variable[2], _unquoted(variable[3]))
            continue
        _read_entry(crontab, state, where, (number, line), system=system)
    if state.comments:
        crontab.items.append(state.comments)
    return crontab


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _set_variable(crontab: Crontab, state: _State, where: str, name: str, value: str) -> None:
    if name == "CRON_TZ":
        state.zone = value
    elif name in _NOT_OURS:
        state.comments.append(f"{name}={value}: conch does not do this")
        if value:
            hint = ": use on-failure or ping" if name == "MAILTO" else ""
            crontab.warnings.append(f"{where}: {name} is not supported{hint}")
    else:
        state.env[name] = value


def _read_entry(crontab: Crontab, state: _State, where: str, at: tuple[int, str], *, system: bool) -> None:
    number, line = at
    comments, state.comments = state.comments, []
    match = (_NICKNAME if line.startswith("@") else _FIELDS).fullmatch(line.removeprefix("-"))
    if match is None:
        raise BadInput(f"{where}: neither a variable nor five fields and a command: {line[:100]!r}")
    schedule, command, user = " ".join(match[1].split()), match[2].strip(), None
    if system:
        user, command = (*command.split(maxsplit=1), "")[:2]
        if not command:
            raise BadInput(f"{where}: no command after the user {user!r}")
    elif command.split()[0] == "root":
        crontab.warnings.append(f"{where}: the command is 'root …': is this a system crontab? (--system)")
    if schedule.lower() == "@reboot":
        crontab.items.append([*comments, f"not imported: {line}", "@reboot: a host that starts is no tick"])
        crontab.warnings.append(f"{where}: @reboot is not supported: use a systemd unit")
        return
    schedule = schedule.lower() if schedule.startswith("@") else _RANDOM.sub(_hashed, schedule)
    fields = {"schedule": schedule, **_fields(command, state)}
    try:
        check_written(schedule)
        build("name", fields)
    except BadInput as error:
        crontab.items.append([*comments, f"not imported: {line}", str(error)])
        crontab.warnings.append(f"{where}: not imported: {error}")
        return
    crontab.items.append(Entry(number, line, command, fields, user, comments))


def _hashed(match: "re.Match[str]") -> str:
    return f"H({match[1]}-{match[2]})" if match[1] and match[2] else "H"


def _fields(command: str, state: _State) -> dict[str, Any]:
    """Return the fields of a job, all but its schedule. cron ends no run, so the job has the longest limit."""
    shell = state.env.get("SHELL", _SHELL)
    line, text = _split_input(command)
    cmd = [shell, "-c", line] if not text else [_SHELL, "-c", _WITH_INPUT, shell, line, text]
    fields: dict[str, Any] = {"cmd": cmd, "run_ttl": 86400.0, "env": dict(state.env)}
    if state.zone is not None:
        fields["tz"] = state.zone
    home = state.env.get("HOME", "")
    if home.startswith("/"):
        fields["cwd"] = home
    return fields


def _split_input(command: str) -> tuple[str, str]:
    """Split a command at its first `%`: what follows is its input, where each `%` is a new line; `\\%` is a `%`."""
    parts = [part.replace("\\%", "%") for part in re.split(r"(?<!\\)%", command)]
    text = "\n".join(parts[1:])
    return parts[0], text if not text or text.endswith("\n") else text + "\n"


# -- writing --------------------------------------------------------------------------------------------------


def to_toml(crontab: Crontab, label: str) -> Iterator[str]:
    """Yield the parts of the TOML file: a head, then comments and jobs in the order of the crontab."""
    entries = [item for item in crontab.items if isinstance(item, Entry)]
    names = unique_names([(entry.command, f"{entry.user}\0{entry.text}") for entry in entries])
    by_line = {entry.line: name for entry, name in zip(entries, names, strict=True)}
    yield head_of(None, [f"made by conch cron import from {label}"])
    for item in crontab.items:
        if isinstance(item, Entry):
            user = [] if item.user is None else [f"user: {item.user}"]
            yield "\n" + table_of(by_line[item.line], item.fields, [*item.comments, *user])
        else:
            yield "\n" + head_of(None, item)
