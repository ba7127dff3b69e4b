"""Signals to conch in every state, and hooks."""

import os
import resource
import signal
import socket
import subprocess
import time

import pytest

from tests.support.conch import CONCH, Bench, alive, wait_for

pytestmark = pytest.mark.kinds("elect", "sema")

ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
NOTE = 'for s in TERM INT QUIT HUP USR1 USR2 WINCH CONT; do trap "echo $s >> got" $s; done; echo up >> got; '
LOOP = NOTE + "while :; do sleep 0.02; done"


@pytest.mark.parametrize("number", [*ENDING, signal.SIGHUP])
def test_signal_while_dialling_ends_conch(conch: Bench, number: int) -> None:
    """It ends immediately, although no endpoint answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        wrapper = conch.start(*conch.holding("o"), "--endpoints", f"127.0.0.1:{silent.getsockname()[1]}", "--", "true")
        wrapper.wait_event("acquiring")
        began = time.monotonic()
        wrapper.signal(number)
        assert wrapper.wait() == 128 + number
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("number", [*ENDING, signal.SIGHUP])
def test_signal_while_queued_ends_conch_and_its_place(conch: Bench, number: int) -> None:
    """Its key is gone when conch has ended."""
    conch.hold("o")
    waiter = conch.queue("o")
    waiter.signal(number)
    assert waiter.wait() == 128 + number
    assert len(conch.keys()) == 1


@pytest.mark.parametrize("number", ENDING)
def test_ending_signal_goes_to_the_child_as_itself(conch: Bench, number: int) -> None:
    """The child gets the same signal, and conch exits with its code."""
    wrapper = conch.hold(
        "o", command=f"trap 'exit 7' {signal.Signals(number).name[3:]}; echo up; while :; do sleep 0.02; done"
    )
    wait_for(lambda: "up" in wrapper.out, "the child")
    wrapper.signal(number)
    assert wrapper.wait() == 7
    assert conch.keys() == []


def test_child_that_ignores_the_signal_is_killed_after_kill_after(conch: Bench) -> None:
    """A user sent the signal, so conch exits with the child's code, not 70."""
    wrapper = conch.hold("o", "--kill-after", "300ms", command=LOOP)
    conch.read("got")
    wrapper.signal(signal.SIGTERM)
    assert wrapper.wait() == 128 + signal.SIGKILL
    assert wrapper.events("kill-sent")
    assert "TERM" in conch.read("got", 2).split()


def test_second_signal_kills_immediately(conch: Bench) -> None:
    """It kills long before kill-after, but only from a second after the first signal; until then it is forwarded."""
    wrapper = conch.hold("o", "--kill-after", "1h", command=LOOP)
    conch.read("got")
    wrapper.signal(signal.SIGTERM)
    wrapper.wait_event("term-sent")
    began = time.monotonic()
    wrapper.signal_until_it_ends(signal.SIGINT)
    assert wrapper.wait() == 128 + signal.SIGKILL
    assert time.monotonic() - began > 0.9
    assert "INT" in conch.file("got").read_text()


def test_stopped_child_is_continued_to_receive_the_signal(conch: Bench) -> None:
    """conch sends SIGCONT with SIGTERM."""
    wrapper = conch.hold("o", "--kill-after", "1h")
    os.kill(wrapper.child(), signal.SIGSTOP)
    wrapper.signal(signal.SIGTERM)
    assert wrapper.wait() == 128 + signal.SIGTERM


def test_leftovers_of_an_interrupted_command_get_sigterm(conch: Bench) -> None:
    """SIGINT went to the group, whose background jobs ignore it, and to no process outside the group."""
    trap = "trap 'echo term >> term; exit' TERM; echo up >> up; while :; do sleep 0.01; done"
    conch.file("job").write_text(trap)
    command = (
        "sh job & setsid sh job & while [ $(wc -l < up) -lt 2 ]; do sleep 0.01; done; echo 3 >> up; exec sleep 1000"
    )
    conch.file("up").write_text("")
    wrapper = conch.hold("o", "--kill-after", "1h", command=command)
    conch.read("up", 3)
    wrapper.signal(signal.SIGINT)
    assert wrapper.wait() == 128 + signal.SIGINT
    assert conch.read("term", 2) == "term\nterm\n"


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT], ids=lambda n: n.name
)
def test_other_signals_are_passed_on_and_nothing_more(conch: Bench, number: signal.Signals) -> None:
    """The child gets them, and both continue."""
    wrapper = conch.hold("o", command=LOOP)
    conch.read("got")
    wrapper.signal(number)
    assert number.name[3:] in conch.read("got", 2).split()
    assert wrapper.process.poll() is None
    assert not wrapper.events("term-sent")
    wrapper.signal(signal.SIGTERM)
    wrapper.signal(signal.SIGTERM)
    wrapper.wait()


@pytest.mark.parametrize("state", ["queued", "running"])
def test_signal_ignored_at_the_start_stays_ignored(conch: Bench, state: str) -> None:
    """nohup expects this, of conch and of the child."""
    if state == "queued":
        conch.hold("o")
    command = f"trap '' HUP; exec {CONCH} {' '.join(conch.holding('o'))} -- sh -c 'echo up; sleep 1000'"
    with conch.file("err").open("w") as err, conch.file("out").open("w") as out:
        process = subprocess.Popen(["sh", "-c", command], env=conch.environment, stderr=err, stdout=out)
    try:
        wanted = "event=queued" if state == "queued" else "event=child-start"
        wait_for(lambda: wanted in conch.file("err").read_text(), wanted)
        if state == "running":
            wait_for(lambda: "up" in conch.file("out").read_text(), "the child")
            text = conch.file("err").read_text()
            os.kill(int(text.split("pid=")[1].split()[0]), signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_child_gets_default_dispositions(conch: Bench) -> None:
    """It inherits neither Python's ignored SIGPIPE nor conch's own handling."""
    done = conch.run(*conch.holding("o"), "--quiet", "--", "grep", "-E", "Sig(Ign|Blk)", "/proc/self/status")
    assert [int(line.split()[1], 16) for line in done.stdout.splitlines()] == [0, 0]


# -- hooks ------------------------------------------------------------------------------------------------


def test_hooks_run_around_the_child_with_its_environment(conch: Bench) -> None:
    """on-acquire runs before it and on-lose after it, with the same name and token."""
    show = "echo {} $CONCH_NAME $CONCH_REV >> order"
    hooks = ["--on-acquire", show.format("acquire"), "--on-lose", show.format("lose")]
    done = conch.run(*conch.holding("o"), *hooks, "--", "sh", "-c", show.format("child"))
    assert done.returncode == 0
    lines = [line.split() for line in conch.read("order", 3).splitlines()]
    assert [line[0] for line in lines] == ["acquire", "child", "lose"]
    assert len({tuple(line[1:]) for line in lines}) == 1


def test_failing_on_acquire_releases_the_hold(conch: Bench) -> None:
    """conch exits 75, or with -E; neither the child nor on-lose runs."""
    for flags, code in (([], 75), (["-E", "9"], 9)):
        done = conch.run(
            *conch.holding("o"), *flags, "--on-acquire", "exit 3", "--on-lose", "touch lost", "--", "touch", "ran"
        )
        assert done.returncode == code
        assert conch.keys() == []
    assert not conch.file("ran").exists()
    assert not conch.file("lost").exists()


def test_hook_past_its_timeout_is_killed_with_its_group(conch: Bench) -> None:
    """It counts as failed."""
    done = conch.run(
        *conch.holding("o"),
        "--hook-timeout",
        "300ms",
        "--on-acquire",
        "trap '' TERM; echo $$ > pids; sleep 1000 & wait; sleep 9",
        "--",
        "true",
    )
    assert done.returncode == 75
    assert "timed out" in done.stderr


def test_failing_on_lose_changes_nothing(conch: Bench) -> None:
    """It is only logged."""
    done = conch.run(*conch.holding("o"), "--on-lose", "exit 3", "--", "sh", "-c", "exit 4")
    assert done.returncode == 4
    assert "hook-failed" in done.stderr


def test_on_lose_runs_after_a_loss_when_the_tree_is_gone(conch: Bench) -> None:
    """The child dies first; conch exits 70."""
    wrapper = conch.hold(
        "o",
        "--on-lose",
        "kill -0 $(cat child) 2>/dev/null || echo gone >> order",
        command="echo $$ > child; exec sleep 1000",
    )
    conch.read("child")
    conch.etcd.revoke_lease(wrapper.lease())
    assert wrapper.wait() == 70
    assert conch.read("order") == "gone\n"


def test_on_acquire_cut_short_by_a_loss_gives_70(conch: Bench) -> None:
    """The hook's tree is ended like a child's."""
    wrapper = conch.start(*conch.holding("o"), "--on-acquire", "echo $$ > hook; exec sleep 1000", "--", "touch", "ran")
    hook = int(conch.read("hook"))
    conch.etcd.revoke_lease(wrapper.lease())
    assert wrapper.wait() == 70
    assert not alive(hook)
    assert not conch.file("ran").exists()


@pytest.mark.parametrize("number", [*ENDING, signal.SIGHUP])
@pytest.mark.parametrize("hook", ["--on-acquire", "--on-lose"])
def test_signal_in_a_hook_ends_conch(conch: Bench, hook: str, number: int) -> None:
    """It exits 128+n; the hook and the key are gone."""
    wrapper = conch.start(*conch.holding("o"), hook, "echo $$ > hook; exec sleep 1000", "--", "true")
    pid = int(conch.read("hook"))
    wrapper.signal(number)
    assert wrapper.wait() == 128 + number
    assert not alive(pid)
    assert conch.keys() == []


def test_second_signal_ends_the_wait_for_a_stopped_keeper(conch: Bench) -> None:
    """conch would otherwise wait for the release until --command-timeout."""
    wrapper = conch.hold("o", "--ttl", "2s", "--command-timeout", "10m")
    os.kill(wrapper.keeper(), signal.SIGSTOP)
    wrapper.signal(signal.SIGTERM)
    wrapper.wait_event("child-exit")
    wrapper.signal_until_it_ends(signal.SIGTERM)
    assert wrapper.wait() == 128 + signal.SIGTERM


# -- the same request twice -------------------------------------------------------------------------------

SLOW_END = "trap 'echo term >> terms; sleep 0.3; exit 7' TERM; echo up >> got; while :; do sleep 0.02; done"


def test_signal_to_conch_and_to_its_group_counts_once(conch: Bench) -> None:
    """`timeout` sends it twice like this: the command still has its time to end."""
    wrapper = conch.hold("o", command=SLOW_END, start_new_session=True)
    conch.read("got")
    wrapper.signal(signal.SIGTERM)
    wrapper.wait_event("term-sent")  # otherwise the kernel may merge the two
    os.killpg(wrapper.pid, signal.SIGTERM)
    assert wrapper.wait() == 7
    assert not wrapper.events("kill-sent")
    assert conch.read("terms") == "term\n"


def test_conch_under_conch_counts_a_signal_to_all_once(conch: Bench) -> None:
    """The inner conch gets it from the service manager and from the outer conch."""
    inner = [CONCH, *conch.holding("inner"), "--", "sh", "-c", SLOW_END]
    wrapper = conch.start(*conch.holding("outer"), "--", *inner)
    conch.read("got")
    inner_pid = wrapper.child()
    os.kill(inner_pid, signal.SIGTERM)
    conch.read("terms")  # otherwise the kernel may merge the two
    wrapper.signal(signal.SIGTERM)
    assert wrapper.wait() == 7
    assert not wrapper.events("kill-sent")


def test_signal_to_conch_dev_and_to_its_group_counts_once(conch: Bench) -> None:
    """The command is in a group of its own, and gets it once."""
    dev = conch.start("dev", "--", "sh", "-c", SLOW_END, start_new_session=True)
    conch.read("got")
    dev.signal(signal.SIGTERM)
    conch.read("terms")
    os.killpg(dev.pid, signal.SIGTERM)
    assert dev.wait() == 7
    assert conch.read("terms") == "term\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGSEGV])
def test_conch_dies_of_the_signal_that_its_command_died_of(conch: Bench, number: int) -> None:
    """It releases the hold first and dumps no core; so does `conch dev`."""
    for command in (conch.holding("o"), ("dev",)):
        wrapper = conch.start(*command, "--", "sh", "-c", f"ulimit -c 0; kill -{number} $$", preexec_fn=allow_cores)
        assert wrapper.process.wait(30) == -number
    assert conch.keys() == []
    assert not list(conch.folder.glob("core*"))


def allow_cores() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_exit_code_that_looks_like_a_signal_stays_a_code(conch: Bench) -> None:
    """The command exited by itself."""
    wrapper = conch.start(*conch.holding("o"), "--", "sh", "-c", "exit 143")
    assert wrapper.process.wait(30) == 143


@pytest.mark.parametrize("state", ["queued", "dialling", "backing off"])
def test_conch_dies_of_the_signal_that_ended_it(conch: Bench, state: str) -> None:
    """No command runs at that time."""
    if state == "queued":
        conch.hold("o")
        wrapper = conch.queue("o")
    elif state == "dialling":
        wrapper = conch.start(*conch.holding("o"), "--endpoints", "127.0.0.1:1", "--dial-timeout", "1m", "--", "true")
        wrapper.wait_event("acquiring")
    else:
        wrapper = conch.start("elect", "o", "--restart", "--restart-min", "1m", "--restart-max", "1m", "--", "true")
        wrapper.wait_event("backoff")
    wrapper.signal(signal.SIGTERM)
    assert wrapper.process.wait(30) == -signal.SIGTERM


def test_conchd_that_never_registered_dies_of_its_signal(conch: Bench) -> None:
    """It exits 0 only after a drain."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        daemon = conch.start("conchd", "--state-dir", str(conch.file("state")), "--endpoints", address)
        daemon.wait_event("unsigned-jobs")
        silent.accept()[0].close()
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(30) == -signal.SIGTERM
