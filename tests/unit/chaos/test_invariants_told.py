"""docs/simulation.md says of each invariant whether the simulator asks it, and that is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
EVERY = {f"S{n}" for n in range(1, 36)} | {f"L{n}" for n in range(1, 15)}


def raised() -> set[str]:
    """Ids that the simulator's own checks name when they fail."""
    found: set[str] = set()
    for path in (ROOT / "chaos" / "sim").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in ("Violation", "ViolationError", "violated"):
                    found.add(node.args[0].value)
    return found


def asserted() -> set[str]:
    """Ids in the messages of what the cores assert of themselves at every look."""
    found: set[str] = set()
    for path in (ROOT / "spark_ft").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert) and isinstance(node.msg, ast.Constant):
                found.update(re.findall(r"\b[SL]\d+\b", str(node.msg.value).partition(":")[0]))
    return found


def told() -> dict[str, tuple[str, str]]:
    """id -> what the table says of the simulator's own checks, and of the cores'."""
    rows = re.findall(
        r"^\| ([SL]\d+) \|([^|]*)\|([^|]*)\|", (ROOT / "docs" / "simulation.md").read_text(), re.M
    )
    return {id: (own.strip(), cores.strip()) for id, own, cores in rows}


def test_each_invariant_has_a_row():
    assert told().keys() == EVERY


def test_what_is_said_to_be_asked_is_asked_and_nothing_else():
    table = told()
    assert {id for id, (own, _) in table.items() if own != "–"} == raised() & EVERY
    assert {id for id, (_, cores) in table.items() if cores != "–"} == asserted() & EVERY
