"""The deterministic simulator: the engine's real cores in one thread, in virtual time, everything faulty.

    seed ──> options ──> program, cluster, decisions (user's and faults')
                                │
                world: heap of (virtual time, what happens) ──> cores ──> effects ──> world
                                │                                 └─> shadow: safety, at each step
                healed at last: liveness, answers, garbage

``run.simulate(seed)`` is the way in, ``python -m chaos sim`` is it for people; docs/simulation.md says what
is simulated and how.  Nothing here reads a clock, a random device or a hash of a string, so a seed gives
the same history byte for byte in every process.
"""
