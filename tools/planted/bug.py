"""A bug to plant, and the check that it still fits the source and the tests."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bug:
    """In `file` of conch, `old` (which stands there exactly once) becomes `new`; one of the `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def problems(root: Path, bugs: Sequence[Bug]) -> Iterator[str]:
    """Yield one line per bug that cannot be planted in the tree at `root`, or that no existing test could catch."""
    names = [bug.name for bug in bugs]
    yield from (
        f"{name}: {names.count(name)} bugs have this name" for name in sorted(set(names)) if names.count(name) > 1
    )
    for bug in bugs:
        yield from (f"{bug.name}: {problem}" for problem in _source_problems(root, bug))
        if not bug.tests:
            yield f"{bug.name}: no test is named"
        for test in bug.tests:
            path, *parts = test.split("::")
            if not (root / path).is_file():
                yield f"{bug.name}: {path} does not exist"
            elif not set(parts) <= _definitions(root / path):
                yield f"{bug.name}: {path} has no {'::'.join(parts)}"


def _source_problems(root: Path, bug: Bug) -> Iterator[str]:
    path = root / "conch" / bug.file
    if not path.is_file():
        yield f"conch/{bug.file} does not exist"
        return
    source = path.read_text("utf-8")
    if source.count(bug.old) != 1:
        yield f"its text stands {source.count(bug.old)} times in conch/{bug.file}: {bug.old!r}"
        return
    try:
        broken = ast.parse(source.replace(bug.old, bug.new))
    except SyntaxError as error:
        yield f"conch/{bug.file} is no Python with the bug in it: {error.msg}"
    else:
        if ast.dump(broken) == ast.dump(ast.parse(source)):
            yield f"it changes nothing in conch/{bug.file}"


def _definitions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
