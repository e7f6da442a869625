"""Judges of a run, from its history alone: true, false or unknown.

    ends       the workload ended in time, and its process as it should
    answer     every round that answered answered right, by construction
    errors     a round that ended in an error ended in one that a fault of this run allows; the next did not
    effect     something was broken at all: else nothing is shown
    losses     whatever the application lost, a fault had taken
    starts     each task started once, and once more for each reason that a fault gave (R0 to R3)
    detection  what had to be noticed was noticed in time
    leaks      no process, no file was left

A checker that crashes is unknown, never true.  A run is false if any verdict is, else unknown if any is,
else true.

The bound on task starts is the heart.  For each (stage, partition), starts that are not flagged speculative:
the first is free, every further one uses up one reason, and a reason counts only if a fault that took
effect by then can give it:

    its attempt ended with its process              PROCESS or WORKER
    its attempt could not read its input            OUTPUTS, MESSAGES or WORKER
    its attempt failed for lack of disk or memory   TASK
    its finished output became unreadable           OUTPUTS; for a result of the job WORKER, too
    its generation was rolled back                  OUTPUTS, and the workload is not deterministic
    it was taken from an executor that stood still  TIME or MESSAGES
    its job had ended without it                    anything
"""

from __future__ import annotations

import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos.history import History
from chaos.nemesis import ALL, LEAVES, MESSAGES, OUTPUTS, PROCESS, TASK, TIME, WORKER, Invocation, Notice
from chaos.workloads.registry import WORKLOADS
from spark_ft.scheduler.quarantine import FRESH_PROCESS

TRUE, FALSE, UNKNOWN = "true", "false", "unknown"
SEEN_S = 0.1  # how much later than written a line of the event log is seen, at most, on a machine in time
STOPS_WITHIN_S = 2.0  # an application that is asked to stop
SOON_S = 0.25  # a fault is stamped before it is made: what it takes shows no earlier than that, give or take

Event = Mapping[str, Any]
Place = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """What one checker says."""

    checker: str
    verdict: str
    says: list[str] = field(default_factory=list)
    counts: Mapping[str, Any] = field(default_factory=dict)


Checker = Callable[[History], tuple[str, list[str], Mapping[str, Any]]]


def judge(history: History, checkers: Mapping[str, Checker] | None = None) -> list[Finding]:
    """What every checker says of a run."""
    found = []
    for name, checker in (CHECKERS if checkers is None else checkers).items():
        try:
            verdict, says, counts = checker(history)
            found.append(Finding(name, verdict, says, dict(counts)))
        except Exception:  # a judge that fails has judged nothing
            found.append(Finding(name, UNKNOWN, ["the checker crashed", traceback.format_exc()]))
    return found


def composed(findings: Iterable[Finding]) -> str:
    """One verdict of many."""
    verdicts = {finding.verdict for finding in findings}
    return FALSE if FALSE in verdicts else UNKNOWN if UNKNOWN in verdicts or not verdicts else TRUE


def verdict_of(wrong: list[str]) -> str:
    return FALSE if wrong else TRUE


# --- The end --------------------------------------------------------------------------------------


def ends(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """The workload ended in time, and its process as it should."""
    end = history.end
    if end is None:
        return UNKNOWN, ["the history has no end"], {}
    if history.trouble:
        return UNKNOWN, [f"the harness had trouble of its own: {text}" for text in history.trouble], {}
    wrong = []
    if end.get("hang"):
        wrong.append(f"it had not ended {end['waited_s']:.0f} s after the last fault was healed; see stacks")
    elif end["status"] != 0 and not any("error" in result for result in history.results):
        wrong.append(f"the driver's process ended with status {end['status']}; see words")
    wrong += [f"internal error: {event['text'][-600:]}" for event in history.of("internal_error")]
    wrong += [f"a line of the event log cannot be read: {e['text']}" for e in history.of("unreadable_line")]
    return verdict_of(wrong), wrong, {"status": end["status"], "seconds": end["at_s"]}


def answer(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """Every answer is the right one."""
    answers = [result for result in history.results if "observed" in result]
    if history.options.program:
        return compared(history)
    workload = WORKLOADS[history.options.workload]
    wrong = [
        f"round {result['round']}: {line}"
        for result in answers
        for line in workload.check(result["params"], result["observed"])
    ]
    counts = {"rounds": len(history.results), "answered": len(answers)}
    if not answers and not wrong:
        return UNKNOWN, ["no round gave an answer"], counts
    return verdict_of(wrong), wrong, counts


def compared(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """A user's program printed the same as without faults."""
    result = next((result for result in history.results if "printed" in result), None)
    if result is None:
        return UNKNOWN, ["the program was not run to its end"], {}
    expected, printed = result["expected"], result["printed"]
    counts = {"lines": len(expected)}
    if printed == expected and result["status"] == result["expected_status"]:
        return TRUE, [], counts
    if result.get("again") not in (None, expected):
        return UNKNOWN, ["the program prints different things without any fault too"], counts
    wrong = []
    if result["status"] != result["expected_status"]:
        wrong.append(f"it ended with status {result['status']} instead of {result['expected_status']}")
    for number in range(max(len(expected), len(printed))):
        want = expected[number] if number < len(expected) else "nothing"
        got = printed[number] if number < len(printed) else "nothing"
        if want != got:
            wrong.append(f"line {number + 1}: {got!r} instead of {want!r}")
    return FALSE, wrong[:10], counts


def errors(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """Errors have names that a fault allows; and the session goes on after them."""
    failed = [result for result in history.results if "error" in result]
    allowed = {condition for invocation in history.faults for condition in invocation.errors}
    wrong = [
        f"round {result['round']} ended in {result['condition'] or result['error']}, which no fault of this "
        f"run allows: {result['text'][-1500:]}"
        for result in failed
        if result["condition"] not in allowed
    ]
    if not wrong and failed and failed[-1]["round"] == history.results[-1]["round"]:
        wrong = ["after its error the session gave no other answer"]
    return verdict_of(wrong), wrong, {"errors": dict(Counter(str(r["condition"]) for r in failed))}


def effect(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """Something was broken."""
    took = [invocation for invocation in history.faults if invocation.took_effect]
    counts = {
        "scheduled": len(history.schedule),
        "made": len(history.faults),
        "took effect": len(took),
        "did not": sum(invocation.took_effect is False for invocation in history.faults),
        "nobody can tell": sum(invocation.took_effect is None for invocation in history.faults),
    }
    if history.schedule and not took:
        return UNKNOWN, ["no fault took effect: nothing is shown"], counts
    return TRUE, [], counts


# --- What was lost, and what was done again ---------------------------------------------------------


def losses(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """Executors, workers and outputs are lost only if a fault took them."""
    wrong = []
    counts: Counter[str] = Counter()
    leaving_s = leaves_from_s(history)
    replaced: set[str] = set()  # idle executors, each for a task that a fault has made a suspect
    for event in history.events:
        kind = event["event"]
        if event["seen_s"] >= leaving_s:
            break
        if kind == "executor_doomed" and event["why"] == FRESH_PROCESS:
            replaced.add(event["executor"])
            continue
        if kind == "executor_lost":
            names = {event["executor"], event["host"]}
            wanted = {PROCESS, WORKER, LEAVES}
            if event["executor"] in replaced:
                names, wanted = set(), {PROCESS, TASK}
        elif kind == "worker_lost":
            names, wanted = {event["worker"], event["host"]}, {WORKER, LEAVES}
        elif kind in ("output_lost", "block_lost", "result_lost", "segment_lost", "store_quarantined"):
            names, wanted = set(), {OUTPUTS}
            if event.get("why") == "executor lost":
                if event.get("places_left"):
                    continue
                wanted = {PROCESS, WORKER}  # its memory goes with a process, but not in order (EX-13)
            elif kind == "result_lost":
                # It lies with one worker until the driver has it: who cannot be asked has lost it (TK-11).
                wanted = {OUTPUTS, WORKER}
        else:
            continue
        counts[kind] += 1
        if not explained(history, event, wanted, names):
            told = {k: v for k, v in event.items() if k not in ("event", "t_ms")}
            wrong.append(f"{kind} that no fault explains: {told}")
    return verdict_of(wrong), wrong[:10], counts


def leaves_from_s(history: History) -> float:
    """From when processes go because the application is being stopped: its last job is over by then."""
    ends = [event["seen_s"] for event in history.of("application_end")]
    jobs = [event["seen_s"] for event in history.of("job_end")]
    return max([ends[-1] - STOPS_WITHIN_S, *jobs[-1:]]) if ends else float("inf")


def explained(history: History, event: Event, wanted: Iterable[str], names: set[str]) -> bool:
    """Whether a fault by then may have taken one of these things, and from one of these victims."""
    return any(
        invocation.at_s <= event["seen_s"] + SOON_S
        and not invocation.takes.isdisjoint(wanted)
        and (not names or not invocation.victims or not names.isdisjoint(invocation.victims))
        for invocation in history.faults
    )


def starts(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """Each further start of a task uses up one reason."""
    account = _Account(history)
    for event in history.events:
        handle = _HANDLERS.get(event["event"])
        if handle is not None:
            handle(account, event)
    used: Counter[str] = Counter()
    for place, count in account.started.items():
        reasons = account.reasons[place]
        used.update(reasons[: count - 1])
        if count - 1 > len(reasons):
            account.wrong.append(f"{place} started {count} times, with {reasons or 'no reason'} for that")
    again = sum(count - 1 for count in account.started.values())
    counts = {"tasks": len(account.started), "started again": again, "speculative": account.speculative}
    return verdict_of(account.wrong), account.wrong[:10], {**counts, **used}


class _Account:
    """Reasons that there were for starting a task again, and what became of them."""

    def __init__(self, history: History) -> None:
        self.history = history
        # A user's own program may be as indeterminate as it likes.
        program = history.options.program
        self.deterministic = not program and WORKLOADS[history.options.workload].deterministic
        self.reasons: dict[Place, list[str]] = defaultdict(list)
        self.started: Counter[Place] = Counter()
        self.speculative = 0
        self.wrong: list[str] = []
        self.still: set[str] = set()  # executors that were stopped, stuck or cut off at some time
        self.called_back: set[int] = set()  # attempts that were taken from the queues of such executors
        self.running: dict[int, Event] = {}
        self.partitions: dict[int, set[int]] = defaultdict(set)  # of each stage, those that ever began
        self.stage_of_shuffle: dict[int, int] = {}
        self.stages_of_job: dict[int, list[int]] = {}
        self.job_ended_s: dict[int, float] = {}  # stage -> when a job that needed it last ended

    def taken(self, event: Event) -> frozenset[str]:
        return self.history.taken(event["seen_s"] + SOON_S)

    def job_start(self, event: Event) -> None:
        self.stages_of_job[event["job"]] = list(event["stages"])

    def job_end(self, event: Event) -> None:
        for stage in self.stages_of_job.get(event["job"], ()):
            self.job_ended_s[stage] = event["seen_s"]

    def stage_start(self, event: Event) -> None:
        if event.get("shuffle") is not None:
            self.stage_of_shuffle[event["shuffle"]] = event["stage"]

    def task_start(self, event: Event) -> None:
        place = event["stage"], event["partition"]
        self.running[event["task"]] = event
        self.partitions[event["stage"]].add(event["partition"])
        if event.get("speculative"):
            self.speculative += 1
            return
        self.started[place] += 1

    def task_end(self, event: Event) -> None:
        start = self.running.pop(event["task"], None)
        if start is None:
            return
        taken, reason, why = self.taken(event), event["reason"], ""
        if reason == "ExecutorLost" and taken & {PROCESS, WORKER}:
            why = "its process was lost"
        elif reason == "FetchFailed" and taken & {OUTPUTS, MESSAGES, WORKER}:
            why = "it could not read its input"
        elif reason in ("HostError", "UserError", "NotLoadable") and TASK in taken:
            why = "it failed for lack of disk or memory"
        elif (
            (reason == "Killed" or event["task"] in self.called_back)
            and event["executor"] in self.still
            and taken & {TIME, MESSAGES}
        ):
            why = "it was taken from an executor that stood still"
        elif reason == "Killed" and self.job_ended_s.get(start["stage"], -1.0) >= start["seen_s"]:
            why = "its job had ended without it"
        if why:
            self.reasons[start["stage"], start["partition"]].append(why)

    def stood_still(self, event: Event) -> None:
        if event.get("stopped", True):
            self.still.add(event["executor"])

    def called(self, event: Event) -> None:
        """On waking an executor may begin what it does not yet know to be somebody else's."""
        if event["why"] == "it is stopped":
            self.called_back.add(event["task"])

    def output_lost(self, event: Event) -> None:
        if OUTPUTS in self.taken(event):
            place = self.stage_of_shuffle.get(event["shuffle"], -1), event["map"]
            self.reasons[place].append("its output became unreadable")

    def result_lost(self, event: Event) -> None:
        stages = self.stages_of_job.get(event["job"])
        if stages and self.taken(event) & {OUTPUTS, WORKER}:
            self.reasons[stages[-1], event["partition"]].append("its output became unreadable")

    def changed(self, event: Event) -> None:
        """An output came back different: it, and all that was built on it, may run again."""
        if self.deterministic:
            self.wrong.append(f"a deterministic output came back different: {event}")
        elif OUTPUTS in self.taken(event):
            for stage, partitions in self.partitions.items():
                for partition in partitions:
                    self.reasons[stage, partition].append("its generation was rolled back")


_HANDLERS: Mapping[str, Callable[[_Account, Event], None]] = {
    "job_start": _Account.job_start,
    "job_end": _Account.job_end,
    "stage_start": _Account.stage_start,
    "task_start": _Account.task_start,
    "task_end": _Account.task_end,
    "executor_stopped": _Account.stood_still,
    "executor_cut_off": _Account.stood_still,
    "stalled_task_killed": _Account.stood_still,
    "task_killed": _Account.called,
    "output_lost": _Account.output_lost,
    "result_lost": _Account.result_lost,
    "rollback": _Account.changed,
    "output_replaced": _Account.changed,
}


# --- Time ---------------------------------------------------------------------------------------------


def detection(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """What had to be noticed was noticed in time, give or take what the machine itself was late."""
    end_s = history.end["at_s"] if history.end is not None else 0.0
    wrong = []
    took_s: list[float] = []
    skipped = 0
    for invocation in history.faults:
        for notice in invocation.notices if invocation.took_effect else ():
            seen = next(
                (
                    event["seen_s"] - invocation.at_s
                    for event in history.events
                    if event["event"] in notice.events
                    and event["seen_s"] >= invocation.at_s - SEEN_S
                    and all(event.get(name) == value for name, value in notice.match.items())
                ),
                None,
            )
            within_s = notice.within_s + kept_from_noticing_s(history, invocation, notice)
            bound_s = within_s + SEEN_S + history.late_s(invocation.at_s, invocation.at_s + within_s)
            over_s = min(end_s, invocation.healed_s if invocation.healed_s is not None else end_s)
            over_after_s = over_s - invocation.at_s
            if over_after_s <= bound_s and (seen is None or seen > over_after_s + SEEN_S):
                skipped += 1  # nobody had to notice
            elif seen is None:
                wrong.append(f"{invocation.fault}: not noticed within {bound_s:.2f} s: {dict(notice.match)}")
            elif seen > bound_s:
                wrong.append(f"{invocation.fault}: noticed after {seen:.2f} s, not {bound_s:.2f} s")
                took_s.append(seen)
            else:
                took_s.append(seen)
    counts: dict[str, Any] = {"noticed": len(took_s), "not asked": skipped}
    if took_s:
        counts |= {"median_s": round(sorted(took_s)[len(took_s) // 2], 3), "most_s": round(max(took_s), 3)}
    return verdict_of(wrong), wrong, counts


def kept_from_noticing_s(history: History, invocation: Invocation, notice: Notice) -> float:
    """For how long others, made to stand still or cut off at that time, could not notice or not say so."""
    names = {"driver", *map(str, notice.match.values())}
    until_s = invocation.at_s
    for other in history.faults:
        over_s = other.healed_s if other.healed_s is not None else other.at_s
        if (
            other.fault.number != invocation.fault.number
            and not other.takes.isdisjoint({TIME, MESSAGES})
            and (not other.victims or not names.isdisjoint(other.victims))
            and other.at_s <= invocation.at_s + notice.within_s
        ):
            until_s = max(until_s, over_s)
    return until_s - invocation.at_s


# --- What is left ------------------------------------------------------------------------------------


def leaks(history: History) -> tuple[str, list[str], Mapping[str, Any]]:
    """Nothing was left behind."""
    left = history.left
    if left is None:
        return UNKNOWN, ["nobody looked"], {}
    if history.end is not None and history.end.get("hang"):
        return UNKNOWN, ["it did not end by itself"], {}
    wrong = [f"{what} left: {some}" for what, some in left.items() if some]
    return verdict_of(wrong), wrong, {}


CHECKERS: Mapping[str, Checker] = {
    "ends": ends,
    "answer": answer,
    "errors": errors,
    "effect": effect,
    "losses": losses,
    "starts": starts,
    "detection": detection,
    "leaks": leaks,
}

assert {PROCESS, OUTPUTS, TASK, WORKER, TIME, MESSAGES, LEAVES} == ALL  # one more needs a word here
