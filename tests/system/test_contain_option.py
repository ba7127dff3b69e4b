"""`--contain`: what it takes, and the systems on which a run can have a cgroup of its own, or cannot."""

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cgroups import Place, place_of_conch
from tests.support.conch import CONCH, Bench, alive, wait_for
from tests.support.cron import Fleet
from tests.support.users import USER, as_user, folder_with_way_to_root

SHOW = ("--", "cat", "/proc/self/cgroup")


@pytest.fixture
def place() -> Iterator[Place]:
    with place_of_conch() as place:
        yield place


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server in place of etcd: a connection to it would wait to be accepted."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def was_called(server: socket.socket) -> bool:
    try:
        server.accept()
    except BlockingIOError:
        return False
    return True


def endpoint(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def own_by(path: Path) -> None:
    """Delegate a cgroup to the user, as systemd does."""
    for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        subprocess.run(["chown", str(USER), str(path / name)], check=True)


def contained(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the form that a run was logged to have; check that it is the one that it had."""
    assert done.returncode == 0, done.stderr
    (form,) = re.findall(r"event=acquired .*contain=(\w+)", done.stderr)
    assert ("/conch-" in done.stdout) == (form == "cgroup"), done.stdout
    return str(form)


# -- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "variable", "form"),
    [
        ((), "", "cgroup"),
        ((), "auto", "cgroup"),
        ((), "tree", "tree"),
        (("--contain", "tree"), "cgroup", "tree"),
        (("--contain=cgroup",), "tree", "cgroup"),
    ],
)
def test_flag_variable_and_default(place: Place, conch: Bench, flag: tuple[str, ...], variable: str, form: str) -> None:
    done = conch.run("elect", "o", *flag, *SHOW, program=place.enter(CONCH), env={"CONCH_CONTAIN": variable})
    assert contained(done) == form


@pytest.mark.parametrize("command", ["elect o -- true", "sema s --max 1 -- true", "conchd --state-dir state"])
def test_other_value_is_wrong_usage(conch: Bench, silent: socket.socket, command: str) -> None:
    first, *rest = command.split()
    for flags, variable in ((("--contain", "cgroups"), "auto"), ((), "none")):
        env = {"CONCH_CONTAIN": variable, "CONCH_ENDPOINTS": endpoint(silent)}
        done = conch.run(first, *flags, *rest, env=env)
        assert done.returncode == 64, done.stderr
        assert "contain" in done.stderr.lower()
    assert not was_called(silent)


# -- systems ----------------------------------------------------------------------------------------------------

# By what is done in a mount namespace before conch starts: all of it has the v2 hierarchy that is mounted here.
_NONE = 'umount -l "$ROOT"'
_READ_ONLY = 'mount -o remount,bind,ro "$ROOT"'
_COVERED = 'mount -t tmpfs none "$ROOT"; mkdir "$PLACE"'
_ELSEWHERE = 'mkdir -p elsewhere; mount --bind "$PLACE/other" elsewhere; umount -l "$ROOT"'
_ALONE = "umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"
_SECOND = f"{_READ_ONLY}; mkdir -p second; mount -t cgroup2 none second"


def on_system(place: Place, change: str, *command: str, namespace: str = "-m") -> list[str]:
    """Return the command line that runs a command in the place, in namespaces of its own, after a change there."""
    root = str(place.path.parent)
    script = f'PLACE={place.path} ROOT={root}; {change}; exec "$@"'
    return place.enter("unshare", namespace, "sh", "-ec", script, "sh", *command)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_NONE, "no mounted cgroup v2 shows our cgroup"),
        (_ELSEWHERE, "no mounted cgroup v2 shows our cgroup"),
        (_READ_ONLY, "cannot make a cgroup: Read-only file system"),
        (_COVERED, "cannot use a cgroup: No such file or directory"),
        ('echo 0 > "$PLACE/cgroup.max.descendants"', "cannot make a cgroup: Resource temporarily unavailable"),
        ('echo 0 > "$PLACE/other/threaded/cgroup.procs"', "our cgroup is threaded (domain invalid)"),
    ],
    ids=["not mounted", "another is mounted", "read-only", "covered", "limit", "threaded"],
)
def test_system_without_cgroups_for_runs(
    place: Place, conch: Bench, silent: socket.socket, tmp_path: Path, change: str, why: str
) -> None:
    """`auto` runs without, and says why at --verbose; `cgroup` is one line and 69, before etcd is called."""
    (place.path / "other" / "threaded").mkdir(parents=True)
    (place.path / "other" / "threaded" / "cgroup.type").write_text("threaded")
    program = on_system(place, change, CONCH)
    done = conch.run("elect", "o", *SHOW, program=program, env={"CONCH_CONTAIN": "auto"})
    assert contained(done) == "tree"
    assert "uncontained" not in done.stderr
    done = conch.run("elect", "o", "--verbose", *SHOW, program=program, env={"CONCH_CONTAIN": "auto"})
    assert f'level=info event=uncontained reason="{why}"' in done.stderr, done.stderr
    for command in ("elect o -- touch ran", "sema s --max 1 -- touch ran", f"conchd --state-dir {tmp_path}/state"):
        env = {"CONCH_CONTAIN": "cgroup", "CONCH_ENDPOINTS": endpoint(silent)}
        done = conch.run(*command.split(), program=program, env=env)
        assert done.returncode == 69
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert why in done.stderr
        assert not conch.file("ran").exists()
    assert not was_called(silent)


@pytest.mark.parametrize("change", ["true", _ALONE, _SECOND], ids=["hybrid", "v2 alone", "only a second mount works"])
def test_system_with_cgroups_for_runs(place: Place, conch: Bench, change: str) -> None:
    done = conch.run("elect", "o", "--contain", "cgroup", *SHOW, program=on_system(place, change, CONCH))
    assert contained(done) == "cgroup"


def test_cgroup_namespace_that_shows_no_mount_of_ours(place: Place, conch: Bench) -> None:
    """The mount is from outside of the namespace, whose root is our own cgroup."""
    program = on_system(place, "true", CONCH, namespace="-mC")
    done = conch.run("elect", "o", "--verbose", *SHOW, program=program, env={"CONCH_CONTAIN": "auto"})
    assert contained(done) == "tree"
    assert "no mounted cgroup v2 shows our cgroup" in done.stderr


def test_cgroup_namespace_with_its_own_mount(place: Place, conch: Bench) -> None:
    """As in a container: our cgroup is the root of what is mounted."""
    program = on_system(place, _ALONE, CONCH, namespace="-mC")
    done = conch.run("elect", "o", "--contain", "cgroup", *SHOW, program=program)
    assert contained(done) == "cgroup"
    assert re.search(r"^0::/conch-[0-9a-f]{16}$", done.stdout, re.MULTILINE)


def test_plain_user_without_a_cgroup_of_theirs(place: Place, conch: Bench, silent: socket.socket) -> None:
    program = place.enter(*as_user(CONCH))
    done = conch.run("elect", "o", "--verbose", *SHOW, program=program, env={"CONCH_CONTAIN": "auto"})
    assert contained(done) == "tree"
    assert 'event=uncontained reason="cannot make a cgroup: Permission denied"' in done.stderr
    done = conch.run("elect", "o", "--contain", "cgroup", "--endpoints", endpoint(silent), *SHOW, program=program)
    assert (done.returncode, len(done.stderr.splitlines())) == (69, 1)
    assert not was_called(silent)


def test_plain_user_in_a_cgroup_of_theirs(place: Place, conch: Bench) -> None:
    """A user's own slice, or a unit with `User=` and `Delegate=yes`."""
    own_by(place.path)
    done = conch.run("elect", "o", "--contain", "cgroup", *SHOW, program=place.enter(*as_user(CONCH)))
    assert contained(done) == "cgroup"


def test_plain_user_who_may_make_cgroups_but_not_move_into_them(place: Place, conch: Bench) -> None:
    subprocess.run(["chown", str(USER), str(place.path)], check=True)
    program = place.enter(*as_user(CONCH))
    done = conch.run("elect", "o", "--verbose", *SHOW, program=program, env={"CONCH_CONTAIN": "auto"})
    assert contained(done) == "tree"
    assert "we may not move a process within our cgroup" in done.stderr


def test_plain_user_ends_what_became_root(place: Place, conch: Bench) -> None:
    """No signal of the user's can end it, but the kill of its cgroup does."""
    own_by(place.path)
    with folder_with_way_to_root(conch.mark) as folder:
        left = f"setsid {folder}/root --reuid 0 env -i sh -c 'echo $$ > {folder}/pid; exec sleep 1000' &"
        command = f"{left} while ! test -s {folder}/pid; do sleep 0.05; done"
        program = place.enter(*as_user(CONCH))
        done = conch.run("elect", "o", "--kill-after", "200ms", "--", "sh", "-c", command, program=program)
        assert done.returncode == 0, done.stderr
        assert not alive(int((folder / "pid").read_text()))
        assert "contain=cgroup" in done.stderr
        assert "kill-refused" not in done.stderr


# -- limits that come later -------------------------------------------------------------------------------------

_RESTART = ("--restart", "--restart-min", "50ms", "--restart-max", "50ms")


def test_limit_that_comes_later_is_warned_of_once_and_runs_go_on(place: Place, conch: Bench) -> None:
    """With `auto`. When cgroups can be had again, runs have them again."""
    program, env = place.enter(CONCH), {"CONCH_CONTAIN": "auto"}
    show = "grep ^0:: /proc/self/cgroup >> seen"
    wrapper = conch.start("elect", "o", *_RESTART, "--", "sh", "-c", show, program=program, env=env)
    assert "/conch-" in conch.read("seen", 2)
    place.limit(0)
    wait_for(lambda: conch.file("seen").read_text().endswith(f"/{place.path.name}\n"), "a run without a cgroup")
    count = conch.file("seen").read_text().count("\n")
    conch.read("seen", count + 3)
    (warning,) = wrapper.events("uncontained")
    assert warning["level"] == "warning"
    assert warning["reason"] == "cannot make its cgroup: Resource temporarily unavailable"
    place.limit(1000)
    wait_for(lambda: "/conch-" in conch.file("seen").read_text().splitlines()[-1], "a run in a cgroup")
    assert len(wrapper.events("uncontained")) == 1


def test_command_that_must_have_a_cgroup_does_not_run_without(place: Place, conch: Bench) -> None:
    """The limit comes while conch waits: its hook cannot start, and so it gives up."""
    first = conch.hold("o")
    place.limit(1)
    hook = ("--on-acquire", "echo hook >> ran")
    second = conch.queue("o", "--contain", "cgroup", *hook, command="echo command >> ran", program=place.enter(CONCH))
    wait_for(place.runs, "the cgroup of the command")
    first.process.terminate()
    assert second.wait() == 75, second.err
    assert "cannot make its cgroup: Resource temporarily unavailable" in second.err
    assert not conch.file("ran").exists()


def test_run_of_conchd_that_must_have_a_cgroup_fails_without(place: Place, conch: Bench, fleet: Fleet) -> None:
    daemon = fleet.start("a", program=place.conch)
    fleet.add("j", "@yearly", command="echo >> ran")
    assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"
    place.limit(0)
    result = fleet.result("j", fleet.run_now("j"))
    assert (result["state"], result["exit"]) == ("failed", 126)
    assert "Resource temporarily unavailable" in result["reason"]
    assert conch.file("ran").read_text() == "\n"
    place.limit(1000)
    assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"
    assert not daemon.events("uncontained")


def test_limit_that_comes_later_and_conchd(place: Place, conch: Bench, fleet: Fleet) -> None:
    """With `auto`, runs go on without; one warning while that lasts."""
    daemon = fleet.start("a", program=place.enter(CONCH), env={"CONCH_CONTAIN": "auto"})
    fleet.add("j", "@yearly", command="grep ^0:: /proc/self/cgroup >> seen")
    place.limit(0)
    for _ in range(2):
        assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"
    assert "/conch-" not in conch.read("seen", 2)
    assert len(daemon.events("uncontained")) == 1
