"""The chaos harness: workloads, nemeses, histories, checkers.  An empty room today.

Here will live, over the same pure cores that the engine runs: a simulator in virtual time with
faulty network, disk and clocks (``sim``), a harness over real processes behind fault-injecting
proxies (``live``), the nemeses that both know, and the checkers that judge their histories.

What exists today stands elsewhere: state machines over each core and random programs under
kills in ``tests/property``, one test a fault in ``tests/cluster``, the live kill loop of
``make chaos`` in ``tests/chaos``.
"""
