"""Mutants drawn by chance: a condition of a core turned round.

The tests of ``if`` and ``while`` statements are turned.  Left alone is what merely words something, for
turning it changes nothing that a promise speaks of: functions that give a ``str``, conditional expressions,
and tests of nothing but a parameter that is a ``str``.
"""

from __future__ import annotations

import ast
import itertools
from random import Random

from chaos.mutants.mutant import Mutant, module_path

MODULES = (
    "spark_ft.scheduler.attempts", "spark_ft.scheduler.barrier", "spark_ft.scheduler.cached",
    "spark_ft.scheduler.copies", "spark_ft.scheduler.core", "spark_ft.scheduler.dag",
    "spark_ft.scheduler.departures", "spark_ft.scheduler.detours", "spark_ft.scheduler.editions",
    "spark_ft.scheduler.ends", "spark_ft.scheduler.exclusion", "spark_ft.scheduler.executors",
    "spark_ft.scheduler.liveness", "spark_ft.scheduler.map_outputs", "spark_ft.scheduler.quarantine",
    "spark_ft.scheduler.recovery", "spark_ft.scheduler.scopes", "spark_ft.scheduler.succession",
    "spark_ft.scheduler.taskset", "spark_ft.executor.core", "spark_ft.cluster.worker",
    "spark_ft.cluster.manager", "spark_ft.transport.link",
)  # fmt: skip


def drawn(count: int, seed: int) -> list[Mutant]:
    """``count`` different mutants; the same for the same seed, and few others when a core has changed
    elsewhere: each condition draws its own lot from where it stands and what it says."""
    everything = [mutant for module in MODULES for mutant in conditions(module)]

    def lot(mutant: Mutant) -> float:
        return Random(f"{seed}/{mutant.module}/{mutant.function}/{mutant.old}").random()

    return sorted(everything, key=lot)[:count]


def conditions(module: str) -> list[Mutant]:
    """Every condition of a module that can be turned round, each as a mutant."""
    text = module_path(module).read_text()
    finder = _Finder(module, text)
    finder.visit(ast.parse(text))
    return finder.found


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str, text: str) -> None:
        self._module, self._text = module, text
        self._lines = text.splitlines(keepends=True)
        self._starts = [0, *itertools.accumulate(map(len, self._lines))]
        self._scope: list[str] = []
        self._texts: set[str] = set()  # parameters that are a str
        self._bodies: list[str] = []  # texts of the functions that we are in
        self.found: list[Mutant] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        wording = _is_str(node.returns)
        if not wording and not node.name.startswith(("check_", "assert_")):
            outer, self._texts = self._texts, {a.arg for a in node.args.args if _is_str(a.annotation)}
            self._enter(node)
            self._texts = outer

    def _enter(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        assert node.end_lineno is not None
        self._scope.append(node.name)
        self._bodies.append("".join(self._lines[node.lineno - 1 : node.end_lineno]))
        self.generic_visit(node)
        self._bodies.pop()
        self._scope.pop()

    def visit_If(self, node: ast.If) -> None:
        self._take(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._take(node.test)
        self.generic_visit(node)

    def _take(self, test: ast.expr) -> None:
        assert test.end_lineno is not None and test.end_col_offset is not None
        begin = self._at(test.lineno, test.col_offset)
        old = self._text[begin : self._at(test.end_lineno, test.end_col_offset)]
        if not self._scope or "TYPE_CHECKING" in old or ":=" in old or old in self._texts:
            return
        # The lines before the condition are taken along until the place is the only one of its kind.
        before, line = "", test.lineno - 1
        while self._bodies[-1].count(before + old) != 1 and line >= 0:
            before, line = self._text[self._starts[line] : begin], line - 1
        name = f"{self._module.rpartition('.')[2]}.{'.'.join(self._scope)}:{test.lineno}"
        function = ".".join(self._scope)
        new = f"{before}not ({old})"
        self.found.append(Mutant(name, self._module, function, before + old, new, "drawn"))

    def _at(self, line: int, column: int) -> int:
        """The character at a line and a column in bytes, as a syntax tree counts them."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())


def _is_str(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "str"
