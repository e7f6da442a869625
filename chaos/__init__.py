"""The chaos harness: workloads, nemeses, schedules, histories, checkers; docs/chaos.md tells how to use it.

workloads/    jobs whose right answer is known by construction
nemesis/      what breaks things, and says whether it took effect
schedule.py   seed -> what is run, and which faults come when
history.py    what happened, as JSON lines
checkers.py   who judges it afterwards: true, false or unknown
live/         real clusters of real processes
sim/          the real cores in one thread under virtual time
"""
