"""Checkers for the rules of the house: each reads a source tree and returns one line per violation."""

import ast
import builtins
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

# The bases by which a class says that it is an interface.
_INTERFACES = {"Protocol", "ABC", "Generic"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """The modules of one package, parsed once: dotted name to syntax tree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = root.name
        self.paths = {self._name(path): path for path in sorted(root.rglob("*.py"))}
        self.texts = {name: path.read_text("utf-8") for name, path in self.paths.items()}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}
        self.imports = {name: self._imports(name) for name in self.trees}

    def _name(self, path: Path) -> str:
        parts = [self.top, *path.relative_to(self.root).with_suffix("").parts]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def package(self, name: str) -> str:
        """Return the package that a module belongs to: `small` for one that lies directly in the root."""
        parts = name.split(".")
        if parts[1:] == ["__main__"]:
            return "__main__"
        is_package = len(parts) > 1 and (self.root / parts[1]).is_dir()
        return parts[1] if is_package else "small"

    def _imports(self, name: str) -> set[str]:
        """Return all modules that a module imports: at its top, in functions, and for types only."""
        found: set[str] = set()
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = ("." * node.level) + (node.module or "")
                for alias in node.names:
                    module = f"{base}.{alias.name}"
                    found.add(module if module in self.trees else base)
        return found

    def own_imports(self, name: str) -> set[str]:
        """Return the imported modules that belong to this tree."""
        return {found for found in self.imports[name] if _is_below(found, self.top)} - {name}


def _is_below(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f"{parent}.")


def relative_imports(source: Source) -> list[str]:
    """List imports that do not spell out the module's whole name: they would escape the other checks."""
    return [
        f"{name} imports {found}"
        for name in source.trees
        for found in sorted(source.imports[name])
        if found.startswith(".")
    ]


def wrong_way_imports(
    source: Source, may_import: Mapping[str, Collection[str]], unknown_to: Mapping[str, Collection[str]]
) -> list[str]:
    """List imports from a package that the importing package must not know, and of modules it must not know.

    A module in the root that has rules of its own counts as a package.
    """

    def place(name: str) -> str:
        module = name.removeprefix(f"{source.top}.")
        return module if module in may_import else source.package(name)

    found = []
    for name in source.trees:
        allowed = {place(name), *may_import.get(place(name), ())}
        for module in sorted(source.own_imports(name)):
            if place(module) not in allowed or module in unknown_to.get(place(name), ()):
                found.append(f"{name} imports {module}")
    return found


def circles(source: Source) -> list[str]:
    """List the groups of modules that import each other, directly or through others."""
    edges = {name: source.own_imports(name) & source.trees.keys() for name in source.trees}
    reached = {name: _reach(name, edges) for name in edges}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in edges if name in reached[name]
    }
    return sorted(" <-> ".join(sorted(group)) for group in groups)


def _reach(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    """Return every module that `start` imports, directly or not; `start` itself only if it is part of a circle."""
    seen: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += edges[name]
    return seen


def long_modules(source: Source, most_lines: int) -> list[str]:
    """List modules with more lines than allowed."""
    counts = {source.paths[name]: len(text.splitlines()) for name, text in source.texts.items()}
    return [
        f"{path.relative_to(source.root.parent)}: {lines} lines" for path, lines in counts.items() if lines > most_lines
    ]


def long_functions(source: Source, most_lines: int) -> list[str]:
    """List functions with more lines than allowed; decorators do not count, nested functions do."""
    found = []
    for name, tree in source.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, _Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > most_lines:
                    found.append(f"{name}.{node.name}: {lines} lines")
    return found


def homeless_unit_tests(tests: Path, source: Source) -> list[str]:
    """List unit-test files that name no module: `<package>/test_<module>[_<aspect>].py` mirrors the source tree."""
    found = []
    for path in sorted(tests.rglob("test_*.py")):
        folder = path.parent.relative_to(tests).parts
        subject = path.stem.removeprefix("test_")
        parent = ".".join((source.top, *folder))
        modules = [name.rsplit(".", 1)[1] for name in source.trees if name.rpartition(".")[0] == parent]
        if not any(subject == module or subject.startswith(f"{module}_") for module in modules):
            found.append(f"{path.relative_to(tests)}: no module of {parent} has this name")
    return found


def inherited_parts(source: Source, packages: Collection[str], value_bases: Collection[str]) -> list[str]:
    """List classes of these packages that inherit behaviour from another class of the tree.

    Allowed bases are exceptions, interfaces without code, and the roots of value classes.
    """
    classes = {
        node.name: node
        for tree in source.trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name not in {*value_bases, *_INTERFACES}
    }
    found = []
    for name, tree in source.trees.items():
        if source.package(name) in packages:
            for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
                for base in map(_base_name, node.bases):
                    ours = classes.get(base)
                    if ours is not None and not (_is_exception(ours, classes) or _is_interface(ours)):
                        found.append(f"{name}.{node.name} inherits from {base}")
    return found


def _base_name(base: ast.expr) -> str:
    """Return the last name of a base class: `Part` for `parts.Part[int]`."""
    if isinstance(base, ast.Subscript):
        return _base_name(base.value)
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def _is_exception(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> bool:
    for base in map(_base_name, node.bases):
        if base in classes and base != node.name and _is_exception(classes[base], classes):
            return True
        builtin = getattr(builtins, base, None)
        if isinstance(builtin, type) and issubclass(builtin, BaseException):
            return True
    return False


def _is_interface(node: ast.ClassDef) -> bool:
    """Whether a class is a Protocol or an ABC, each of whose methods is abstract or has no body."""
    if not {_base_name(base) for base in node.bases} & _INTERFACES:
        return False
    return all(_is_abstract(item) for item in node.body if isinstance(item, _Function))


def _is_abstract(method: _Function) -> bool:
    if any(_base_name(decorator) == "abstractmethod" for decorator in method.decorator_list):
        return True
    return all(
        isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
        for item in method.body
    )


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module defines or uses: variables, attributes, functions, classes, arguments, imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
            case ast.alias(name=name, asname=asname):
                yield asname or name.rpartition(".")[2]
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name


def private_words(source: Source, is_private: Callable[[str], bool]) -> list[str]:
    """List identifiers and module names for which the field has another word, with how often each stands there."""
    found = []
    for name, tree in source.trees.items():
        names = [*identifiers(tree), name.rpartition(".")[2]]
        found += [f"{name}: {word} ({names.count(word)})" for word in sorted(set(filter(is_private, names)))]
    return found


def words_of(identifier: str) -> list[str]:
    """Split an identifier into its words, in lower case: `_KeyWatch_2` has `key` and `watch`."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


def imports_away_from_home(source: Source, homes: Mapping[str, Collection[str]]) -> list[str]:
    """List imports of an outside package by a module outside its home, which is a package or a small module."""
    found = []
    for name in source.trees:
        place = name.removeprefix(f"{source.top}.").partition(".")[0]
        for outside, home in homes.items():
            if place not in home and any(_is_below(module, outside) for module in source.imports[name]):
                found.append(f"{name} imports {outside}")
    return found
