"""Finds the import statements of Python sources without running them, those inside functions, too.

Pure: text in, names out. Called by closure.py, because the agent imports rare things only when it needs them.
"""
from __future__ import annotations

import ast
from collections.abc import Iterator


def imported(source: str, package: str) -> tuple[set[str], set[str]]:
    """(modules that a source may import, names that may be a module or an attribute of one), absolute.

    `package` is the package of the module, for relative imports. Blocks under `if TYPE_CHECKING` do not count.
    """
    modules: set[str] = set()
    possible: set[str] = set()
    for node in _run_time_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            base = _absolute(node, package)
            modules.add(base)
            possible.update(f"{base}.{alias.name}" for alias in node.names)
    return modules, possible


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, node.module] if node.module else parents)


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for branch in child.orelse:
                yield branch
                yield from _run_time_nodes(branch)
            continue
        yield child
        yield from _run_time_nodes(child)
