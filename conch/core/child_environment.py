"""The environment of a command, completed by the child that is to become it."""

import os

from conch.core.procfs import RUN_ID_VARIABLE
from conch.errors import ConchError
from conch.static_typing import Mapping, Sequence


def take_place(environment: dict[str, str], supervisor: int) -> None:
    """Make systemd's variables that name the supervisor name this process (sd_listen_fds, sd_watchdog_enabled)."""
    for name in ("LISTEN_PID", "WATCHDOG_PID"):
        if environment.get(name) == str(supervisor):
            environment[name] = str(os.getpid())
            if name == "LISTEN_PID":
                environment.pop("LISTEN_PIDFDID", None)  # it belongs to the supervisor, too


def with_files(
    environment: Mapping[str, str], paths: Sequence[str], job_environment: Mapping[str, str] | None
) -> dict[str, str]:
    """Return the environment with the variables of these files, and over them the job's. Raises `ConchError`."""
    from conch.core.env_file import BadEnvironmentFile, read_env_files  # only jobs have such files

    try:
        read = read_env_files(paths)
    except BadEnvironmentFile as error:
        raise ConchError(str(error)) from None
    ours = {name: environment[name] for name in (RUN_ID_VARIABLE,) if name in environment}
    return {**environment, **read, **(job_environment or {}), **ours}
