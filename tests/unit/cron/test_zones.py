"""The zone database: where it is, what it has now, and which release it says it is."""

from importlib import resources
from pathlib import Path

import pytest

from conch.cron import zones
from conch.cron.fleet import differing_zones
from conch.cron.schedule import parse_schedule
from conch.errors import BadInput
from tests.support.zones import Zones, zone_file


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zones:
    monkeypatch.setattr(zones, "_loaded", {})
    found = Zones(tmp_path / "zones")
    monkeypatch.setenv("TZDIR", str(found.folder))
    return found


def offset(key: str) -> int:
    zone = zones.load(key)
    assert zone is not None
    return zones.offset_at(zone, 1_800_000_000)


def test_the_database_that_tzdir_names_is_read(database: Zones) -> None:
    """What it lacks comes from the package; so does all, where it names nothing."""
    database.zone("Europe/Berlin", 4321)
    assert offset("Europe/Berlin") == 4321
    assert offset("Asia/Tokyo") == 9 * 3600
    assert zones.load("Europe/Nowhere") is None
    assert zones.load("Europe") is None
    assert zones.version() == "2026a"


def test_the_release_of_the_package_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no database."""
    monkeypatch.setattr(zones, "TZPATH", ())
    monkeypatch.delenv("TZDIR", raising=False)
    assert zones.version()[:2] == "20"
    assert len(zones.version()) == 5


def test_a_database_that_does_not_name_its_release_has_a_digest(database: Zones) -> None:
    """Of all of its zones; `+VERSION` names it on some systems."""
    (database.folder / "tzdata.zi").unlink()
    database.zone("Europe/Berlin", 0)
    first = zones.version()
    assert first.startswith("sha256:")
    assert zones.version() == first
    database.zone("Europe/Berlin", 1)
    assert zones.version() != first
    database.write("+VERSION", b"2025c\n")
    assert zones.version() == "2025c"


def test_a_change_is_noticed_by_the_bytes_of_the_zones_in_use(database: Zones) -> None:
    """And each zone is the same object until then, so that nobody mixes two rules."""
    database.zone("Europe/Berlin", 3600)
    database.zone("Europe/Paris", 3600)
    before = zones.load("Europe/Berlin")
    assert zones.load("Europe/Berlin") is before
    assert zones.scan() == ([], "2026a", "")
    database.zone("Europe/Berlin", 3600)  # the same again
    database.zone("Europe/Paris", 0)  # not in use
    database.release("2026b")
    assert zones.scan() == ([], "2026b", "")
    assert zones.load("Europe/Berlin") is before
    database.zone("Europe/Berlin", 7200)
    assert zones.scan() == (["Europe/Berlin"], "2026b", "")
    assert offset("Europe/Berlin") == 7200
    assert before is not None
    assert zones.offset_at(before, 0) == 3600


def test_a_file_that_is_cut_off_anywhere_is_no_zone(database: Zones) -> None:
    """And is read to its end: without its last line Python would look for it for ever."""
    whole = (Path(str(resources.files("tzdata"))) / "zoneinfo" / "Europe" / "Berlin").read_bytes()
    for size in range(len(whole)):
        database.write("Europe/Cut", whole[:size])
        assert zones.load("Europe/Cut") is None
    database.write("Europe/Cut", whole)
    assert zones.load("Europe/Cut") is not None


@pytest.mark.parametrize("data", [b"", zone_file(0)[:60], b"not a zone", b"TZif" + b"\xff" * 200])
def test_what_is_no_zone_just_now_leaves_the_old_rules(database: Zones, data: bytes) -> None:
    """A file that is being written, say."""
    database.zone("Europe/Berlin", 4321)
    assert offset("Europe/Berlin") == 4321
    database.write("Europe/Berlin", data)
    assert zones.scan().changed == []
    assert offset("Europe/Berlin") == 4321


def test_a_system_without_descriptors_changes_nothing(database: Zones, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said."""
    database.zone("Europe/Berlin", 4321)
    assert offset("Europe/Berlin") == 4321

    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", full)
    assert zones.scan() == ([], "", "Too many open files")
    assert offset("Europe/Berlin") == 4321


def test_what_never_fires_depends_on_the_rules(database: Zones) -> None:
    """A zone that is not there is unknown until it is."""
    with pytest.raises(BadInput, match="unknown time zone"):
        parse_schedule("@daily", zone="Mars/Olympus")
    database.zone("Mars/Olympus", 2222)
    assert parse_schedule("@daily", zone="Mars/Olympus").next_after(0) == 86400 - 2222


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ({}, ""),
        ({"a": {"tzdata": "2026a"}, "b": {"tzdata": "2026a"}}, ""),
        ({"a": {"tzdata": "2026a"}, "b": {}, "c": {"tzdata": ""}, "d": {"tzdata": 5}}, ""),
        ({"b": {"tzdata": "2026b"}, "a": {"tzdata": "2026a"}, "c": {"tzdata": "2026b"}}, "2026a: a; 2026b: b c"),
        ({"a": {"tzdata": "2026a"}, "b": {"tzdata": "sha256:1"}}, ""),
        ({"a": {"tzdata": "sha256:2"}, "b": {"tzdata": "sha256:1"}}, "sha256:1: b; sha256:2: a"),
    ],
)
def test_hosts_with_other_releases_are_named(nodes: dict[str, dict[str, object]], said: str) -> None:
    """A digest says nothing about a release, and an older conchd says none."""
    assert differing_zones(nodes) == said
