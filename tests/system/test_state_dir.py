"""conchd starts only if all in its state directory is its own: otherwise others could choose where it writes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.conch import CONCH, Bench, as_other_user

DEAD = {"CONCH_ENDPOINTS": "127.0.0.1:1"}
VICTIM = "what another file says\n"


def link(folder: Path, victim: Path, name: str) -> None:
    (folder / name).symlink_to(victim)


def hard_link(folder: Path, victim: Path, name: str) -> None:
    (folder / name).hardlink_to(victim)


def of_another(folder: Path, _victim: Path, name: str) -> None:
    (folder / name).touch(0o600)
    os.chown(folder / name, 1, 1)


def writable(folder: Path, _victim: Path, name: str) -> None:
    (folder / name).touch(0o600)
    (folder / name).chmod(0o620)


def inner_folder(folder: Path, _victim: Path, name: str) -> None:
    (folder / name).mkdir()


FILES = ["id", "id.new", "lock", f"{1:020}.wal", f"{1:020}.wal.60.damaged"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (link, "is a link"),
        (hard_link, "is a link"),
        (of_another, "belongs to the user 1"),
        (writable, "can be written by other users"),
        (inner_folder, "is not a regular file"),
    ],
)
def test_files_that_others_may_have_planted_are_refused(
    conch: Bench, plant: Callable[[Path, Path, str], None], says: str, name: str
) -> None:
    """One line and 69; neither the file nor the target of a link is touched."""
    victim, folder = conch.file("victim"), conch.file("state")
    victim.write_text(VICTIM)
    folder.mkdir(mode=0o700)
    plant(folder, victim, name)
    done = conch.run("conchd", "--state-dir", str(folder), env=DEAD)
    assert done.returncode == 69
    assert f"--state-dir: refused: {folder / name} {says}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert victim.read_text() == VICTIM
    assert [path.name for path in folder.iterdir()] == [name]


def test_link_to_nowhere_is_refused(conch: Bench) -> None:
    """Opening it would create its target."""
    folder = conch.file("state")
    folder.mkdir(mode=0o700)
    (folder / "lock").symlink_to(conch.file("made"))
    assert conch.run("conchd", "--state-dir", str(folder), env=DEAD).returncode == 69
    assert not conch.file("made").exists()


@pytest.mark.parametrize("name", ["note", "up"])
def test_link_of_any_name_is_refused(conch: Bench, name: str) -> None:
    """No link in the directory may lead elsewhere."""
    folder = conch.file("state")
    folder.mkdir(mode=0o700)
    (folder / name).symlink_to("..")
    done = conch.run("conchd", "--state-dir", str(folder), env=DEAD)
    assert (done.returncode, "is a link" in done.stderr) == (69, True)


@pytest.mark.parametrize(
    ("owner", "mode", "says"),
    [(1, 0o700, "belongs to the user 1"), (0, 0o770, "can be written"), (0, 0o1777, "can be written")],
)
def test_directory_that_is_not_ours_alone_is_refused(conch: Bench, owner: int, mode: int, says: str) -> None:
    """Its owner could change it at any time; others who may write to it could have done so."""
    folder = conch.file("state")
    folder.mkdir()
    os.chown(folder, owner or os.geteuid(), -1)
    folder.chmod(mode)
    done = conch.run("conchd", "--state-dir", str(folder), env=DEAD)
    assert done.returncode == 69
    assert f"--state-dir: refused: {folder} {says}" in done.stderr
    assert list(folder.iterdir()) == []


def test_directory_of_root_is_refused_to_another_user(conch: Bench) -> None:
    """That user may even write to it."""
    folder = conch.file("state")
    folder.mkdir(mode=0o700)
    done = conch.start("conchd", "--state-dir", str(folder), env=DEAD, program=[*as_other_user(), CONCH])
    assert done.wait() == 69
    assert "belongs to the user" in done.err


def test_link_to_the_directory_is_followed(conch: Bench) -> None:
    """systemd makes such a link for a unit with DynamicUser=."""
    folder = conch.file("private")
    folder.mkdir(mode=0o755)
    conch.file("state").symlink_to(folder)
    daemon = conch.start("conchd", "--state-dir", str(conch.file("state")))
    daemon.wait_event("registered")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "id").exists()
