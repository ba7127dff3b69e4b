"""`conch completion`: what real shells get for a line that is being typed."""

import shlex
import socket
import time

import pytest

from tests.support.conch import Bench


def completed(conch: Bench, *words: str, env: dict[str, str] | None = None) -> list[str]:
    """Return what bash offers for the last of these words, through the code that it evaluates."""
    script = f"""
eval "$(conch completion bash)"
COMP_WORDS=({shlex.join(["conch", *words])}) COMP_CWORD={len(words)}
_conch_completion conch "" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = conch.run("-c", script, program=["bash"], env=env)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def test_commands_and_options(conch: Bench) -> None:
    """From the registry; choices of options, too."""
    assert completed(conch, "ele") == ["elect"]
    assert {"add", "ls", "rm"} <= set(completed(conch, "cron", ""))
    assert completed(conch, "elect", "o", "--kill") == ["--kill-after"]
    assert completed(conch, "elect", "o", "--transport", "g") == ["grpc"]
    assert "true" in completed(conch, "elect", "o", "--", "tru")


def test_names_come_from_etcd(conch: Bench) -> None:
    """Of offices, semaphores and jobs, each once, with the line's own options."""
    for number in range(2):
        conch.start("elect", "webserver", "--", "sleep", "60").wait_event("queued" if number else "child-start")
    conch.start("sema", "build", "--max", "2", "--", "sleep", "60").wait_event("child-start")
    for name in ("backup", "batch", "other"):
        assert conch.run("cron", "add", name, "--schedule", "@daily", "--", "true").returncode == 0
    assert completed(conch, "elect", "") == ["webserver"]
    assert completed(conch, "sema", "b") == ["build"]
    assert completed(conch, "cron", "show", "ba") == ["backup", "batch"]
    assert completed(conch, "elect", "--prefix", "/other", "") == []
    wrong = {"CONCH_ENDPOINTS": "localhost:1"}
    assert completed(conch, "cron", "rm", "--endpoints", conch.endpoints, "o", env=wrong) == ["other"]
    for name in ("backup", "batch", "other"):
        assert conch.run("cron", "rm", name).returncode == 0


@pytest.mark.parametrize("mode", ["refused", "silent"])
def test_without_etcd_there_are_no_names(conch: Bench, mode: str) -> None:
    """Nothing, no message, and soon: in less than three times what a line without names takes, and 300 ms."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # connects, and answers nothing
        endpoints = "localhost:1" if mode == "refused" else f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        completed(conch, "elect", "o", "--kill")
        plain_s = time.monotonic() - began
        began = time.monotonic()
        assert completed(conch, "elect", "", env={"CONCH_ENDPOINTS": endpoints}) == []
        assert time.monotonic() - began < 3 * plain_s + 0.3


@pytest.mark.parametrize(
    ("shell", "script"),
    [
        ("bash", 'eval "$(conch completion bash)"; complete -p conch'),
        ("zsh", 'autoload -U compinit; compinit -u -D; eval "$(conch completion zsh)"; echo "${_comps[conch]}"'),
        ("fish", 'conch completion fish | source; complete -C "conch ele"'),
    ],
)
def test_each_shell_takes_the_code(conch: Bench, shell: str, script: str) -> None:
    """And knows afterwards how to complete conch."""
    flags = {"zsh": ["-f"], "fish": ["--no-config"], "bash": []}[shell]
    done = conch.run(*flags, "-c", script, program=[shell])
    assert done.returncode == 0, done.stderr
    assert "_conch_completion" in done.stdout or done.stdout.startswith("elect")


def test_unknown_questions_are_no_defect(conch: Bench) -> None:
    """Whatever stands in the variable."""
    for value in ("bash_nonsense", "tcsh_complete", "x"):
        done = conch.run("elect", env={"_CONCH_COMPLETE": value})
        assert (done.returncode, done.stdout) == (1, "")
