"""Files with the tail of output: private, in a directory of their own, and gone afterwards, also after a crash."""

import os
import stat
from pathlib import Path

import pytest

from conch.cron.output_files import OutputFiles


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "state").mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def files(tmp_path: Path, state_id: str = "ab" * 16) -> OutputFiles:
    return OutputFiles(str(tmp_path / "state"), state_id, None)


def left(tmp_path: Path) -> list[str]:
    """All that is in the temporary directory."""
    return sorted(path.name for path in (tmp_path / "tmp").rglob("*"))


def test_file_is_private_and_removed(tmp_path: Path) -> None:
    """Its directory is ours alone, and goes with the last user."""
    ours = files(tmp_path)
    path = Path(ours.write("r1", "übel\udcff\n"))
    assert path.read_bytes() == "übel?\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    ours.remove("r1")
    ours.remove("r1")
    assert not path.exists()
    ours.close()
    ours.close()
    assert left(tmp_path) == []
    assert os.listdir(tmp_path / "state") == []


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    """But not the files of commands that still run under the same supervisor."""
    before = files(tmp_path)
    before.write("dead", "x")
    live = Path(before.write("live", "y"))
    after = files(tmp_path)
    assert after.earlier() == {"dead", "live"}
    after.keep(["live"])
    assert left(tmp_path) == [live.parent.name, "live"]
    assert Path(after.write("new", "z")).parent == live.parent
    last = files(tmp_path)
    last.keep([])
    assert left(tmp_path) == []


def test_directory_of_another_is_left_alone(tmp_path: Path) -> None:
    """The name in a copied state directory is that of its original."""
    path = Path(files(tmp_path).write("theirs", "x"))
    files(tmp_path, "cd" * 16).keep([])
    assert path.exists()


@pytest.mark.parametrize("text", ["", "/nowhere/conch-x", "\0", "relative"])
def test_record_that_leads_nowhere(tmp_path: Path, text: str) -> None:
    (tmp_path / "state" / "outputs").write_text(text)
    ours = files(tmp_path)
    ours.keep([])
    assert Path(ours.write("r", "x")).read_text() == "x"


def test_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").touch()
    link = tmp_path / "tmp" / f"conch-{'ab' * 8}-x"
    link.symlink_to(target)
    (tmp_path / "state" / "outputs").write_text(str(link))
    files(tmp_path).keep([])
    assert (target / "precious").exists()


def test_directory_that_was_cleaned_away_is_made_anew(tmp_path: Path) -> None:
    """As by a service that empties /tmp."""
    ours = files(tmp_path)
    first = Path(ours.write("a", "x"))
    first.unlink()
    first.parent.rmdir()
    assert Path(ours.write("b", "y")).read_text() == "y"
