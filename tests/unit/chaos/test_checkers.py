"""Each checker says false of a bad history, true of a good one, and unknown when it cannot tell."""

import random
from dataclasses import replace

import pytest

from chaos import checkers
from chaos.checkers import FALSE, TRUE, UNKNOWN
from chaos.nemesis import LEAVES, MESSAGES, OUTPUTS, TASK, TIME, WORKER
from chaos.workloads.registry import WORKLOADS
from spark_ft.scheduler.quarantine import FRESH_PROCESS
from tests.unit.chaos.histories import (
    OPTIONS,
    end,
    fault,
    history,
    invocation,
    lost,
    start,
    took_outputs,
)


def verdict(checker: str, told) -> str:
    return {finding.checker: finding.verdict for finding in checkers.judge(told)}[checker]


# --- Composition ------------------------------------------------------------------------------------


def test_a_checker_that_crashes_is_unknown_and_never_true():
    def crashes(_):
        raise KeyError("x")

    found = checkers.judge(history(), {"crashes": crashes, "ends": checkers.ends})
    assert [each.verdict for each in found] == [UNKNOWN, TRUE]
    assert checkers.composed(found) == UNKNOWN


def test_false_beats_unknown_beats_true_and_nothing_is_unknown():
    def finding(verdict):
        return checkers.Finding("x", verdict)

    assert checkers.composed([finding(TRUE), finding(UNKNOWN), finding(FALSE)]) == FALSE
    assert checkers.composed([finding(TRUE), finding(UNKNOWN)]) == UNKNOWN
    assert checkers.composed([finding(TRUE)]) == TRUE
    assert checkers.composed([]) == UNKNOWN


# --- The end, answers, errors, effect -----------------------------------------------------------------


def test_a_run_that_hangs_or_has_no_end_is_not_true():
    hangs = {"at_s": 60.0, "status": None, "hang": True, "waited_s": 50.0}
    assert verdict("ends", history(end=hangs)) == FALSE
    assert verdict("leaks", history(end=hangs)) == UNKNOWN
    assert verdict("ends", history(end=None)) == UNKNOWN
    assert verdict("ends", history(trouble=["the nemesis raised"])) == UNKNOWN


def test_an_end_with_a_status_or_an_internal_error_is_false():
    assert verdict("ends", history(end={"at_s": 9.0, "status": -11, "hang": False})) == FALSE
    assert verdict("ends", history({"event": "internal_error", "text": "assert", "seen_s": 2.0})) == FALSE
    assert verdict("ends", history()) == TRUE


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_no_workload_takes_nothing_for_an_answer(name: str):
    params = WORKLOADS[name].params(random.Random(1), 1.0)
    empty = {"bank": {"balances": [], "sum": 0}, "joins": {"inner": [], "full": [], "both": []},
             "save": {"rows": [], "names": []}, "repartition": {"count": 0, "distinct": 0, "sum": 0},
             "spark-23207": {"count": 0, "distinct": 0, "sum": 0},
             "parcels": {"received": [], "weight": 0},
             "accumulators": {"keys": 0, "seen": 0, "reduced": 0}}.get(name, [])  # fmt: skip
    assert WORKLOADS[name].check(params, empty)


def bank_round(change: int = 0, doubled: bool = False) -> dict:
    workload = WORKLOADS["bank"]
    params = workload.params(random.Random(3), 1.0)
    balances = dict.fromkeys(range(params["accounts"]), 1000)
    for source, target, amount in workload.transfers(params):
        balances[source] -= amount
        balances[target] += amount
    balances[7] += change
    pairs = [list(pair) for pair in balances.items()]
    pairs += pairs[:1] if doubled else []
    return {"round": 0, "params": params, "observed": {"balances": pairs, "sum": sum(balances.values())}}


def test_a_wrong_answer_is_false_and_none_is_unknown():
    assert verdict("answer", history(results=[bank_round()])) == TRUE
    assert verdict("answer", history(results=[bank_round(change=1)])) == FALSE
    assert verdict("answer", history(results=[bank_round(doubled=True)])) == FALSE
    assert verdict("answer", history(results=[])) == UNKNOWN


def test_an_error_is_accepted_only_where_a_fault_allows_it_and_only_if_the_session_goes_on():
    failed = {"round": 0, "error": "NoExecutors", "condition": "NO_RESOURCES", "text": "…"}
    after = {**bank_round(), "round": 1}
    allows = [invocation(errors=("NO_RESOURCES",))]
    assert verdict("errors", history(results=[failed, after])) == FALSE
    assert verdict("errors", history(results=[failed, after], faults=allows)) == TRUE
    assert verdict("errors", history(results=[failed], faults=allows)) == FALSE


def test_a_run_in_which_nothing_took_effect_shows_nothing():
    assert verdict("effect", history(faults=[invocation(took_effect=False)])) == UNKNOWN
    assert verdict("effect", history(faults=[invocation(took_effect=None)])) == UNKNOWN
    assert verdict("effect", history()) == TRUE
    assert verdict("effect", history(schedule=[], faults=[])) == TRUE  # a run without faults
    assert history(faults=[invocation(took_effect=False)]).rows() == {}


# --- Losses ---------------------------------------------------------------------------------------------


def test_an_executor_that_nobody_took_may_not_be_lost():
    assert verdict("losses", history(lost(1.1))) == TRUE
    assert verdict("losses", history(lost(1.1, "executor-2"))) == FALSE  # another one was killed
    assert verdict("losses", history(lost(0.5))) == FALSE  # before anything was done
    assert verdict("losses", history(lost(1.1), faults=[invocation(takes=frozenset({TIME}))])) == FALSE


def test_an_idle_executor_may_be_replaced_for_a_task_that_a_fault_has_made_a_suspect():
    doomed = {"event": "executor_doomed", "executor": "executor-2", "seen_s": 1.05, "why": FRESH_PROCESS}
    assert verdict("losses", history(doomed, lost(1.1, "executor-2"))) == TRUE
    assert verdict("losses", history({**doomed, "why": "other"}, lost(1.1, "executor-2"))) == FALSE
    harmless = [invocation(takes=frozenset({TIME}))]
    assert verdict("losses", history(doomed, lost(1.1, "executor-2"), faults=harmless)) == FALSE


def test_processes_that_go_when_the_application_stops_are_no_losses():
    over = {"event": "job_end", "job": 0, "ok": True, "seen_s": 5.0}
    stopped = {"event": "application_end", "seen_s": 6.0}
    assert verdict("losses", history(over, lost(5.9, "executor-2"), stopped)) == TRUE
    assert verdict("losses", history(over, lost(5.9, "executor-2"))) == FALSE
    assert verdict("losses", history(lost(4.9, "executor-2"), over, stopped)) == FALSE
    late = {**stopped, "seen_s": 9.0}
    assert verdict("losses", history(over, lost(5.9, "executor-2"), late)) == FALSE


def test_a_killed_executor_takes_no_outputs_with_it():
    told = {"event": "output_lost", "shuffle": 0, "map": 1, "evidence": "host lost", "seen_s": 1.2}
    assert verdict("losses", history(told)) == FALSE
    assert verdict("losses", history(told, faults=[took_outputs()])) == TRUE


def test_TK_11_a_result_may_be_lost_with_the_worker_that_holds_it():
    told = [
        {"event": "job_start", "job": 0, "stages": [0], "seen_s": 0.5},
        start(0, 0.6),
        end(0, 0.8),
        {"event": "result_lost", "job": 0, "partition": 0, "text": "refused", "seen_s": 1.2},
        start(1, 1.3),
    ]
    killed = [invocation(takes=frozenset({WORKER}))]
    for checker in ("losses", "starts"):
        assert verdict(checker, history(*told)) == FALSE
        assert verdict(checker, history(*told, faults=killed)) == TRUE


def test_what_an_executor_had_in_memory_goes_with_it():
    told = {"event": "block_lost", "node": 0, "partition": 1, "why": "executor lost", "seen_s": 1.2}
    assert verdict("losses", history(lost(1.1), told)) == TRUE


def test_EX_13_who_leaves_in_order_is_gone_and_takes_nothing():
    left = [invocation(takes=frozenset({LEAVES}))]
    assert verdict("losses", history(lost(1.1), faults=left)) == TRUE
    alone = {"event": "block_lost", "node": 0, "partition": 1, "why": "executor lost", "seen_s": 1.2}
    assert verdict("losses", history(lost(1.1), {**alone, "places_left": 0}, faults=left)) == FALSE
    assert verdict("losses", history(lost(1.1), {**alone, "places_left": 1}, faults=left)) == TRUE
    built_again = {"event": "output_lost", "shuffle": 5, "map": 0, "evidence": "gone", "seen_s": 1.2}
    assert verdict("losses", history(lost(1.1), built_again, faults=left)) == FALSE
    once_more = [start(0, 0.9), end(0, 1.1, "ExecutorLost"), start(1, 1.2)]
    assert verdict("starts", history(*once_more, faults=left)) == FALSE


# --- Task starts ------------------------------------------------------------------------------------------


def test_a_task_may_not_start_twice_without_a_reason():
    twice = [start(0, 0.6), end(0, 0.8), start(1, 1.5), end(1, 1.8)]
    assert verdict("starts", history(*twice)) == FALSE
    assert verdict("starts", history(*twice[:2])) == TRUE


def test_a_lost_process_gives_one_start_more_and_only_one():
    once_more = [start(0, 0.9), end(0, 1.1, "ExecutorLost"), start(1, 1.2)]
    assert verdict("starts", history(*once_more)) == TRUE
    assert verdict("starts", history(*once_more, start(2, 1.3))) == FALSE
    in_vain = invocation(took_effect=False, takes=frozenset())
    assert verdict("starts", history(*once_more, faults=[in_vain])) == FALSE


def test_a_loss_gives_nothing_to_other_tasks():
    told = [start(0, 0.5, partition=1), end(0, 0.6), start(1, 0.9), end(1, 1.1, "ExecutorLost")]
    assert verdict("starts", history(*told, start(2, 1.2, partition=1))) == FALSE


def test_starts_flagged_speculative_are_counted_apart():
    assert verdict("starts", history(start(0, 0.6), start(1, 0.9, speculative=True))) == TRUE


def test_an_output_is_built_again_only_if_outputs_were_taken():
    told = [
        {"event": "stage_start", "stage": 0, "shuffle": 5, "seen_s": 0.5},
        start(0, 0.6),
        end(0, 0.8),
        {"event": "output_lost", "shuffle": 5, "map": 0, "evidence": "corrupt", "seen_s": 1.2},
        start(1, 1.3),
    ]
    assert verdict("starts", history(*told)) == FALSE
    assert verdict("starts", history(*told, faults=[took_outputs()])) == TRUE
    assert verdict("starts", history(*told, start(2, 1.4), faults=[took_outputs()])) == FALSE


@pytest.mark.parametrize(
    ("reason", "takes"),
    [("FetchFailed", OUTPUTS), ("FetchFailed", MESSAGES), ("FetchFailed", WORKER), ("HostError", TASK),
     ("UserError", TASK)],
)  # fmt: skip
def test_a_failed_attempt_needs_a_fault_that_can_make_it_fail(reason: str, takes: str):
    told = [start(0, 0.9), end(0, 1.1, reason), start(1, 1.2)]
    assert verdict("starts", history(*told)) == FALSE
    assert verdict("starts", history(*told, faults=[invocation(takes=frozenset({takes}))])) == TRUE


@pytest.mark.parametrize("kind", ["executor_stopped", "executor_cut_off", "stalled_task_killed"])
def test_what_an_executor_that_stands_still_had_not_begun_is_given_to_others(kind: str):
    still = {"event": kind, "executor": "executor-1", "seen_s": 1.0}
    stops = [invocation(takes=frozenset({TIME}))]
    told = [start(1, 1.1, executor="executor-2"), start(0, 4.0), end(0, 4.0, "Killed")]
    assert verdict("starts", history(still, *told, faults=stops)) == TRUE
    assert verdict("starts", history(*told, faults=stops)) == FALSE
    assert verdict("starts", history(still, *told)) == FALSE  # nobody made it stand still
    assert verdict("starts", history(still, *told, start(2, 5.0), faults=stops)) == FALSE


def test_what_was_called_back_from_an_executor_that_stood_still_may_begin_there_once_more():
    still = {"event": "executor_stopped", "executor": "executor-1", "seen_s": 1.0}
    called = {"event": "task_killed", "task": 0, "why": "it is stopped", "seen_s": 1.0}
    stops = [invocation(takes=frozenset({TIME}))]
    told = [start(0, 1.1), end(0, 1.1), start(1, 1.2, executor="executor-2")]
    assert verdict("starts", history(still, called, *told, faults=stops)) == TRUE
    assert verdict("starts", history(still, *told, faults=stops)) == FALSE
    assert verdict("starts", history(called, *told, faults=stops)) == FALSE
    assert verdict("starts", history(still, called, *told)) == FALSE  # nobody made it stand still


def test_a_killed_attempt_is_started_again_only_for_another_job():
    job = {"event": "job_start", "job": 0, "stages": [0], "seen_s": 0.5}
    over = {"event": "job_end", "job": 0, "ok": False, "seen_s": 1.0}
    told = [start(0, 0.9), end(0, 1.1, "Killed"), start(1, 1.2)]
    assert verdict("starts", history(job, *told)) == FALSE
    assert verdict("starts", history(job, told[0], over, *told[1:])) == TRUE


def test_only_an_indeterminate_workload_may_be_rolled_back_and_only_if_outputs_were_taken():
    told = [
        {"event": "stage_start", "stage": 0, "shuffle": 5, "seen_s": 0.5},
        start(0, 0.6),
        end(0, 0.8),
        {"event": "rollback", "shuffle": 5, "generation": 1, "seen_s": 1.2},
        start(1, 1.3),
    ]
    assert verdict("starts", history(*told, faults=[took_outputs()])) == FALSE
    indeterminate = history(*told, faults=[took_outputs()])
    indeterminate.options = replace(OPTIONS, workload="repartition")
    assert verdict("starts", indeterminate) == TRUE
    indeterminate.faults = [invocation()]
    assert verdict("starts", indeterminate) == FALSE


# --- Detection, leaks ---------------------------------------------------------------------------------------


def test_a_kill_must_be_noticed_within_a_second():
    assert verdict("detection", history(lost(1.05))) == TRUE
    assert verdict("detection", history(lost(2.5))) == FALSE
    assert verdict("detection", history()) == FALSE
    assert verdict("detection", history(lost(1.05, "executor-2"))) == FALSE


def test_what_the_machine_itself_was_late_is_added_to_the_bound():
    assert verdict("detection", history(lost(2.5), late=[(1.9, 1.6)])) == TRUE
    assert verdict("detection", history(lost(2.5), late=[(8.0, 1.6)])) == FALSE


def test_a_driver_that_stands_still_need_not_notice():
    def stopped(victims, until_s=4.0):
        return replace(
            invocation(0.8, takes=frozenset({TIME}), victims=victims, notices=()),
            fault=fault(1, 0.8, until_s),
            healed_s=until_s,
        )

    late = lost(4.5)
    assert verdict("detection", history(late, faults=[stopped(("driver",)), invocation()])) == TRUE
    assert verdict("detection", history(late, faults=[stopped(("executor-2",)), invocation()])) == FALSE
    assert verdict("detection", history(late, faults=[stopped(("driver",), 2.0), invocation()])) == FALSE


def test_nobody_has_to_notice_what_was_healed_or_over_before_the_bound():
    healed = replace(invocation(), healed_s=1.4)
    assert verdict("detection", history(faults=[healed])) == TRUE
    assert verdict("detection", history(lost(5.0), faults=[healed])) == TRUE  # for another reason
    assert verdict("detection", history(end={"at_s": 1.5, "status": 0, "hang": False})) == TRUE


def test_processes_and_files_that_are_left_are_a_leak():
    for left in ({"processes": {"12": "python"}}, {"files": ["spark-ft-app"]}, {"shared": ["sem.x"]}):
        assert verdict("leaks", history(left=left)) == FALSE
    assert verdict("leaks", history(left=None)) == UNKNOWN
    assert verdict("leaks", history()) == TRUE
