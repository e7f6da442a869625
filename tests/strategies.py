"""Random RDD programs as a Hypothesis strategy: chaos/programs draws, Hypothesis chooses and shrinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from chaos.programs import KEYS, NUMBERS, RECORDS_MAX, Program, program

numbers = st.integers(*NUMBERS)
keys = st.sampled_from(KEYS)
pairs = st.tuples(keys, numbers)


class HypothesisDraw:
    """The choices of one example."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self._draw = draw

    def integers(self, least: int, most: int) -> int:
        return self._draw(st.integers(least, most))

    def choice(self, values: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(values))

    def records(self, of_pairs: bool) -> list[Any]:
        return self._draw(st.lists(pairs if of_pairs else numbers, max_size=RECORDS_MAX))


@st.composite
def programs(
    draw: Callable[..., Any], steps_max: int = 9, actions_max: int = 3, dawdle_s: float = 0.0
) -> Program:
    """As ``chaos.programs.program``."""
    return program(HypothesisDraw(draw), steps_max, actions_max, dawdle_s)
