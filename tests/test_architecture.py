"""Imports run one way, and the heavy ones are not where they would cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "conch"
SMALL_MODULES = {
    "conch.static_typing",
    "conch.errors",
    "conch.keys",
    "conch.line_writer",
    "conch.times",
    "conch.holder",
    "conch.limits",
    "conch.log",
    "conch.record",
}

# What the modules of a package may import of conch, besides their own package.
ALLOWED = {
    "core": {"conch.errors", "conch.static_typing", "conch.line_writer", "conch.log", "conch.record"},
    "etcd": {
        "conch.errors",
        "conch.static_typing",
        "conch.etcd.connection",
        "conch.keys",
        "conch.limits",
        "conch.record",
    },
    "keeper": {"conch.core", "conch.etcd", "conch.log", *SMALL_MODULES},
    "cron": {"conch.core", "conch.etcd", "conch.keeper", "conch.log", *SMALL_MODULES},
    "dev": {"conch.core", "conch.etcd", *SMALL_MODULES},
    "cli": {"conch"},
}


def imports(path: Path) -> set[str]:
    """All modules that a file imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    """cli → keeper → core and etcd → the small modules; core and etcd do not know each other."""
    parts = path.relative_to(ROOT).parts
    ours = {name for name in imports(path) if name.split(".")[0] == "conch"}
    if len(parts) == 1:
        allowed = (
            {"conch.cli.main", "conch.core.host"}
            if parts[0] == "__main__.py"
            else SMALL_MODULES | {"conch.etcd.endpoints"}
        )
    else:
        allowed = ALLOWED[parts[0]] | {f"conch.{parts[0]}"}
    for name in ours:
        assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{path} imports {name}"


@pytest.mark.parametrize(
    ("module", "only"),
    [
        ("click", {"cli"}),
        ("etcd3", {"etcd"}),
        ("grpc", {"etcd"}),
        ("google.protobuf", {"etcd"}),
        ("termios", {"core"}),
        ("croniter", {"cron"}),
        ("prometheus_client", {"cron"}),
    ],
)
def test_each_outside_package_has_one_home(module: str, only: set[str]) -> None:
    """So that it can be replaced there."""
    for path in files():
        if any(name == module or name.startswith(f"{module}.") for name in imports(path)):
            assert path.relative_to(ROOT).parts[0] in only, path


def test_supervisor_never_loads_what_talks_to_etcd() -> None:
    """The process that ends the child knows no gRPC, no threads and no sockets to etcd."""
    names = "cli.main cli.app cli.elect cli.hold_options core.wrapper_loop keeper.hold_spec"
    loaded = ", ".join(f"conch.{name}" for name in names.split())
    heavy = ("grpc", "etcd3", "google.protobuf", "asyncio", "ssl", "psutil", "croniter", "conch.etcd.grpc_store")
    script = f"import sys, {loaded}; print(*[m for m in {(*heavy, 'conch.keeper.acquirer')} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_starts_fast_takes_its_hints_from_one_place() -> None:
    """`typing` takes a tenth of the time of a whole run; the daemon and `conch dev` may pay for it."""
    slow = ("conch/cron/", "conch/dev/", "static_typing.py")
    for path in files():
        if not any(part in path.as_posix() for part in slow):
            assert "typing" not in imports(path), path


def test_keeper_of_a_wrapper_loads_nothing_heavy() -> None:
    """What it needs to hold something over plain HTTP; gRPC and TLS cost ten times as much."""
    heavy = (
        "grpc",
        "etcd3",
        "google.protobuf",
        "asyncio",
        "ssl",
        "psutil",
        "croniter",
        "click",
        "http.client",
        "typing",
        "dataclasses",
    )
    ready = "import conch.keeper.main, conch.etcd.open, conch.keeper.watchdog, conch.keeper.acquirer"
    script = f"import sys; {ready}; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
