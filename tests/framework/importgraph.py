"""Read the import statements of a Python tree without running it.

Owns: finding every import statement below a directory and saying when it takes effect (at load, when a
function runs, only for the type checker). Knows nothing of which imports are allowed: tests/style decides
that.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Iterator

REPOSITORY = Path(__file__).resolve().parents[2]


class When(Enum):
    """The moment an import statement runs."""

    LOAD = "when the module is loaded"
    CALL = "when a function runs"
    TYPING = "never (type checker only)"


@dataclass(frozen=True)
class Import:
    """One imported module name, as written, made absolute."""

    importer: str
    target: str
    when: When
    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line} {self.importer} imports {self.target}"


class Tree:
    """The modules of some top-level packages and the imports between and out of them."""

    def __init__(self, *packages: str) -> None:
        self.modules: dict[str, Path] = {}
        for package in packages:
            for path in sorted((REPOSITORY / package).rglob("*.py")):
                self.modules[_module_name(path)] = path
        self.imports = [found for name, path in self.modules.items() for found in self._read(name, path)]

    def resolve(self, target: str) -> str | None:
        """The module of this tree that `target` names: itself, or the one that has the attribute."""
        while target:
            if target in self.modules:
                return target
            target = target.rpartition(".")[0]
        return None

    def internal(self, *moments: When) -> dict[str, set[str]]:
        """Module -> modules of this tree that it imports at one of `moments`."""
        graph: dict[str, set[str]] = {name: set() for name in self.modules}
        for found in self.imports:
            target = self.resolve(found.target)
            if found.when in moments and target and target != found.importer:
                graph[found.importer].add(target)
        return graph

    def _read(self, name: str, path: Path) -> Iterator[Import]:
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(), str(path))
        for node, when in _walk(tree, When.LOAD):
            for target in _targets(node, package):
                yield Import(name, target, when, path, node.lineno)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (strongly connected components of more than one module)."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(graph[name])
    return seen


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def _walk(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, when
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _walk(child, When.CALL if when is When.LOAD else when)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), When.TYPING)
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), when)
        else:
            yield from _walk(child, when)


def _is_type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _targets(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1] + ([base] if base else []))
    yield from (f"{base}.{alias.name}" for alias in node.names)
