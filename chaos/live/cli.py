"""The commands ``run``, ``list``, ``replay``, ``sweep`` and ``soak``."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chaos import checkers, history, schedule
from chaos.live import report, sweep
from chaos.nemesis import combined
from chaos.nemesis.registry import NEMESES
from chaos.workloads.registry import SWEPT, WORKLOADS

SECONDS = 6.0


def add_commands(commands: Any) -> None:
    """Add this module's commands to the command line."""
    run = commands.add_parser("run", help="one run: a workload, or a program of your own, under faults")
    run.add_argument("--workload", default="", help="of `list`; drawn from the seed if none is named")
    run.add_argument("--program", default="", help="your own program, with its arguments in the same string")
    run.add_argument("--nemesis", default="", help="of `list`, several separated by commas; drawn if none")
    run.add_argument("--master", default="", help="local-cluster[2,1,512] if none is named")
    run.add_argument("--faults", default="", help="not drawn: nemesis.kind@5-8,package@9")
    run.add_argument("--every", type=float, default=schedule.EVERY_S, help="seconds between two, on average")
    run.add_argument("--scale", type=float, default=1.0, help="of the workload")
    run.add_argument("--conf", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    run.add_argument("--swept", action="store_true", help="with the options that a sweep draws for this seed")
    _common(run)
    run.set_defaults(call=_run)

    listing = commands.add_parser("list", help="the workloads and the nemeses")
    listing.set_defaults(call=_list)

    replay = commands.add_parser("replay", help="a run once more, from its directory or from its seed")
    replay.add_argument("what", help="directory of a run, or a seed of a sweep")
    replay.add_argument("--judge", action="store_true", help="do not run: judge the history that is there")
    replay.add_argument("--seconds", type=float, default=SECONDS)
    replay.add_argument("--out", type=Path)
    replay.set_defaults(call=_replay)

    many = commands.add_parser("sweep", help="many seeds; can be stopped and resumed")
    many.add_argument("--seeds", type=int, default=20, help="how many")
    many.add_argument("--first", type=int, default=-1, help="the first of them; drawn if none is given")
    many.add_argument("--seconds", type=float, default=SECONDS, help="of faults, in each run")
    many.add_argument("--out", type=Path, help="where results are kept; the same one resumes a sweep")
    many.add_argument("--nemesis", default="", help="only these")
    many.add_argument("--workload", default="", help="only these")
    many.add_argument("--jobs", type=int, default=2, help="at a time: 1 or 2")
    many.add_argument("--keep", action="store_true", help="the histories of runs that went well, too")
    many.set_defaults(call=_sweep)

    soak = commands.add_parser("soak", help="new seeds until the time is over")
    soak.add_argument("--hours", type=float, default=1.0)
    soak.add_argument("--first", type=int, default=0, help="the first seed; drawn if 0")
    soak.add_argument("--seconds", type=float, default=20.0, help="of faults, in each run")
    soak.add_argument("--out", type=Path)
    soak.set_defaults(call=_soak)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=-1, help="drawn if none is given")
    parser.add_argument("--seconds", type=float, help="of faults; then they are healed")
    parser.add_argument("--out", type=Path, help="directory for the history and the report")


def _names(text: str, known: Any, what: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    for name in names:
        if name not in known:
            sys.exit(f"no {what} is called {name!r}; there are: {', '.join(known)}")
    return names


def _options(given: argparse.Namespace, seed: int) -> schedule.Options:
    nemeses = _names(given.nemesis, NEMESES, "nemesis")
    workloads = _names(given.workload, WORKLOADS, "workload")
    program = tuple(shlex.split(given.program))
    if program and not Path(program[0]).is_file():
        sys.exit(f"--program: there is no file {program[0]}")
    # A program says by itself how long it takes.
    seconds = given.seconds if given.seconds is not None else 0.0 if program else SECONDS
    if given.swept:
        return schedule.swept(seed, seconds, nemeses, workloads)
    rng = random.Random(f"{seed}/names")
    workload = "" if program else workloads[0] if workloads else rng.choice(SWEPT)
    if given.faults:
        chosen: tuple[str, ...] = nemeses
    else:
        chosen = nemeses or (rng.choice(sorted(NEMESES)),)
    pairs = [text.partition("=") for text in given.conf]
    conf = {key.strip(): value.strip() for key, _, value in pairs}
    master = given.master or "local-cluster[2,1,512]"
    return schedule.Options(
        seed, workload, chosen, master, seconds, given.scale, conf, given.every, program=program
    )


def _run(given: argparse.Namespace) -> int:
    seed = given.seed if given.seed >= 0 else time.time_ns() % 1_000_000
    options = _options(given, seed)
    try:
        texts = combined.written_out(given.faults.split(","), options.rng("packages")) if given.faults else ()
        faults = schedule.given(texts, options.rng("given")) if texts else None
    except ValueError as error:
        sys.exit(f"--faults: {error}")
    return _one(options, faults, given.out)


def _one(options: schedule.Options, faults: Any, out: Path | None) -> int:
    directory = (out or Path(tempfile.mkdtemp(prefix="chaos-"), f"seed-{options.seed}")).absolute()
    what = " ".join(options.program) or options.workload
    print(f"seed {options.seed}: {what} on {options.master} {options.about}, {options.seconds:g} s")
    if faults is not None or not options.program:
        print("faults:", *(schedule.draw(options) if faults is None else faults))
    told = sweep.do_one(options, directory, faults)
    for finding in told["findings"]:
        counts = ", ".join(f"{name} {value}" for name, value in finding["counts"].items())
        print(f"  {finding['verdict']:<8} {finding['checker']:<10} {counts}")
        for line in finding["says"]:
            print(f"           {line}")
    print(f"{told['verdict']}; {directory / 'report.html'}; again: python -m chaos replay {directory}")
    return 0 if told["verdict"] == checkers.TRUE else 1


def _list(given: argparse.Namespace) -> int:
    print("workloads")
    for name, workload in WORKLOADS.items():
        print(f"  {name:<16} {(workload.__doc__ or '').splitlines()[0]}")
    print("nemeses")
    for name, nemesis in NEMESES.items():
        print(f"  {name:<16} {(nemesis.__doc__ or '').splitlines()[0]}")
        for kind in nemesis.kinds:
            lasts = f"{kind.lasts_s[0]:g}-{kind.lasts_s[1]:g} s" if kind.lasts_s[1] else "at once"
            print(f"    .{kind.name:<14} {lasts:<10} {', '.join(kind.rows)}")
    print("packages of faults")
    for name, package in combined.PACKAGES.items():
        print(f"  {name:<22} {package.about}")
    return 0


def _replay(given: argparse.Namespace) -> int:
    if given.what.isdigit():
        return _one(schedule.swept(int(given.what), given.seconds), None, given.out)
    directory = Path(given.what)
    happened = history.read(directory)
    if not given.judge:
        return _one(
            happened.options, happened.schedule, given.out or directory.with_name(f"{directory.name}-again")
        )
    findings = checkers.judge(happened)
    (directory / "report.html").write_text(report.html(happened, findings))
    for finding in findings:
        print(f"  {finding.verdict:<8} {finding.checker:<10} {dict(finding.counts)}")
        print(*(f"    {line}" for line in finding.says), sep="\n", end="")
    return 0 if checkers.composed(findings) == checkers.TRUE else 1


def _sweep(given: argparse.Namespace) -> int:
    nemeses = _names(given.nemesis, NEMESES, "nemesis")
    workloads = _names(given.workload, WORKLOADS, "workload")
    # A sweep that is kept begins at seed 0, so that it can be resumed.
    first = given.first if given.first >= 0 else 0 if given.out else time.time_ns() % 1_000_000
    out = (given.out or Path(tempfile.mkdtemp(prefix="chaos-sweep-"))).absolute()
    print(f"seeds {first} to {first + given.seeds - 1}, in {out}")
    try:
        runs = sweep.sweep(
            range(first, first + given.seeds), out, given.seconds, nemeses, workloads, given.jobs, given.keep
        )
    except ValueError as error:
        sys.exit(str(error))
    text = sweep.table(runs)
    (out / "table.txt").write_text(text + "\n")
    print(text)
    return 0 if len(runs) == given.seeds and all(each["verdict"] == checkers.TRUE for each in runs) else 1


def _soak(given: argparse.Namespace) -> int:
    first = given.first or time.time_ns() % 1_000_000
    out = (given.out or Path(tempfile.mkdtemp(prefix="chaos-soak-"))).absolute()
    print(f"soak for {given.hours:g} h from seed {first} in {out}")
    end, seed, runs = time.monotonic() + given.hours * 3600, first, []
    while time.monotonic() < end:
        runs += sweep.sweep(range(seed, seed + 2), out, given.seconds, (), ())
        seed += 2
    (out / "runs.json").write_text(json.dumps(runs))
    print(sweep.table(runs))
    return 0 if all(each["verdict"] == checkers.TRUE for each in runs) else 1
