"""A folder that lasts: locked for one cluster, with the ports by which its members know each other."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conch.dev.data_folder import DataFolder
from conch.dev.member import EtcdFailed, Member


def member(client_port: int, peer_port: int) -> Member:
    found: Any = SimpleNamespace(client_port=client_port, peer_port=peer_port)
    return found  # type: ignore[no-any-return]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "not" / "yet"


@pytest.fixture
def folder(path: Path) -> Iterator[DataFolder]:
    folder = DataFolder.lasting(path, 1)
    yield folder
    folder.close()


def test_it_is_made_with_all_that_is_above_it(folder: DataFolder, path: Path) -> None:
    assert path.is_dir()
    assert (folder.path, folder.ports, folder.lasts) == (path, None, True)


def test_it_is_one_clusters_at_a_time(folder: DataFolder, path: Path) -> None:
    """Two etcds on the same data would break it. Once it is closed, the next one may."""
    with pytest.raises(EtcdFailed, match="is in use by another conch dev"):
        DataFolder.lasting(path, 1)
    folder.close()
    DataFolder.lasting(path, 1).close()


@pytest.mark.parametrize("members", [1, 3])
def test_ports_are_those_of_the_start_before(path: Path, members: int) -> None:
    """The peers of a cluster are known by their ports."""
    first = DataFolder.lasting(path, members)
    first.remember_ports([member(2 * at, 2 * at + 1) for at in range(members)])
    first.close()
    again = DataFolder.lasting(path, members)
    assert again.ports == list(range(2 * members))
    again.close()


@pytest.mark.parametrize(("members", "had"), [(1, 3), (3, 1)])
def test_cluster_of_another_size_is_refused(path: Path, members: int, had: int) -> None:
    """It says what to do; the folder is free again, and as it was."""
    first = DataFolder.lasting(path, had)
    first.remember_ports([member(2 * at, 2 * at + 1) for at in range(had)])
    first.close()
    with pytest.raises(EtcdFailed, match=f"a cluster of {had}, not of {members}: use --members {had}"):
        DataFolder.lasting(path, members)
    again = DataFolder.lasting(path, had)
    assert again.ports is not None
    again.close()


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "7", "null", '["a", 2]', '{"a": 1, "b": 2}', "\ud800"])
def test_ports_that_cannot_be_read_are_told(path: Path, text: str) -> None:
    """As after a full disk; nothing is started with other ports on that data."""
    path.mkdir(parents=True)
    (path / "ports.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for _ in range(2):  # the lock is not kept
        with pytest.raises(EtcdFailed, match=f"cannot use --data-dir {path}: "):
            DataFolder.lasting(path, 1)


@pytest.mark.parametrize("above", ["file", "folder without rights"])
def test_folder_that_cannot_be_is_told(tmp_path: Path, above: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "above"
    if above == "file":
        where.write_text("")
    else:

        def denied(path: Path, *_arguments: object, **_options: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", denied)  # root may do anything
    with pytest.raises(EtcdFailed, match="cannot use --data-dir .*above/data: "):
        DataFolder.lasting(where / "data", 1)


def test_temporary_one_remembers_nothing() -> None:
    """The guardian removes it; two of them are two."""
    first, second = DataFolder.temporary(), DataFolder.temporary()
    try:
        assert first.path != second.path
        assert not first.lasts
        first.remember_ports([member(1, 2)])
        assert list(first.path.iterdir()) == []
        first.close()
        assert first.path.is_dir()
    finally:
        first.path.rmdir()
        second.path.rmdir()


def test_ports_are_written_as_a_list(folder: DataFolder, path: Path) -> None:
    """Client's and peers' port of each member: the format that earlier releases wrote."""
    folder.remember_ports([member(20001, 20002), member(20003, 20004)])
    assert json.loads((path / "ports.json").read_text()) == [20001, 20002, 20003, 20004]
