"""What somebody meant by a command or an option that conch does not have: by meaning, by spelling, or nothing."""

from difflib import get_close_matches

from conch.static_typing import Collection, Mapping, Sequence

_COMMANDS: Mapping[str, str] = {
    "lock": "elect",
    "leader": "elect",
    "lead": "elect",
    "election": "elect",
    "campaign": "elect",
    "mutex": "elect",
    "flock": "elect",
    "semaphore": "sema",
    "slots": "sema",
    "limit": "sema",
    "crontab": "cron",
    "schedule": "cron",
    "jobs": "cron ls",
    "job": "cron show",
    "daemon": "conchd",
    "serve": "conchd",
    "etcd": "dev",
}
_CRON_COMMANDS: Mapping[str, str] = {
    "list": "ls",
    "delete": "rm",
    "del": "rm",
    "remove": "rm",
    "describe": "show",
    "get": "show",
    "info": "show",
    "cat": "show",
    "create": "add",
    "new": "add",
    "edit": "set",
    "update": "set",
    "change": "set",
    "trigger": "run",
    "start": "run",
    "exec": "run",
    "now": "run",
    "enable": "resume",
    "unpause": "resume",
    "continue": "resume",
    "disable": "pause",
    "suspend": "pause",
    "stop": "pause",
    "hold": "pause",
    "status": "ls --last",
    "runs": "history",
    "log": "logs",
    "output": "logs",
    "tail": "logs",
    "load": "apply",
    "sync": "apply",
    "dump": "export",
    "backup": "export",
    "nodes": "hosts",
    "daemons": "hosts",
    "drain": "cordon",
}
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "--nb": ("--nonblock",),
    "--non-block": ("--nonblock",),
    "--nowait": ("--nonblock",),
    "--no-wait": ("--nonblock",),
    "--try": ("--nonblock",),
    "--timeout": ("--wait", "--run-ttl", "--command-timeout"),
    "--wait-timeout": ("--wait",),
    "--slots": ("--max",),
    "--limit": ("--max",),
    "--count": ("--max", "-n"),
    "--capacity": ("--max",),
    "--parallel": ("--max",),
    "--list": ("--who",),
    "--status": ("--who", "--last"),
    "--show": ("--who",),
    "--holder": ("--who",),
    "--leader": ("--who",),
    "--owner": ("--who",),
    "--follow": ("--watch",),
    "--check": ("--assert",),
    "--lease": ("--ttl",),
    "--lease-ttl": ("--ttl",),
    "--grace": ("--kill-after",),
    "--kill-timeout": ("--kill-after",),
    "--retry": ("--restart", "--retries"),
    "--loop": ("--restart",),
    "--forever": ("--restart",),
    "--on-acquired": ("--on-acquire",),
    "--on-lost": ("--on-lose",),
    "--on-release": ("--on-lose",),
    "--exit-code": ("--conflict-exit-code",),
    "--cron": ("--schedule",),
    "--every": ("--schedule",),
    "--at": ("--schedule",),
    "--when": ("--schedule",),
    "--timezone": ("--tz",),
    "--zone": ("--tz",),
    "--concurrency": ("--overlap", "--max"),
    "--max-runtime": ("--run-ttl",),
    "--dir": ("--cwd", "--state-dir", "--data-dir"),
    "--workdir": ("--cwd",),
    "--environment": ("--env",),
    "--host": ("--endpoints",),
    "--endpoint": ("--endpoints",),
    "--server": ("--endpoints",),
    "--etcd": ("--endpoints",),
    "--ca": ("--cacert",),
    "--ca-cert": ("--cacert",),
    "--tls-cert": ("--cert",),
    "--tls-key": ("--key",),
    "--username": ("--user",),
    "--password": ("--password-file",),
    "--namespace": ("--prefix",),
    "--silent": ("--quiet",),
    "--debug": ("--verbose",),
    "--format": ("--log-format", "--json"),
    "--output": ("--json",),
    "-o": ("--json",),
    "--port": ("--status-addr",),
    "--listen": ("--status-addr",),
}
# How alike two spellings must be, from 0 to 1: `elct` and `elect` are 0.89.
_ALIKE, _OPTIONS_ALIKE = 0.72, 0.82


def meant_command(name: str, group: str, members: Sequence[str]) -> str:
    """Return the command of a group (`` or `cron`) that was meant; empty if that cannot be told."""
    found = (_CRON_COMMANDS if group == "cron" else _COMMANDS).get(name.lower(), "")
    if group != "cron" and not found:
        found = "" if name.lower() not in _CRON_COMMANDS else f"cron {_CRON_COMMANDS[name.lower()]}"
    if found and (found.split()[0] in members):
        return found
    return next(iter(get_close_matches(name.lower(), members, 1, _ALIKE)), "")


def meant_option(flag: str, flags: Collection[str]) -> str:
    """Return the option among `flags` that was meant; empty if that cannot be told."""
    by_meaning = [meant for meant in _OPTIONS.get(flag.lower(), ()) if meant in flags]
    long = [other for other in flags if other.startswith("--")]
    return (by_meaning or get_close_matches(flag.lower(), long, 1, _OPTIONS_ALIKE) or [""])[0]
