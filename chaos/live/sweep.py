"""Many seeds, at most two at a time; what each gave is kept, so that a sweep can be stopped and resumed.

    OUT/sweep.json          what is swept: a resumed sweep must be the same
    OUT/seed-00042.words    what the harness said in that run
    OUT/seed-00042/         the run: history.jsonl, report.html, verdicts.json, words of its processes

A run is done when its ``verdicts.json`` is there; it is written last, under its name in one step.
Histories of runs with verdict true are dropped but for their verdicts, unless they are to be kept.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaos import checkers, history, schedule
from chaos.checkers import Finding
from chaos.live import report, userprogram
from chaos.live.cluster import ROOT
from chaos.live.runner import run
from chaos.nemesis import Fault
from chaos.nemesis.registry import rows_within_reach

DONE = "verdicts.json"


def do_one(
    options: schedule.Options, directory: Path, faults: Sequence[Fault] | None = None
) -> dict[str, Any]:
    """One run with its report; what is known of it as plain values."""
    began = time.monotonic()
    findings = (userprogram.run if options.program else run)(options, directory, faults)
    happened = history.read(directory)
    (directory / "report.html").write_text(report.html(happened, findings))
    summary = summed_up(happened, findings)
    summary["seconds"] = round(time.monotonic() - began, 1)
    making = directory / f".{DONE}"
    making.write_text(json.dumps(summary, indent=1, default=history.plain))
    os.replace(making, directory / DONE)
    return summary


def summed_up(happened: history.History, findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "seed": happened.options.seed,
        "workload": happened.options.workload,
        "nemeses": list(happened.options.nemeses),
        "master": happened.options.master,
        "about": happened.options.about,
        "verdict": checkers.composed(findings),
        "findings": [asdict(finding) for finding in findings],
        "rows": happened.rows(),
        "faults": dict(
            Counter(f"{f.fault.nemesis}.{f.fault.kind}" for f in happened.faults if f.took_effect)
        ),
        "lost": len(happened.of("executor_lost")),
        "rounds": len(happened.results),
    }


# --- Many ---------------------------------------------------------------------------------------------


def sweep(
    seeds: Iterable[int], out: Path, seconds: float, nemeses: Sequence[str], workloads: Sequence[str],
    jobs: int = 2, keep: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Do every seed that is not done yet, each in a process of its own; answer what all of them gave.

    Raises ValueError when ``out`` holds another sweep.
    """
    out.mkdir(parents=True, exist_ok=True)
    about = {"seconds": seconds, "nemeses": list(nemeses), "workloads": list(workloads)}
    marker = out / "sweep.json"
    if marker.exists() and json.loads(marker.read_text()) != about:
        raise ValueError(f"{out} holds another sweep: {marker.read_text()}; choose another directory")
    marker.write_text(json.dumps(about))
    wanted = list(seeds)
    to_do = [seed for seed in wanted if not (place(out, seed) / DONE).exists()]
    running: dict[int, subprocess.Popen[bytes]] = {}
    print(f"{len(wanted)} seeds, {len(wanted) - len(to_do)} done before", flush=True)
    try:
        while to_do or running:
            while to_do and len(running) < max(1, min(jobs, 2)):
                seed = to_do.pop(0)
                running[seed] = _start(seed, out, seconds, nemeses, workloads)
            for seed, process in list(running.items()):
                if process.poll() is not None:
                    del running[seed]
                    _tell(out, seed, keep)
            time.sleep(0.05)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", flush=True)
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()
    done = [place(out, seed) / DONE for seed in wanted]
    return [json.loads(path.read_text()) for path in done if path.exists()]


def place(out: Path, seed: int) -> Path:
    return out / f"seed-{seed:05}"


def _start(
    seed: int, out: Path, seconds: float, nemeses: Sequence[str], workloads: Sequence[str]
) -> subprocess.Popen[bytes]:
    """A run in a process of its own: what it does to itself, the others do not notice."""
    command = [
        sys.executable,
        "-m",
        "chaos",
        "run",
        "--swept",
        "--seed",
        str(seed),
        "--seconds",
        str(seconds),
    ]
    command += ["--out", str(place(out, seed))]
    command += ["--nemesis", ",".join(nemeses)] if nemeses else []
    command += ["--workload", ",".join(workloads)] if workloads else []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    place(out, seed).mkdir(parents=True, exist_ok=True)
    with place(out, seed).with_suffix(".words").open("wb") as words:
        return subprocess.Popen(
            command,
            stdout=words,
            stderr=words,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )


def _tell(out: Path, seed: int, keep: bool) -> None:
    directory = place(out, seed)
    if not (directory / DONE).exists():
        print(f"{seed:>6} the harness itself failed; see {directory.with_suffix('.words')}", flush=True)
        return
    told = json.loads((directory / DONE).read_text())
    print(line_of(told), flush=True)
    if told["verdict"] == checkers.TRUE and not keep:
        directory.with_suffix(".words").unlink(missing_ok=True)
        for entry in directory.iterdir():
            if entry.name != DONE:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def line_of(told: Mapping[str, Any]) -> str:
    """One run in one line."""
    wrong = [
        f"{finding['checker']} {finding['verdict']}: {' '.join(finding['says'][:1])[:150]!r}"
        for finding in told["findings"]
        if finding["verdict"] != checkers.TRUE
    ]
    faults = sum(told["faults"].values())
    names = f"{told['workload']} x {'+'.join(told['nemeses'])}"
    return (
        f"{told['seed']:>6} {told['verdict']:<7} {told['seconds']:>5.1f} s  {names:<40} {told['master']:<24} "
        f"{faults} faults, {told['lost']} lost, {told['rounds']} rounds {'; '.join(wrong)}"
    )


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts by workload and by nemesis, then how often each row was exercised; those at zero last."""
    lines = []
    for what, names_of in (("workload", lambda r: [r["workload"]]), ("nemesis", lambda r: r["nemeses"])):
        lines.append(f"\n{what:<20} {'runs':>5} {'true':>5} {'false':>5} {'unknown':>8} {'faults':>7}")
        names = sorted({name for each in runs for name in names_of(each)})
        for name in names:
            some = [each for each in runs if name in names_of(each)]
            count = Counter(each["verdict"] for each in some)
            faults = sum(sum(each["faults"].values()) for each in some)
            verdicts = f"{count['true']:>5} {count['false']:>5} {count['unknown']:>8}"
            lines.append(f"{name:<20} {len(some):>5} {verdicts} {faults:>7}")
    count = Counter(each["verdict"] for each in runs)
    seconds = sum(each["seconds"] for each in runs)
    lines.append(
        f"\n{len(runs)} runs: {count['true']} true, {count['false']} false, {count['unknown']} unknown; "
        f"{sum(sum(each['faults'].values()) for each in runs)} faults took effect, {seconds:.0f} s of runs"
    )
    rows: Counter[str] = Counter()
    for each in runs:
        rows.update(each["rows"])
    reach = rows_within_reach()
    lines.append(
        "rows exercised: " + (", ".join(f"{row} {rows[row]}" for row in reach if rows[row]) or "none")
    )
    lines.append("rows at zero:   " + (", ".join(row for row in reach if not rows[row]) or "none"))
    return "\n".join(lines)
