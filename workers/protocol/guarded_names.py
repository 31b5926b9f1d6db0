"""What a module sets only when it is run as a script; a worker imports it, and finds none of it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard


def names_below_guard(file: str | Path) -> set[str]:
    """The names that are set below `if __name__ == "__main__":` and nowhere else in a file."""
    try:
        module = ast.parse(Path(file).read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError):
        return set()
    below = [statement for each in module.body if _is_guard(each) for statement in each.body]
    elsewhere = [each for each in module.body if not _is_guard(each)]
    return _names_set(below) - _names_set(elsewhere)


def _is_guard(statement: ast.stmt) -> TypeGuard[ast.If]:
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def _names_set(statements: Iterable[ast.stmt]) -> set[str]:
    """The names that statements bind at their own level, functions' bodies left out."""
    found: set[str] = set()
    left: list[ast.AST] = list(statements)
    while left:
        node = left.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        left += ast.iter_child_nodes(node)
    return found
