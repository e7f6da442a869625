"""Every workload on spark_ft and on PySpark, in turns, each run a fresh process; a table of ratios.

    python tests/bench/run.py --rival-python .venv-pyspark/bin/python
    python tests/bench/run.py --engine spark_ft --only sort join --runs 5
    python tests/bench/run.py --scale 0.01 --runs 1            # a quick look that everything works

The source of a workload is the same for both engines (workloads.py); only the import differs.  The two
take turns, and change who begins, because machines drift.  Columns:

wall s    median of the timed region, fastest and slowest run in brackets
ratio     PySpark's median over ours: above 1 means that we are faster
CPU s     CPU seconds of the whole process tree inside the timed region (over its life for ``startup``)
RSS MB    greatest sum of resident memory over the process tree (shared pages count once a process)
PSS MB    the same with shared pages split among their users

Exit status: 0 when every run gave the right answer and ended cleanly, else 1.  With ``--strict`` also
1 when any ratio is below 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
import text
import workloads
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "bench"
MB = 1_000_000
MARK = "SPARK_FT_BENCH_RUN"

# What a rival is given so that the comparison is fair: PySpark's default waits out a delayed TCP
# acknowledgement in every task, which unix sockets avoid.
RIVAL_CONF = ["spark.driver.memory=4g", "spark.python.unix.domain.socket.enabled=true"]


class Watch(threading.Thread):
    """Samples memory and CPU of everything that carries the run's mark in its environment."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.done = root, threading.Event()
        self.rss = self.pss = 0
        self.cpu_of: dict[int, float] = {}

    def run(self) -> None:
        for turn in range(10**9):
            if self.done.wait(0.2):
                return
            rss = pss = 0
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(self.root)
                for process in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        rss += process.memory_info().rss
                        times = process.cpu_times()
                        self.cpu_of[process.pid] = times.user + times.system
                        if turn % 5 == 4:
                            pss += process.memory_full_info().pss
            self.rss, self.pss = max(self.rss, rss), max(self.pss, pss)


def marked(mark: str) -> list[int]:
    """Processes that inherited the run's mark and still live."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as environment:
                if needle in environment.read():
                    found.append(int(entry))
    return found


def wait_for_calm(at_most_s: float) -> None:
    """Return when the machine was less than a tenth busy for a second, or after a while."""
    end = time.monotonic() + at_most_s
    while time.monotonic() < end and psutil.cpu_percent(1.0) > 10:
        pass


def run_once(engine: str, python: str, name: str, args: argparse.Namespace) -> dict[str, float] | None:
    """The figures of one run, or None when it failed: wrong answer, error, or processes left behind."""
    wait_for_calm(args.calm)
    conf = RIVAL_CONF + args.rival_conf if engine == "pyspark" else args.conf
    mark = uuid.uuid4().hex
    environment = os.environ | {
        MARK: mark,
        "PYSPARK_PYTHON": python,
        "PYSPARK_DRIVER_PYTHON": python,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "BENCH_TEXT": str(args.text or ""),
    }
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "figures.json")
        command = [python, str(HERE / "child.py"), "--engine", engine, "--workload", name, "--out", str(out)]
        command += ["--cores", str(args.cores), "--scale", str(args.scale)]
        for setting in conf:
            command += ["--conf", setting]
        log = Path(scratch, "log")
        begun = time.perf_counter()
        with log.open("wb") as sink:
            child = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, cwd=HERE.parents[1])
            watch = Watch(child.pid)
            watch.start()
            try:
                status: int | str = child.wait(args.timeout)
            except subprocess.TimeoutExpired:
                status = f"none within {args.timeout:g} s"
                child.kill()
                child.wait()
        end = time.monotonic() + 10
        while (left := marked(mark)) and time.monotonic() < end:
            time.sleep(0.01)
        life = time.perf_counter() - begun
        watch.done.set()
        watch.join()
        if left:
            status = f"{status}, and {len(left)} processes left behind"
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)
        if status != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            print(f"{engine} {name}: exit status {status}\n{tail}", file=sys.stderr, flush=True)
            return None
        figures: dict[str, float] = json.loads(out.read_text())
    figures |= {"life_s": life, "rss_mb": watch.rss / MB, "pss_mb": watch.pss / MB}
    figures.setdefault("cpu_s", sum(watch.cpu_of.values()))
    return figures


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


COMMON = {"wall_s", "cpu_s", "life_s", "rss_mb", "pss_mb"}


def cell(runs: list[dict[str, float]]) -> str:
    if not runs:
        return "FAILED"
    walls = [run["wall_s"] for run in runs]
    return f"{statistics.median(walls):.3g} ({min(walls):.3g}-{max(walls):.3g})"


def table(results: dict[str, dict[str, list[dict[str, float]]]], engines: list[str]) -> Table:
    paired = len(engines) > 1
    shown = Table(title="median wall seconds (fastest-slowest)")
    shown.add_column("workload")
    for engine in engines:
        shown.add_column(f"{engine} s", justify="right")
    if paired:
        shown.add_column("ratio", justify="right", style="bold")
    for column in ("CPU s", "RSS MB", "PSS MB"):
        shown.add_column(column, justify="right")
    shown.add_column("more of spark_ft")
    for name, runs in results.items():
        mid = {engine: medians(runs[engine]) if runs[engine] else {} for engine in engines}
        row = [name, *(cell(runs[engine]) for engine in engines)]
        if paired:
            row.append(ratio_text(mid))
        for key in ("cpu_s", "rss_mb", "pss_mb"):
            row.append(" / ".join(short(mid[engine][key]) if mid[engine] else "-" for engine in engines))
        extra = mid[engines[0]]
        row.append(", ".join(f"{key}={short(value)}" for key, value in extra.items() if key not in COMMON))
        shown.add_row(*row)
    return shown


def ratio_of(mid: dict[str, dict[str, float]]) -> float | None:
    ours, theirs = mid.get("spark_ft"), mid.get("pyspark")
    return theirs["wall_s"] / ours["wall_s"] if ours and theirs else None


def ratio_text(mid: dict[str, dict[str, float]]) -> str:
    ratio = ratio_of(mid)
    return "-" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("both", "spark_ft", "pyspark"), default="both")
    parser.add_argument("--only", nargs="+", choices=workloads.names(), metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the sizes of the workloads")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--calm", type=float, default=5, help="seconds to wait for an idle machine")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one run may take")
    parser.add_argument("--conf", action="append", default=[], metavar="KEY=VALUE", help="for spark_ft")
    parser.add_argument("--rival-python", default=sys.executable, help="the Python that has PySpark")
    parser.add_argument("--rival-conf", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--strict", action="store_true", help="fail when any ratio is below 1")
    parser.add_argument("--out", type=Path, help="where to keep all figures as JSON")
    args = parser.parse_args()
    engines = ["spark_ft", "pyspark"] if args.engine == "both" else [args.engine]
    if "pyspark" in engines and not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        print("PySpark needs Java 17, and there is no java here: use --engine spark_ft", file=sys.stderr)
        return 2
    python = {"spark_ft": sys.executable, "pyspark": args.rival_python}
    names = args.only or workloads.names()
    args.text = None
    if {"wordcount", "count_lines"} & set(names):
        args.text = text.make_text(CACHE, workloads.sizes_at("wordcount", args.scale)["text_bytes"])
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    failed = False
    for name in names:
        runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
        for turn in range(args.runs):
            for engine in engines[:: 1 if turn % 2 == 0 else -1]:
                figures = run_once(engine, python[engine], name, args)
                failed |= figures is None
                if figures is not None:
                    runs[engine].append(figures)
        results[name] = runs
        mid = {engine: medians(runs[engine]) if runs[engine] else {} for engine in engines}
        line = "  ".join(f"{engine} {cell(runs[engine])}" for engine in engines)
        print(f"{name:18} {line}  {'x ' + ratio_text(mid) if len(engines) > 1 else ''}", flush=True)
    Console(width=None if sys.stdout.isatty() else 190).print(table(results, engines))
    ratios = {
        name: ratio
        for name, runs in results.items()
        if len(engines) > 1
        and (ratio := ratio_of({engine: medians(runs[engine]) if runs[engine] else {} for engine in engines}))
    }
    slower = [name for name, ratio in ratios.items() if ratio < 1]
    if ratios:
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios.values()))
        print(f"geometric mean of {len(ratios)} ratios: {mean:.2f}; slower than PySpark: {slower or 'none'}")
    if args.out:
        machine = {"python": platform.python_version(), "cores": args.cores, "machine": platform.platform()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"machine": machine, "scale": args.scale, "runs": results}, indent=1))
    return 1 if failed or (args.strict and slower) else 0


if __name__ == "__main__":
    sys.exit(main())
