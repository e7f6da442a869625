"""The report is one file that asks the network for nothing."""

import re
from html.parser import HTMLParser

from chaos import checkers
from chaos.live import report, sweep
from tests.unit.chaos.histories import end, history, invocation, lost, start


class Opened(HTMLParser):
    """What a browser would see; unclosed elements are noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page() -> str:
    told = history(
        {"event": "executor_added", "executor": "executor-1", "host": "host-0", "seen_s": 0.5},
        start(0, 0.6),
        lost(1.1),
        end(0, 1.1, "ExecutorLost"),
        {"event": "executor_added", "executor": "executor-2", "host": "host-0", "seen_s": 1.2},
        start(1, 1.3, executor="executor-2"),
        end(1, 1.9),
        {"event": "recovery_start", "recovery": 0, "cause": "executor_lost", "seen_s": 1.1},
        {"event": "recovery_end", "recovery": 0, "cause": "executor_lost", "redone": 1, "seen_s": 1.9},
        results=[{"round": 0, "error": "X", "condition": "<script>alert(1)</script>", "text": "a < b"}],
    )
    return report.html(told, checkers.judge(told))


def test_the_report_opens_without_a_network():
    opened = Opened()
    opened.feed(page())
    assert opened.links == []
    assert opened.open == []
    assert not re.search(r"https?:|@import|url\((?!#)", page())


def test_the_report_draws_kills_losses_and_what_was_started_again():
    text = page()
    assert "kill-executor.one" in text and "&#10005;" in text
    assert text.count('fill="url(#again)"') == 1
    assert "recovery 0 (executor_lost): 1 tasks done again" in text
    assert "<script>" not in text


def test_the_table_ends_with_the_rows_at_zero():
    told = history(lost(1.1), faults=[invocation()])
    run = {**sweep.summed_up(told, checkers.judge(told)), "seconds": 8.0}
    last = sweep.table([run]).splitlines()[-1]
    assert last.startswith("rows at zero:") and "WK-1" in last and "EX-1," not in last
