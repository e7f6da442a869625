"""Chaos on real clusters of real processes: launch, break, record, judge.

harness                                        driver process (a child of the harness)
  cluster.Launch ── program.py, options ──────>  SparkContext, rounds of a workload
  schedule ── nemesis.invoke ──signals, bytes──>  manager, workers, executors
  log.Follower <── the application's event log ──
  history.jsonl ──> checkers ──> report.html
"""
