"""The step boundaries at which RIK may die, taken from its code."""

from __future__ import annotations

import ast
from pathlib import Path

import rik


def all_steps() -> list[str]:
    """Every literal given to a `step(…)` call anywhere in the package, sorted."""
    found = set()
    for path in Path(rik.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "step"
                and node.args
            ):
                argument = node.args[0]
                assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: the step's name must be a literal"
                found.add(str(argument.value))
    return sorted(found)
