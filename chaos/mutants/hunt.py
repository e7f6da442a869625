"""One process, one mutant: load the mutated core, run seeds until one shows it, say which.

``python -m chaos.mutants.hunt``, the mutant and the seeds as JSON on standard input, the find as JSON
on standard output.  A seed shows the mutant when an invariant is violated, when a core raises, or when
the simulation does not come to its end within ``SEED_S`` seconds of CPU time.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import signal
import sys
import time
from collections.abc import Sequence
from types import CodeType, FrameType, ModuleType

from chaos.mutants.mutant import Mutant

SEED_S = 20  # a healthy history takes a fraction of a second


class _Loader(importlib.abc.SourceLoader):
    """Loads one module from a text of ours."""

    def __init__(self, path: str, source: str) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        return self._source.encode()

    def source_to_code(self, data: object, path: object = "", **options: object) -> CodeType:  # type: ignore[override]
        return compile(self._source, self._path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, loader: _Loader) -> None:
        self._module, self._loader = module, loader

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, self._loader, origin=self._loader.get_filename(fullname)
        )


def install(mutant: Mutant) -> None:
    """From now on the import of the mutant's module gives the mutant; it must not be imported yet."""
    assert mutant.module not in sys.modules, f"{mutant.module} is loaded already"
    sys.meta_path.insert(0, _Finder(mutant.module, _Loader(f"<mutant {mutant.name}>", mutant.source())))


class _TooLongError(Exception):
    pass


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLongError(f"no end within {SEED_S} s of CPU time")


def hunt(seeds: range) -> dict[str, object]:
    """The first seed that shows the mutant, and by what; ``seed`` is None when none does."""
    from chaos.sim.run import simulate

    signal.signal(signal.SIGVTALRM, _too_long)
    began_s = time.process_time()
    for tried, seed in enumerate(seeds, 1):
        how = ""
        signal.setitimer(signal.ITIMER_VIRTUAL, SEED_S)
        try:
            violations = simulate(seed).violations
        except _TooLongError as error:  # between two events, where the simulation does not catch it
            violations, how = [], str(error)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if violations:
            how = f"{violations[0].id}: {violations[0].text}"
        if how:
            return {"seed": seed, "tried": tried, "how": how, "cpu_s": time.process_time() - began_s}
    return {"seed": None, "tried": len(seeds), "how": "", "cpu_s": time.process_time() - began_s}


def main() -> None:
    asked = json.load(sys.stdin)
    if asked["mutant"] is not None:  # else the cores as they are
        install(Mutant(**asked["mutant"]))
    print(json.dumps(hunt(range(asked["first"], asked["last"]))))


if __name__ == "__main__":
    main()
