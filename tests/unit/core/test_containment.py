"""Where runs get cgroups: the kernel's files as text, and places in the real cgroups in which none can be had."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conch.core import containment as module
from conch.core.cgroup import Cgroup, path_of, remove_left
from conch.core.containment import Containment, find, own_directories
from conch.errors import EXIT_UNAVAILABLE, ConchError
from conch.log import Log
from tests.support.cgroups import Place, new_place, sleeper
from tests.support.conch import log_lines

V1 = "36 31 0:33 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
UNIFIED = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

LEFT, LIVED_IN, OWNED = (f"conch-{digit * 16}" for digit in "e0a")


def mount(root: str, point: str, options: str = "rw") -> str:
    """Return a line of mountinfo: the directory `root` of the hierarchy is mounted at `point`."""
    return f"99 1 0:38 {root} {point} {options} shared:1 master:2 - cgroup2 none rw\n"


@pytest.fixture
def place() -> Iterator[Place]:
    with new_place() as place:
        yield place


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place that `find` takes for our own cgroup."""
    monkeypatch.setattr(module, "own_directories", lambda: [str(place.path)])
    return place


@pytest.mark.parametrize(
    ("own", "mounts", "directories"),
    [
        # v2 alone, hybrid, v1 alone, none
        ("0::/system.slice/c.service\n", UNIFIED, ["/sys/fs/cgroup/system.slice/c.service"]),
        ("8:pids:/x\n0::/a\n", V1 + HYBRID, ["/sys/fs/cgroup/unified/a"]),
        ("8:pids:/x\n1:name=systemd:/a\n", V1, []),
        ("8:pids:/x\n", V1 + UNIFIED, []),
        ("0::/a\n", V1, []),
        ("", "", []),
        # the root
        ("0::/\n", UNIFIED, ["/sys/fs/cgroup"]),
        ("0::/a\n", mount("/", "/"), ["/a"]),
        # a v1 hierarchy whose name or path looks like version 2
        ("10::/a\n1:name=0::/b\n", UNIFIED, []),
        ("0::/a\n", "36 31 0:33 / /cgroup2 rw - cgroup cgroup2 rw\n", []),
        # a directory below the root is mounted (a container without a namespace)
        ("0::/docker/1/a\n", mount("/docker/1", "/sys/fs/cgroup"), ["/sys/fs/cgroup/a"]),
        ("0::/docker/1\n", mount("/docker/1", "/sys/fs/cgroup"), ["/sys/fs/cgroup"]),
        ("0::/docker/12\n", mount("/docker/1", "/sys/fs/cgroup"), []),
        ("0::/docker\n", mount("/docker/1", "/sys/fs/cgroup"), []),
        ("0::/other\n", mount("/docker/1", "/sys/fs/cgroup"), []),
        # cgroup namespaces: ours lies above the namespace's root, or the mount does
        ("0::/../a\n", UNIFIED, []),
        ("0::/..\n", UNIFIED, []),
        ("0::/\n", mount("/..", "/sys/fs/cgroup"), []),
        ("0::/..\n", mount("/..", "/sys/fs/cgroup"), ["/sys/fs/cgroup"]),
        ("0::/../a\n", mount("/..", "/sys/fs/cgroup"), ["/sys/fs/cgroup/a"]),
        ("0::/../../a\n", mount("/..", "/sys/fs/cgroup"), []),
        ("0::/..a/b..\n", UNIFIED, ["/sys/fs/cgroup/..a/b.."]),
        # several mounts, in the kernel's order
        ("0::/d/a\n", mount("/", "/x") + mount("/e", "/y") + mount("/d", "/z"), ["/x/d/a", "/z/a"]),
        ("0::/a\n", mount("/", "/x", "ro") + mount("/", "/y"), ["/x/a", "/y/a"]),
        # what mountinfo escapes; /proc/self/cgroup escapes nothing
        ("0::/a b\n", mount("/", r"/my\040c\011g\012r\134p"), ["/my c\tg\nr\\p/a b"]),
        ("0::/a b/c\n", mount(r"/a\040b", "/m"), ["/m/c"]),
        ("0::/a\n", mount("/", r"/m\134040"), [r"/m\040/a"]),
        ("0::/a\\x2db:c\n", UNIFIED, ["/sys/fs/cgroup/a\\x2db:c"]),
        # what is not UTF-8
        ("0::/\udcff\n", mount("/", "/\udcfe"), ["/\udcfe/\udcff"]),
        # ours was removed: there is no such directory
        ("0::/a (deleted)\n", UNIFIED, ["/sys/fs/cgroup/a (deleted)"]),
    ],
)
def test_directories_of_our_cgroup(tmp_path: Path, own: str, mounts: str, directories: list[str]) -> None:
    cgroups, mountinfo = tmp_path / "cgroup", tmp_path / "mountinfo"
    cgroups.write_text(own, "utf-8", "surrogateescape")
    mountinfo.write_text(mounts, "utf-8", "surrogateescape")
    assert own_directories(str(cgroups), str(mountinfo)) == directories


def test_directory_of_our_cgroup_is_where_this_process_lives() -> None:
    """As the kernel says it here, if it has cgroups of version 2."""
    for directory in own_directories():
        assert str(os.getpid()) in Path(directory, "cgroup.procs").read_text().split()


def test_tree_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for no cgroup hears no reason."""
    monkeypatch.setattr(module, "own_directories", lambda: pytest.fail("looked"))
    found = find("tree")
    assert (found.form, found.parent, found.reason, found.open("1")) == ("tree", "", "", None)


@pytest.mark.parametrize(
    ("directories", "why"),
    [
        ([], "no mounted cgroup v2 shows our cgroup"),
        (["/nowhere"], "cannot make a cgroup: No such file or directory"),
        (["/proc/self"], "cannot make a cgroup: No such file or directory"),
        (["/dev/shm"], "cannot use a cgroup: No such file or directory"),  # something else is mounted over it
    ],
)
def test_nowhere_to_make_one(monkeypatch: pytest.MonkeyPatch, directories: list[str], why: str) -> None:
    """`auto` says why and goes on; `cgroup` is one line and 69. What was made to find out is gone."""
    monkeypatch.setattr(module, "own_directories", lambda: directories)
    found = find("auto")
    assert (found.form, found.parent, found.reason, found.open("1")) == ("tree", "", why, None)
    with pytest.raises(ConchError, match=f"cgroup of its own: {why}") as caught:
        find("cgroup")
    assert caught.value.code == EXIT_UNAVAILABLE
    for directory in directories:
        assert not list(Path(directory).glob("conch-*"))


def test_unreadable_proc_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> list[str]:
        raise PermissionError(13, "Permission denied", "/proc/self/cgroup")

    monkeypatch.setattr(module, "own_directories", unreadable)
    assert find("auto").reason == "cannot find our cgroup: Permission denied"


def test_every_run_gets_one(here: Place) -> None:
    found = find("cgroup")
    assert (found.form, found.parent, found.reason) == ("cgroup", str(here.path), "")
    assert here.runs() == []
    made = found.open("1")
    assert made is not None
    assert made.path == path_of(found.parent, "1") == f"{here.path}/conch-1"
    assert made.remove()


def test_first_mount_that_works_is_taken(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "own_directories", lambda: ["/nowhere", str(here.path), "/elsewhere"])
    found = find("auto")
    assert (found.parent, found.reason) == (str(here.path), "")


def test_number_of_cgroups_is_limited(here: Place) -> None:
    here.limit(0)
    assert find("auto").reason == "cannot make a cgroup: Resource temporarily unavailable"


def test_threaded_cgroup(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes cannot be moved below it."""
    threaded = here.path / "threaded"
    threaded.mkdir()
    (threaded / "cgroup.type").write_text("threaded")
    monkeypatch.setattr(module, "own_directories", lambda: [str(threaded)])
    assert find("auto").reason == "our cgroup is threaded (domain invalid)"
    assert not here.runs()


def test_limit_that_comes_later_is_warned_of_once(here: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """`auto` goes on without, and with one again as soon as it can be had; then a new limit is new."""
    found = find("auto", Log(form="logfmt"))
    lines: list[dict[str, str]] = []
    for warned, limit in ((0, 1), (1, 0), (1, 0), (1, 1), (2, 0)):
        here.limit(limit)
        made = found.open("1")
        assert (made is None) == (limit == 0)
        if made is not None:
            made.remove()
        assert found.form == ("tree" if made is None else "cgroup")
        lines += log_lines(capfd.readouterr().err)
        assert [line["level"] for line in lines] == ["warning"] * warned
    assert {line["reason"] for line in lines} == {"cannot make its cgroup: Resource temporarily unavailable"}


def test_run_that_must_have_one_does_not_start_without(here: Place) -> None:
    found = find("cgroup")
    here.limit(0)
    with pytest.raises(BlockingIOError):
        found.open("1")


def test_cgroup_that_cannot_be_entered_is_warned_of_once(here: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """The next run tries again."""
    found = find("auto", Log(form="logfmt"))
    for _ in range(2):
        found.warn("cannot enter its cgroup: Permission denied")
        assert found.form == "tree"
    made = found.open("1")
    assert made is not None
    made.remove()
    assert found.form == "cgroup"
    assert [line["event"] for line in log_lines(capfd.readouterr().err)] == ["uncontained"]


def test_those_that_are_left_are_removed(place: Place) -> None:
    """Empty ones that nobody owns, and no others; nested ones go with them."""
    (place.path / LEFT / LEFT).mkdir(parents=True)
    (place.path / LIVED_IN).mkdir()
    for other in ("other", "conch-web.service", "conch-0123456789abcdeg"):
        (place.path / other).mkdir()
    owned = Cgroup.create(f"{place.path}/{OWNED}")
    with sleeper(place.path / LIVED_IN):
        remove_left(str(place.path))
        assert sorted(path.name for path in place.path.iterdir() if path.is_dir()) == [
            LIVED_IN,
            "conch-0123456789abcdeg",
            OWNED,
            "conch-web.service",
            "other",
        ]
    owned.close()


def test_many_that_are_left_are_removed_by_several(place: Place) -> None:
    """Each looks at some of them, not always at the same ones."""
    for number in range(100):
        (place.path / f"conch-{number:016x}").mkdir()
    remove_left(str(place.path))
    assert 0 < len(place.runs()) < 100
    for _ in range(3):
        remove_left(str(place.path))
    assert place.runs() == []


def test_without_a_place_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the form `tree` nothing is looked for, in the working directory least of all."""
    monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("looked"))
    remove_left("")


def test_modes_without_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Containment("auto", "/nowhere").open("1") is None
    with pytest.raises(FileNotFoundError):
        Containment("cgroup", "/nowhere").open("1")
