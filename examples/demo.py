"""A real job on real input loses two executors to ``kill -9`` and ends with the right answer.

    make demo                                   or
    python examples/demo.py [--mb 64] [--master local-cluster[3,1,512]] [--no-kill]

Input: the source text of the Python standard library, repeated.  Three jobs: an inverted index of
identifiers, the most used words, PageRank over the import graph.  While the index is built, one
executor is killed in the middle of a map task, and later another one in the middle of a reduce task;
each victim is a process that the event log shows running a task of that stage.

Then it tells, from the event log alone, what was killed, what was done again and what was not, and
compares every answer with one computed in plain Python.  Exit status 0 means: both kills landed, every
answer is right, and no task was started twice but for those that were running in a killed process
(twins of slow tasks, flagged speculative, are counted apart).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from operator import add
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from spark_ft import SparkConf, SparkContext

IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
IMPORT = re.compile(r"\s*(?:from\s+([A-Za-z_][\w.]*)\s+import\b|import\s+([A-Za-z_][\w.]*))")
SLICES, REDUCERS, ROUNDS = 12, 12, 10
TRIES = 3  # kills that may come too late for their task, before the demo gives up
LEFT_OUT = {"site-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3"}

Event = dict[str, Any]
Place = tuple[int, int]  # stage, partition


# --- Input ------------------------------------------------------------------------------------------


def library() -> dict[str, str]:
    """Module -> source text, of the whole standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not LEFT_OUT.intersection(inside.parts):
            module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
            text = path.read_bytes().decode("ascii", "ignore")
            found[module] = " \n".join(re.split(r"[\r\n\x0b\x0c\x1c-\x1e]+", text))
    return found


def write_input(directory: Path, modules: dict[str, str], copies: int) -> int:
    """One file of lines ``module<TAB>line`` for each copy; answers their size in bytes."""
    rows = [f"{module}\t{line}\n" for module, text in modules.items() for line in text.split("\n")]
    whole = "".join(rows)
    directory.mkdir()
    for copy in range(copies):
        (directory / f"library-{copy:02}.txt").write_text(whole)
    return len(whole) * copies


# --- What both sides compute ---------------------------------------------------------------------------


def identifiers(row: str) -> Iterator[tuple[str, str]]:
    module, _, line = row.partition("\t")
    return ((name, module) for name in IDENTIFIER.findall(line))


def words(row: str) -> list[str]:
    return row.partition("\t")[2].split()


def imports(row: str) -> Iterable[tuple[str, str]]:
    module, _, line = row.partition("\t")
    found = IMPORT.match(line)
    return ((module, found[1] or found[2]),) if found else ()


def digest(postings: Iterable[tuple[str, int]]) -> tuple[int, int, str]:
    """Modules that use an identifier, how often in all, and a hash of the whole list."""
    ordered = sorted(postings)
    text = repr(ordered).encode()
    return len(ordered), sum(count for _, count in ordered), hashlib.blake2b(text, digest_size=8).hexdigest()


def heaviest(item: tuple[str, float]) -> tuple[float, str]:
    return -item[1], item[0]


# --- On the engine -----------------------------------------------------------------------------------


def run_jobs(sc: Any, source: str) -> dict[str, Any]:
    rows = sc.textFile(source, SLICES)

    sc.setJobDescription("inverted index of identifiers")
    uses = rows.flatMap(identifiers).map(lambda use: (use, 1)).reduceByKey(add, REDUCERS)
    postings = uses.map(lambda item: (item[0][0], (item[0][1], item[1]))).groupByKey(REDUCERS)
    index = dict(postings.mapValues(digest).collect())

    sc.setJobDescription("most used words")
    counts = rows.flatMap(words).map(lambda word: (word, 1)).reduceByKey(add, REDUCERS)
    top = counts.takeOrdered(25, key=heaviest)

    sc.setJobDescription("PageRank over the import graph")
    graph = rows.flatMap(imports).distinct(4).groupByKey(4).mapValues(list).cache()
    pages = graph.flatMap(lambda item: [item[0], *item[1]]).distinct(4).map(lambda page: (page, 0.0)).cache()
    ranks = pages.mapValues(lambda _: 1.0)
    for _ in range(ROUNDS):
        sent = graph.join(ranks, 4).flatMap(
            lambda item: [(to, item[1][1] / len(item[1][0])) for to in item[1][0]]
        )
        ranks = sent.union(pages).reduceByKey(add, 4).mapValues(lambda total: 0.15 + 0.85 * total)
    return {"index": index, "words": top, "ranks": dict(ranks.collect())}


# --- In plain Python ------------------------------------------------------------------------------------


def plain_answers(modules: dict[str, str], copies: int) -> dict[str, Any]:
    """The same answers without any engine: from one copy of the input, times the number of copies."""
    uses: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    counts: collections.Counter[str] = collections.Counter()
    links: dict[str, set[str]] = collections.defaultdict(set)
    for module, text in modules.items():
        for line in text.split("\n"):
            row = f"{module}\t{line}"
            for name, where in identifiers(row):
                uses[name][where] += copies
            counts.update(words(row))
            for source, target in imports(row):
                links[source].add(target)
    ranks = dict.fromkeys(set(links).union(*links.values()), 1.0)
    for _ in range(ROUNDS):
        totals = dict.fromkeys(ranks, 0.0)
        for source, targets in links.items():
            for target in targets:
                totals[target] += ranks[source] / len(targets)
        ranks = {page: 0.15 + 0.85 * total for page, total in totals.items()}
    return {
        "index": {name: digest(places.items()) for name, places in uses.items()},
        "words": sorted(((word, n * copies) for word, n in counts.items()), key=heaviest)[:25],
        "ranks": ranks,
    }


def differences(got: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    found = [
        f"{name}: not what plain Python says" for name in ("index", "words") if got[name] != wanted[name]
    ]
    close = got["ranks"].keys() == wanted["ranks"].keys() and all(
        abs(rank - wanted["ranks"][page]) < 1e-9 * max(1.0, rank) for page, rank in got["ranks"].items()
    )
    return found if close else [*found, "ranks: not what plain Python says"]


# --- Watching and killing -----------------------------------------------------------------------------


class Follower(threading.Thread):
    """Reads the event log as it grows; keeps all events, moves the bars, kills when the time has come.

    ``targets`` is how often a stage of each kind is to be hit, in order: ``map`` is one that reads the
    input, ``reduce`` one that reads a shuffle.  A victim is killed while the log shows a task of such a
    stage running in it, once two tasks of that stage are done and the victim has finished one itself,
    so that there is something to lose.
    """

    def __init__(self, directory: Path, targets: list[str], progress: Progress) -> None:
        super().__init__(name="follower", daemon=True)
        self.directory, self.targets, self.progress = directory, targets, progress
        self.events: list[Event] = []
        self.kills: list[Event] = []
        self.running: dict[int, Event] = {}
        self.stages: dict[int, Event] = {}
        self.done_in: collections.Counter[int] = collections.Counter()
        self.done_by: collections.Counter[str] = collections.Counter()
        self.bars: dict[int, Any] = {}
        self.finished = threading.Event()

    def run(self) -> None:
        offset = 0
        while True:
            ended = self.finished.is_set()
            for path in self.directory.glob("*.jsonl"):
                with path.open("rb") as log:
                    log.seek(offset)
                    whole = log.read().rpartition(b"\n")[0]
                if whole:
                    offset += len(whole) + 1
                    for line in whole.splitlines():
                        self.see(json.loads(line))
                    self.hunt()
            if ended:
                return
            self.finished.wait(0.01)

    def see(self, event: Event) -> None:
        self.events.append(event)
        match event["event"]:
            case "stage_start":
                stage = event["stage"]
                if stage not in self.stages:
                    self.stages[stage] = event
                    what = f"stage {stage:>2} {self.role(stage):6}"
                    self.bars[stage] = self.progress.add_task(what, total=event["tasks"])
            case "task_start":
                self.running[event["task"]] = event
            case "task_end":
                start = self.running.pop(event["task"], None)
                if event["reason"] == "Success" and start is not None:
                    self.done_in[start["stage"]] += 1
                    self.done_by[start["executor"]] += 1
                    self.progress.update(self.bars[start["stage"]], completed=self.done_in[start["stage"]])

    def role(self, stage: int) -> str:
        """``map`` when the stage reads input, ``reduce`` when it reads a shuffle."""
        return "reduce" if self.stages[stage].get("parents") else "map"

    def hunt(self) -> None:
        """Kill when the time has come.  A kill that came too late for its task is followed by another."""
        hits = [kill["role"] for kill in self.kills if landed(kill, self.events) is not None]
        pending = self.kills and not any(
            event["event"] == "executor_lost" and event["executor"] == self.kills[-1]["executor"]
            for event in reversed(self.events)
        )
        if pending or len(hits) >= len(self.targets) or len(self.kills) >= len(self.targets) + TRIES:
            return
        wanted = self.targets[len(hits)]
        for start in list(self.running.values()):
            ripe = self.role(start["stage"]) == wanted and self.done_in[start["stage"]] >= 2
            if ripe and self.done_by[start["executor"]] > 0:
                with contextlib.suppress(ProcessLookupError):
                    at = time.time()
                    os.kill(start["pid"], signal.SIGKILL)
                    self.kills.append(start | {"role": wanted, "killed_at": at})
                    self.progress.console.print(
                        f"[bold red]kill -9 {start['pid']}[/] while it runs task {start['partition']} of "
                        f"{wanted} stage {start['stage']}"
                    )
                return


def landed(kill: Event, events: list[Event]) -> float | None:
    """Seconds until the loss was noticed; None if the killed process had just finished its task."""
    ended = [event for event in events if event["event"] == "task_end" and event["task"] == kill["task"]]
    if not ended or ended[0]["reason"] != "ExecutorLost":
        return None
    return max(0.0, float(ended[0]["t_ms"]) / 1000 - kill["killed_at"])


def explained_restarts(events: list[Event], kills: list[Event]) -> collections.Counter[Place]:
    """(stage, partition) -> attempts of it that were running in a killed process when it died."""
    victims = {kill["executor"] for kill in kills}
    running: dict[int, Event] = {}
    lost: collections.Counter[Place] = collections.Counter()
    for event in events:
        if event["event"] == "task_start":
            running[event["task"]] = event
        elif event["event"] == "task_end":
            start = running.pop(event["task"], None)
            if start and start["executor"] in victims and event["reason"] == "ExecutorLost":
                lost[(start["stage"], start["partition"])] += 1
        elif event["event"] == "executor_lost" and event["executor"] in victims:
            for task, start in list(running.items()):
                if start["executor"] == event["executor"]:
                    lost[(start["stage"], start["partition"])] += 1
                    del running[task]
    return lost


def report(follower: Follower, console: Console) -> list[str]:
    """Print what the event log says; answers what must not be."""
    events, problems = follower.events, []
    starts = [event for event in events if event["event"] == "task_start"]
    twins = sum(bool(start["speculative"]) for start in starts)
    counted = collections.Counter(
        (start["stage"], start["partition"]) for start in starts if not start["speculative"]
    )
    explained = explained_restarts(events, follower.kills)
    again = {place: count - 1 for place, count in counted.items() if count > 1}
    good = {
        event["task"] for event in events if event["event"] == "task_end" and event["reason"] == "Success"
    }

    hits: list[str] = []
    killed = Table(title="What was killed", title_justify="left")
    for column in (
        "process",
        "while it ran",
        "had finished before",
        "noticed after",
        "done again because of it",
    ):
        killed.add_column(column)
    for kill in follower.kills:
        delay = landed(kill, events)
        hits += [kill["role"]] if delay is not None else []
        finished = sum(start["executor"] == kill["executor"] and start["task"] in good for start in starts)
        place = (kill["stage"], kill["partition"])
        killed.add_row(
            f"{kill['pid']} on {kill['host']}",
            f"task {kill['partition']} of {kill['role']} stage {kill['stage']}",
            f"{finished} tasks",
            "(its task was just done)" if delay is None else f"{delay * 1000:.0f} ms",
            f"task {kill['partition']}, {again.get(place, 0)} time" + "s" * (again.get(place, 0) != 1),
        )
    console.print(killed)
    problems += [f"no kill landed in a {role} task" for role in follower.targets[len(hits) :]]

    stages = Table(title="What was done, and what was done again", title_justify="left")
    for column in ("stage", "", "tasks", "started", "started again", "of these needed", "not done again"):
        stages.add_column(column, justify="left" if column in ("stage", "") else "right")
    for stage, places in itertools.groupby(sorted(counted), key=lambda place: place[0]):
        here = list(places)
        twice = {place: again[place] for place in here if place in again}
        needed = sum(min(count, explained[place]) for place, count in twice.items())
        if twice or stage in {kill["stage"] for kill in follower.kills}:
            stages.add_row(
                str(stage), follower.role(stage), str(len(here)), str(sum(counted[place] for place in here)),
                str(sum(twice.values())), str(needed), str(len(here) - len(twice)),
            )  # fmt: skip
        for place, count in twice.items():
            if count > explained[place]:
                problems.append(f"task {place[1]} of stage {place[0]} was started again without need")
    total = len(counted)
    stages.add_section()
    stages.add_row(
        "all", "", str(total), str(sum(counted.values())), str(sum(again.values())),
        str(sum(min(count, explained[place]) for place, count in again.items())), str(total - len(again)),
    )  # fmt: skip
    console.print(stages)
    if twins:
        console.print(f"(and {twins} twins of slow tasks, started on purpose)")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=float, default=64, help="how much text, in megabytes")
    parser.add_argument("--master", default="local-cluster[3,1,512]")
    parser.add_argument("--events", type=Path, help="keep the event log in this directory")
    parser.add_argument("--no-kill", action="store_true", help="leave everybody alive")
    args = parser.parse_args()
    console = Console()
    modules = library()
    copies = max(1, round(args.mb * 1e6 / sum(map(len, modules.values()))))
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with tempfile.TemporaryDirectory(prefix="spark-ft-demo-") as name:
        directory = Path(name)
        size = write_input(directory / "input", modules, copies)
        console.print(
            f"{len(modules)} modules of the standard library, {copies} times: {size / 1e6:.0f} MB of text, "
            f"on {args.master}"
        )
        log_dir = args.events or directory / "events"
        log_dir.mkdir(parents=True, exist_ok=True)
        conf = SparkConf().setMaster(args.master).setAppName("demo")
        conf.set("spark.eventLog.dir", str(log_dir))
        targets = [] if args.no_kill else ["map", "reduce"]
        follower = Follower(log_dir, targets, progress)
        with progress:
            begun = time.perf_counter()
            with SparkContext(conf=conf) as sc:
                follower.start()
                answers = run_jobs(sc, str(directory / "input"))
                took = time.perf_counter() - begun
            follower.finished.set()
            follower.join()
        console.print(f"the three jobs took {took:.1f} s; now the same in plain Python …")
        wrong = differences(answers, plain_answers(modules, copies))
        problems = report(follower, console) + wrong
    if not wrong:
        best = sorted(answers["ranks"].items(), key=heaviest)[:5]
        console.print(
            f"{len(answers['index']):,} identifiers indexed; most used words: "
            f"{' '.join(word for word, _ in answers['words'][:8])}; "
            f"most imported: {', '.join(page for page, _ in best)}",
            highlight=False,
        )
        console.print("[bold green]every answer is the one of plain Python[/]")
    for problem in problems:
        console.print(f"[bold red]{problem}[/]")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
