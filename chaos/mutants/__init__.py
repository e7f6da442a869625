"""Mutants: the cores with one guard taken out each, to learn whether the simulator would notice.

    guards.py   the guards by name: where each stands and what is put in its place
    draw.py     further mutants, drawn by turning conditions of the cores round
    hunt.py     one process: load a mutated core, run seeds until one of them shows it
    score.py    all mutants, some processes at a time; a table of seeds to the kill

The shipped code knows nothing of this: a mutant exists only in the process that loads it (hunt.py).
A mutant that survives is a hole in the simulator, or a guard that is not needed; either is mended.
Idea: DeMillo, Lipton, Sayward, "Hints on Test Data Selection" (1978).
"""
