"""A plain user for tests that root runs: commands in that user's name, and a way back to root."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = 54321
_CAPABILITIES = "-all,+dac_read_search"


def as_user(*command: str) -> list[str]:
    """Return the command as a plain user, who may read all files in case Python is where only root may read."""
    capabilities = [f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}"]
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *capabilities, *command]


@contextmanager
def folder_with_way_to_root(mark: str) -> Iterator[Path]:
    """Make a folder that any user may reach, with a program `root`, a setpriv that makes whoever starts it root."""
    folder = Path(f"/tmp/conch-{mark}")
    folder.mkdir()
    folder.chmod(0o777)
    becomes_root = folder / "root"
    shutil.copy("/usr/bin/setpriv", becomes_root)
    becomes_root.chmod(0o4755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
