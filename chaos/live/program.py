"""The driver of a live run, a child of the harness: rounds of one workload until told to end.

``python -m chaos.live.program OPTIONS.json``.  What each round observed, or the error that ended it, is one
line in ``results.jsonl``.  SIGUSR1 makes it write the stacks of all its threads to ``stacks``.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from chaos import schedule
from chaos.workloads.registry import WORKLOADS

ERRORS_MAX = 3  # rounds that may end in an error before there is no point in going on


def main(path: str) -> None:
    told = json.loads(Path(path).read_text())
    directory = Path(told["directory"])
    stacks = (directory / "stacks").open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    with (directory / "results.jsonl").open("a", buffering=1) as results:
        try:
            rounds(told, directory, results)
        except Exception as error:  # no context could be had, or it would not end: that is a result too
            results.write(json.dumps({"round": -1, **described(error)}) + "\n")
            raise


def rounds(told: dict[str, Any], directory: Path, results: Any) -> None:
    from spark_ft import SparkConf, SparkContext

    options = schedule.Options(**{**told["options"], "nemeses": (), "program": ()})
    workload = WORKLOADS[options.workload]
    conf = SparkConf(loadDefaults=False).setAll(told["conf"].items())
    errors = number = 0
    goes_on = True
    with SparkContext(conf=conf) as sc:
        while goes_on:
            last = (directory / "last").exists()
            params = schedule.params(options, number)
            place = directory / f"round-{number}"
            place.mkdir()
            workload.setup(params, place)
            began = time.monotonic()
            try:
                outcome = {"observed": workload.run(sc, params, place)}
            except Exception as error:  # judged by the checkers, whatever it is
                outcome = described(error)
                errors += 1
            outcome |= {"round": number, "seconds": round(time.monotonic() - began, 3), "params": params}
            results.write(json.dumps(outcome) + "\n")
            number += 1
            # After an error the session must go on: one more round shows it.
            goes_on = "error" in outcome if last else True
            if errors >= ERRORS_MAX or (workload.rounds_max and number >= workload.rounds_max):
                goes_on = False


def described(error: Exception) -> dict[str, Any]:
    condition = getattr(error, "getCondition", lambda: None)()
    text = "".join(traceback.format_exception(error))
    return {"error": type(error).__name__, "condition": condition, "text": text[-4000:]}


if __name__ == "__main__":
    main(sys.argv[1])
