"""The rules of the house, without exceptions. `tests/support/architecture.py` has the checkers."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.architecture import (
    Source,
    circles,
    homeless_unit_tests,
    imports_away_from_home,
    inherited_parts,
    long_functions,
    long_modules,
    private_words,
    relative_imports,
    words_of,
    wrong_way_imports,
)

# -- the rules ------------------------------------------------------------------------------------------------

MODULE_LINES = 350
FUNCTION_LINES = 60

# What a package may import, besides itself. `small` are the modules directly in conch/ that have no line of their own.
MAY_IMPORT = {
    "__main__": ("cli", "core"),
    "cli": ("cron", "dev", "keeper", "holds", "core", "etcd", "small"),
    "cron": ("keeper", "holds", "core", "etcd", "small"),
    "keeper": ("core", "etcd", "small"),
    "dev": ("core", "etcd", "small"),
    "holds": ("etcd", "small"),
    "core": ("small",),
    "etcd": ("small",),
    "small": (),
}
# core supervises processes: it knows neither the keys in etcd nor what stands in them.
UNKNOWN_TO = {"core": ("conch.keys", "conch.holder")}

# Each outside package has one home, so that it can be replaced there.
HOMES = {
    "click": ("cli",),
    "etcd3": ("etcd",),
    "grpc": ("etcd",),
    "google.protobuf": ("etcd",),
    "termios": ("core",),
    "croniter": ("cron",),
    "prometheus_client": ("cron",),
    "urllib3": ("cron",),
    "tomlkit": ("cron",),
    # Importing it takes a tenth of the time of a whole run of the wrapper.
    "typing": ("static_typing", "cli", "cron", "dev"),
}

# Parts are owned, not inherited, where something is supervised or scheduled.
OWNED_IN = ("core", "cron")
VALUE_BASES = ("Record", "Message", "Enum")

# Words of our own for which the field has one. In no identifier, not as a part either.
PRIVATE_WORDS = """
cease carriers crew heed hurry lookout nursery spared stranger strangers strays warden
"""
# No identifier of conch or tools is exactly this, leading underscores aside.
PRIVATE_NAMES = """
again_later alone Actor Below Blind Board brief Crew CreatedAt created_by cut Due given Gone judge Keeping
Known late_at Link Live look Lookout made me ModifiedAt news now_rev one Parent Plan Pool Stage tell term_at Terms
Trouble wanted whole word Worker
"""
# No module is called this.
PRIVATE_MODULES = """
actor claiming claims commands connect crew driver exits hints history http jobs journal keeping ledger light line link
look lookout loop parent plan pool reasons records strays tree worker wrapper
"""

# Loaded before a wrapper's command can start; what is heavy costs each run of conch.
SUPERVISOR = "cli.main cli.elect cli.sema cli.cron_show core.wrapper_loop keeper.hold_spec"
# Each fork of a run copies the page tables of conchd's supervisor, and so of all that it has loaded.
CONCHD = "cli.conchd cli.keyfile core.daemon_loop cron.state_dir"
KEEPER = "keeper.main keeper.acquirer keeper.watchdog etcd.open"
CLICK_COMMANDS = "cli.app"
ETCD_DRIVERS = ("grpc", "etcd3", "google.protobuf", "conch.etcd.grpc_store")
HEAVY = (*ETCD_DRIVERS, "asyncio", "ssl", "psutil", "croniter", "click", "http.client", "typing", "dataclasses")

# -- the tests ------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
CONCH, TESTS, TOOLS = (Source(ROOT / name) for name in ("conch", "tests", "tools"))


def is_private_word(identifier: str) -> bool:
    return any(word in PRIVATE_WORDS.split() for word in words_of(identifier))


def is_private_name(identifier: str) -> bool:
    return is_private_word(identifier) or identifier.strip("_") in PRIVATE_NAMES.split()


def expect_none(found: list[str]) -> None:
    """Fail with every violation, one a line."""
    if found:
        raise AssertionError(f"{len(found)} violations\n" + "\n".join(found))


def test_imports_run_one_way() -> None:
    """cli → cron → keeper → core, etcd → the small modules; core and etcd do not know each other."""
    expect_none(wrong_way_imports(CONCH, MAY_IMPORT, UNKNOWN_TO))


def test_every_package_has_a_place_in_the_order() -> None:
    """A new package is written into the rules before it can be imported."""
    assert {CONCH.package(name) for name in CONCH.trees} <= set(MAY_IMPORT)


@pytest.mark.parametrize("source", [CONCH, TESTS, TOOLS], ids=lambda source: source.top)
def test_imports_spell_the_whole_name(source: Source) -> None:
    expect_none(relative_imports(source))


@pytest.mark.parametrize("source", [CONCH, TOOLS], ids=lambda source: source.top)
def test_no_modules_import_each_other_in_a_circle(source: Source) -> None:
    """Imports inside functions and imports for types count."""
    expect_none(circles(source))


@pytest.mark.parametrize("source", [CONCH, TOOLS], ids=lambda source: source.top)
def test_modules_are_short(source: Source) -> None:
    expect_none(long_modules(source, MODULE_LINES))


@pytest.mark.parametrize("source", [CONCH, TOOLS], ids=lambda source: source.top)
def test_functions_are_short(source: Source) -> None:
    expect_none(long_functions(source, FUNCTION_LINES))


def test_each_unit_test_file_names_the_module_that_it_tests() -> None:
    expect_none(homeless_unit_tests(ROOT / "tests/unit", CONCH))


def test_parts_are_owned_and_not_inherited() -> None:
    """Of our own classes only exceptions, interfaces and the roots of value classes have subclasses."""
    expect_none(inherited_parts(CONCH, OWNED_IN, VALUE_BASES))


@pytest.mark.parametrize("source", [CONCH, TOOLS], ids=lambda source: source.top)
def test_code_uses_the_words_of_the_field(source: Source) -> None:
    expect_none(private_words(source, is_private_name))


def test_tests_use_the_words_of_the_field() -> None:
    expect_none(private_words(TESTS, is_private_word))


def test_modules_are_named_in_the_words_of_the_field() -> None:
    names = [name for source in (CONCH, TOOLS) for name in source.trees]
    expect_none([name for name in names if name.rpartition(".")[2] in PRIVATE_MODULES.split()])


def test_each_outside_package_has_one_home() -> None:
    expect_none(imports_away_from_home(CONCH, HOMES))


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (SUPERVISOR, HEAVY),
        (CONCHD, (*HEAVY, "hashlib", "random")),
        (KEEPER, HEAVY),
        (CLICK_COMMANDS, (*ETCD_DRIVERS, "asyncio", "ssl", "croniter")),
    ],
    ids=["supervisor", "conchd's supervisor", "keeper", "click commands"],
)
def test_wrapper_loads_nothing_heavy(modules: str, forbidden: tuple[str, ...]) -> None:
    """Heavy modules cost more than the whole run; the supervisor also knows no gRPC and no threads."""
    assert loaded_of(modules, forbidden) == []


def test_supervisor_never_loads_what_talks_to_etcd() -> None:
    """The process that ends the child opens no connection to etcd."""
    assert loaded_of(f"{SUPERVISOR} {CLICK_COMMANDS}", ("conch.keeper.acquirer", "conch.etcd.gateway_http")) == []


def loaded_of(modules: str, forbidden: tuple[str, ...]) -> list[str]:
    """Which forbidden modules a fresh Python has loaded once it has imported these of conch."""
    names = ", ".join(f"conch.{name}" for name in modules.split())
    script = f"import sys, {names}; print(*[m for m in {forbidden} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


# -- negative controls: each checker is shown to fail on a small tree that breaks its rule ---------------------


def tree(folder: Path, files: Mapping[str, str]) -> Source:
    """A package `house` with these files."""
    for name, text in files.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Source(folder / "house")


RULES = {"upper": ("lower", "facts", "small"), "facts": ("lower", "small"), "lower": ("small",), "small": ()}


@pytest.mark.parametrize(
    "text",
    [
        "from house.upper import door",
        "import house.upper.door",
        "from house.upper.door import handle",
        "def enter():\n    from house.upper import door",
        "if TYPE_CHECKING:\n    from house.upper.door import Handle",
    ],
)
def test_import_against_the_order_is_seen(tmp_path: Path, text: str) -> None:
    house = tree(tmp_path, {"upper/door.py": "", "lower/floor.py": text, "errors.py": ""})
    assert wrong_way_imports(house, RULES, {}) == ["house.lower.floor imports house.upper.door"]


def test_import_in_the_order_is_fine(tmp_path: Path) -> None:
    house = tree(
        tmp_path,
        {"upper/door.py": "from house.lower import floor", "lower/floor.py": "import house.errors", "errors.py": ""},
    )
    assert wrong_way_imports(house, RULES, {}) == []
    assert wrong_way_imports(house, RULES, {"lower": ("house.errors",)}) == ["house.lower.floor imports house.errors"]


def test_small_module_that_imports_a_package_is_seen(tmp_path: Path) -> None:
    house = tree(tmp_path, {"lower/floor.py": "", "errors.py": "from house.lower.floor import tile"})
    assert wrong_way_imports(house, RULES, {}) == ["house.errors imports house.lower.floor"]


def test_module_in_the_root_may_have_rules_of_its_own(tmp_path: Path) -> None:
    texts = {"facts.py": "import house.lower.floor", "lower/floor.py": "", "upper/door.py": "import house.facts"}
    assert wrong_way_imports(tree(tmp_path / "1", texts), RULES, {}) == []
    house = tree(
        tmp_path / "2", {"facts.py": "", "lower/floor.py": "import house.facts", "errors.py": "import house.facts"}
    )
    assert wrong_way_imports(house, RULES, {}) == [
        "house.errors imports house.facts",
        "house.lower.floor imports house.facts",
    ]


def test_relative_import_is_seen(tmp_path: Path) -> None:
    house = tree(tmp_path, {"lower/floor.py": "from ..upper import door", "upper/door.py": ""})
    assert relative_imports(house) == ["house.lower.floor imports ..upper"]


@pytest.mark.parametrize(
    "back",
    ["import house.a", "def late():\n    from house.a import x", "if TYPE_CHECKING:\n    from house.a import X"],
)
def test_circle_of_imports_is_seen(tmp_path: Path, back: str) -> None:
    """Directly, and through a third module."""
    assert circles(tree(tmp_path / "1", {"a.py": "import house.b", "b.py": back})) == ["house.a <-> house.b"]
    through = tree(
        tmp_path / "2", {"a.py": "import house.b", "b.py": "from house import c", "c.py": back, "d.py": back}
    )
    assert circles(through) == ["house.a <-> house.b <-> house.c"]


def test_long_module_and_long_function_are_seen(tmp_path: Path) -> None:
    """A function of exactly the limit is fine; its decorator does not count."""
    body = "@decorator\ndef enter():\n" + "    x = 1\n" * 4
    house = tree(tmp_path, {"a.py": body + "\n" + body.replace("enter", "longer") + "    x = 1\n", "b.py": "x = 1\n"})
    assert long_functions(house, 5) == ["house.a.longer: 6 lines"]
    assert long_modules(house, 14) == []
    assert long_modules(house, 13) == ["house/a.py: 14 lines"]


def test_long_method_and_nested_function_are_seen(tmp_path: Path) -> None:
    inner = "class A:\n    async def go(self):\n        def inner():\n" + "            x = 1\n" * 4
    assert long_functions(tree(tmp_path, {"a.py": inner}), 4) == ["house.a.go: 6 lines", "house.a.inner: 5 lines"]


def test_unit_test_of_no_module_is_seen(tmp_path: Path) -> None:
    house = tree(tmp_path, {"errors.py": "", "lower/floor.py": ""})
    unit = tmp_path / "unit"
    names = ["test_errors.py", "test_small.py", "test_floor.py", "lower/test_floor_fuzz.py", "lower/test_errors.py"]
    for name in names:
        (unit / name).parent.mkdir(parents=True, exist_ok=True)
        (unit / name).touch()
    assert [line.split(":")[0] for line in homeless_unit_tests(unit, house)] == [
        "lower/test_errors.py",
        "test_floor.py",
        "test_small.py",
    ]


BASES = """
class Record: ...
class Value(Record): ...
class Port(Protocol):
    def send(self) -> None: ...
class Task(ABC):
    @abstractmethod
    def run(self): ...
class Half(ABC):
    @abstractmethod
    def run(self): ...
    def twice(self): self.run(); self.run()
class Failed(OSError): ...
class Part:
    def send(self): pass
"""


@pytest.mark.parametrize(
    ("base", "seen"),
    [
        ("Record", False),
        ("Port", False),
        ("Task", False),
        ("Failed", False),
        ("Enum", False),
        ("Value", True),
        ("Part", True),
        ("Half", True),
        ("Half[int]", True),
        ("parts.Part", True),
    ],
)
def test_class_that_inherits_behaviour_is_seen(tmp_path: Path, base: str, *, seen: bool) -> None:
    house = tree(tmp_path, {"lower/floor.py": f"class Floor({base}):\n    x = 1", "parts.py": BASES})
    name = base.split(".")[-1].split("[")[0]
    expected = [f"house.lower.floor.Floor inherits from {name}"] if seen else []
    assert inherited_parts(house, ("lower",), ("Record",)) == expected
    assert inherited_parts(house, ("upper",), ("Record",)) == []


@pytest.mark.parametrize(
    "text",
    [
        "def hurry(): ...",
        "class TheCrew: ...",
        "self._strays = 1",
        "run(hurry=1)",
        "def f(*, crew): ...",
        "import x as heed",
        "from x import warden",
        "HURRY = 1",
        "def test_it_is_spared(): ...",
        "[1 for one in x]",
        "me.x",
        "class Link: ...",
    ],
)
def test_private_word_is_seen(tmp_path: Path, text: str) -> None:
    assert len(private_words(tree(tmp_path, {"a.py": text}), is_private_name)) == 1


def test_private_word_in_a_module_name_is_seen(tmp_path: Path) -> None:
    house = tree(
        tmp_path, {"crew.py": "", "lower/test_warden.py": "", "links.py": "one_line = LeaseGone = someone = 1"}
    )
    assert private_words(house, is_private_name) == ["house.crew: crew (1)", "house.lower.test_warden: test_warden (1)"]


def test_outside_package_away_from_home_is_seen(tmp_path: Path) -> None:
    house = tree(
        tmp_path, {"lower/a.py": "import grpc.aio", "upper/b.py": "from grpc import x", "c.py": "import grpc_x"}
    )
    assert imports_away_from_home(house, {"grpc": ("upper",)}) == ["house.lower.a imports grpc"]
    assert imports_away_from_home(house, {"grpc_x": ("c",)}) == []
    assert imports_away_from_home(house, {"grpc_x": ("upper",)}) == ["house.c imports grpc_x"]


def test_loaded_module_is_seen() -> None:
    assert loaded_of("errors", ("os", "no_such_module", "conch.errors")) == ["os", "conch.errors"]


# -- the guided tour ------------------------------------------------------------------------------------------


def test_design_lists_every_module() -> None:
    """docs/design.md has a tree with one entry a module; no module is missing, and none that is listed has gone."""
    text = (Path(__file__).parents[1] / "docs" / "design.md").read_text()
    tree = text.split("## The tree")[1].split("```")[1]
    listed, folder = set(), ""
    for line in tree.splitlines():
        heading = re.match(r" {2,4}([a-z]+)/ ", line)
        if heading:
            folder = heading[1] if line.startswith("  " + heading[1]) else f"{folder}/{heading[1]}"
        names = re.findall(r"\b([a-z_0-9]+)\.py\b", line)
        listed |= {f"{folder}/{name}".lstrip("/") if line.startswith("    ") else name for name in names}
    package = Path(__file__).parents[1] / "conch"
    modules = {
        path.relative_to(package).with_suffix("").as_posix()
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert listed == modules
