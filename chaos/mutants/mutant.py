"""A mutant: one place of one module, and what stands there instead."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


class MutantError(Exception):
    """The place that a mutant names is not there, or not once."""


@dataclass(frozen=True)
class Mutant:
    """``old`` stands exactly once in ``function`` of ``module``; ``guards`` says what that costs.

    ``function`` is a qualified name, or empty for the module's own level.
    """

    name: str
    module: str
    function: str
    old: str
    new: str
    guards: str

    def source(self) -> str:
        """The module's text with the mutant in it.

        Raises:
            MutantError: the place is not there, there twice, or the result does not compile.
        """
        text = module_path(self.module).read_text()
        begin, end = _extent(text, self.function) if self.function else (0, len(text))
        body = text[begin:end]
        if body.count(self.old) != 1:
            raise MutantError(
                f"{self.name}: {self.old!r} stands {body.count(self.old)} times in "
                f"{self.module}.{self.function}; "
                "the guard has moved: bring chaos/mutants/guards.py up to date"
            )
        mutated = text[:begin] + body.replace(self.old, self.new) + text[end:]
        try:
            compile(mutated, self.module, "exec")
        except SyntaxError as error:
            raise MutantError(f"{self.name}: does not compile: {error}") from error
        return mutated


def module_path(module: str) -> Path:
    """Where a module's text is, without importing it."""
    parent, _, name = module.rpartition(".")
    package = importlib.util.find_spec(parent)
    if package is None or not package.submodule_search_locations:
        raise MutantError(f"there is no package {parent}")
    return Path(package.submodule_search_locations[0], f"{name}.py")


def _extent(text: str, qualname: str) -> tuple[int, int]:
    """Where a function begins and ends, in characters."""
    scope: list[ast.stmt] = _parsed(text).body
    found: ast.stmt | None = None
    for part in qualname.split("."):
        named = [
            node for node in scope if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
        ]
        if len(named) != 1:
            raise MutantError(f"there is no single {qualname}")
        found, scope = named[0], named[0].body
    assert found is not None and found.end_lineno is not None
    lines = text.splitlines(keepends=True)
    return sum(map(len, lines[: found.lineno - 1])), sum(map(len, lines[: found.end_lineno]))


@lru_cache(maxsize=4)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)
