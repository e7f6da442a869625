"""A run as one HTML file that needs nothing else: verdicts, counts, and what ran where when what broke.

lanes      one for each executor, host by host, from its coming to its loss
bars       attempts: map blue, result green, started again hatched orange, speculative with a dashed edge;
           those that did not succeed are pale
    cyan       recoveries, above the lanes: from a loss until all that it undid was done again
red lines  faults that took effect, as long as they lasted; grey ones did not
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from chaos import checkers
from chaos.checkers import Finding
from chaos.history import History

WIDTH, LEFT, LANE, TOP = 1180, 190, 22, 64
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1240px; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: 2px 12px 2px 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid #eee; } pre { white-space: pre-wrap; margin: 0; }
.true { color: #1a7f37; font-weight: 600; } .false { color: #c1121f; font-weight: 600; }
.unknown { color: #9a6700; font-weight: 600; } svg text { font: 11px system-ui, sans-serif; fill: #444; }
"""
COLOURS = {"map": "#4c78a8", "result": "#54a24b", "again": "#f58518"}


def html(history: History, findings: Sequence[Finding]) -> str:
    """The whole page."""
    options = history.options
    verdict = checkers.composed(findings)
    what = " ".join(options.program) or options.workload
    title = f"{what} under {', '.join(options.nemeses) or 'given faults'}, seed {options.seed}"
    return "\n".join(
        [
            "<!doctype html><html lang=en><head><meta charset=utf-8>",
            f"<title>{escape(title)}: {verdict}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}: <span class={verdict}>{verdict}</span></h1>",
            f"<p>{escape(options.master)}; {options.seconds:g} s of faults; settings: "
            f"{escape(str(dict(options.conf)))}. Times are seconds since the launch, on one clock.</p>",
            verdicts(findings),
            "<h2>What ran where</h2>",
            timeline(history),
            "<h2>Faults</h2>",
            faults(history),
            "<h2>Rounds</h2>",
            rounds(history),
            "<h2>Counts</h2>",
            counts(history),
            "</body></html>",
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def verdicts(findings: Sequence[Finding]) -> str:
    rows = [
        [
            escape(finding.checker),
            f"<span class={finding.verdict}>{finding.verdict}</span>",
            escape(", ".join(f"{name} {value}" for name, value in finding.counts.items())),
            "".join(f"<pre>{escape(line)}</pre>" for line in finding.says),
        ]
        for finding in findings
    ]
    return _table(["checker", "verdict", "counts", "says"], rows)


def faults(history: History) -> str:
    words = {True: "yes", False: "no", None: "nobody can tell"}
    rows = [
        [
            f"{invocation.at_s:.2f}",
            escape(f"{invocation.fault.nemesis}.{invocation.fault.kind}"),
            words[invocation.took_effect],
            "" if invocation.healed_s is None else f"{invocation.healed_s:.2f}",
            escape(", ".join(invocation.rows)),
            f"<pre>{escape(str(dict(invocation.evidence)))}</pre>",
        ]
        for invocation in history.faults
    ]
    return _table(["at", "fault", "took effect", "healed", "rows", "evidence"], rows)


def rounds(history: History) -> str:
    rows = [
        [
            str(result.get("round", "")),
            f"{result.get('seconds', 0):g}",
            escape(str(result.get("condition") or result.get("error") or "answered")),
            f"<pre>{escape(str(result.get('text', ''))[-1500:])}</pre>",
        ]
        for result in history.results
    ]
    return _table(["round", "seconds", "outcome", ""], rows)


def counts(history: History) -> str:
    kinds = Counter(event["event"] for event in history.events)
    ends = Counter(event["reason"] for event in history.of("task_end"))
    text = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items()))
    how = ", ".join(f"{name} {count}" for name, count in sorted(ends.items()))
    rows = ", ".join(f"{row} {count}" for row, count in sorted(history.rows().items()))
    lines = [f"Events: {text}.", f"Ends of attempts: {how}.", f"Rows exercised: {rows or 'none'}."]
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


# --- The timeline ---------------------------------------------------------------------------------------


def timeline(history: History) -> str:
    """The lanes as SVG."""
    end_s = max([0.1, *(event["seen_s"] for event in history.events)])
    scale = (WIDTH - LEFT - 10) / end_s

    def x(at_s: float) -> float:
        return float(round(LEFT + at_s * scale, 1))

    lanes = _lanes(history, end_s)
    height = TOP + LANE * len(lanes) + 24
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        '<defs><pattern id="again" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="6" height="6" fill="{COLOURS["again"]}"/>'
        '<rect width="2" height="6" fill="#fff" fill-opacity=".45"/></pattern></defs>',
    ]
    step = next(each for each in (0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 10**9) if end_s / each <= 20)
    for tick in range(int(end_s / step) + 1):
        at = x(tick * step)
        parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP - 6}" y2="{height - 20}" stroke="#eee"/>')
        parts.append(f'<text x="{at}" y="{height - 6}" text-anchor="middle">{tick * step:g}</text>')
    rows = {name: TOP + LANE * number for number, name in enumerate(lanes)}
    for name, (host, from_s, until_s) in lanes.items():
        y = rows[name]
        parts.append(f'<text x="4" y="{y + 14}">{escape(host)} {escape(name[-18:])}</text>')
        parts.append(
            f'<rect x="{x(from_s)}" y="{y + 2}" width="{max(1.0, x(until_s) - x(from_s)):.1f}" '
            f'height="{LANE - 4}" fill="#f4f4f4"/>'
        )
    parts += _recoveries(history, x)
    parts += _bars(history, rows, x, end_s)
    parts += _marks(history, rows, x, end_s, height)
    return "".join([*parts, "</svg>"])


def _lanes(history: History, end_s: float) -> dict[str, tuple[str, float, float]]:
    """executor -> host, coming, going."""
    lanes: dict[str, tuple[str, float, float]] = {}
    for event in history.events:
        if event["event"] == "executor_added":
            lanes[event["executor"]] = (event["host"], event["seen_s"], end_s)
        elif event["event"] == "executor_lost" and event["executor"] in lanes:
            host, from_s, _ = lanes[event["executor"]]
            lanes[event["executor"]] = (host, from_s, event["seen_s"])
    return dict(sorted(lanes.items(), key=lambda lane: (lane[1][0], lane[1][1])))


def _bars(history: History, rows: Mapping[str, int], x: Any, end_s: float) -> list[str]:
    """One bar for each attempt."""
    bars = []
    ends = {event["task"]: event for event in history.of("task_end")}
    begun: Counter[tuple[int, int]] = Counter()
    for start in history.of("task_start"):
        y = rows.get(start["executor"])
        place = start["stage"], start["partition"]
        if not start.get("speculative"):
            begun[place] += 1
        if y is None:
            continue
        end = ends.get(start["task"])
        from_s, until_s = start["seen_s"], end["seen_s"] if end is not None else end_s
        reason = end["reason"] if end is not None else "still running"
        again = begun[place] > 1 and not start.get("speculative")
        fill = "url(#again)" if again else COLOURS.get(start["kind"], "#888")
        edge = ' stroke="#222" stroke-dasharray="3 2"' if start.get("speculative") else ' stroke="#fff"'
        pale = "" if reason == "Success" else ' fill-opacity=".45"'
        told = (
            f"{start['kind']} stage {start['stage']}.{start.get('stage_attempt', 0)} partition "
            f"{start['partition']} attempt {start['attempt']}: {reason}, {from_s:.2f}-{until_s:.2f} s"
        )
        bars.append(
            f'<rect x="{x(from_s)}" y="{y + 4}" width="{max(2.0, x(until_s) - x(from_s)):.1f}" '
            f'height="{LANE - 8}" fill="{fill}"{edge}{pale}><title>{escape(told)}</title></rect>'
        )
    return bars


def _recoveries(history: History, x: Any) -> list[str]:
    """One cyan line for each recovery that the application tells of."""
    lines = []
    began = {event["recovery"]: event["seen_s"] for event in history.of("recovery_start")}
    for event in history.of("recovery_end"):
        from_s, y = began.get(event["recovery"], event["seen_s"]), TOP - 8 + 3 * (event["recovery"] % 3)
        what, redone = f"recovery {event['recovery']} ({event.get('cause', '')})", event.get("redone", 0)
        lines.append(
            f'<line x1="{x(from_s)}" x2="{x(event["seen_s"]) + 2:.1f}" y1="{y}" y2="{y}" stroke="#17a2b8" '
            f'stroke-width="3"><title>{escape(what)}: {redone} tasks done again</title></line>'
        )
    return lines


def _marks(history: History, rows: Mapping[str, int], x: Any, end_s: float, height: int) -> list[str]:
    """One line for each fault, heavy on the lanes of its victims; a cross where an executor was lost."""
    marks = []
    for number, invocation in enumerate(history.faults):
        colour = "#c1121f" if invocation.took_effect else "#999"
        at, y = x(invocation.at_s), 12 + 12 * (number % 4)
        name = f"{invocation.fault.nemesis}.{invocation.fault.kind}"
        marks.append(
            f'<line x1="{at}" x2="{at}" y1="{y}" y2="{height - 20}" stroke="{colour}" stroke-opacity=".5"/>'
        )
        marks.append(f'<text x="{at + 3}" y="{y}" style="fill:{colour}">{escape(name)}</text>')
        until_s = invocation.healed_s if invocation.healed_s is not None else invocation.at_s
        for victim in invocation.victims:
            if victim in rows:
                width = max(4.0, x(min(until_s, end_s)) - at)
                marks.append(
                    f'<rect x="{at}" y="{rows[victim] + 1}" width="{width:.1f}" height="{LANE - 2}" '
                    f'fill="{colour}" fill-opacity=".25"/>'
                )
    for lost in history.of("executor_lost"):
        y_lost = rows.get(lost["executor"])
        if y_lost is not None:
            marks.append(
                f'<text x="{x(lost["seen_s"]) - 4}" y="{y_lost + 15}" style="fill:#c1121f;font-weight:700">'
                f"&#10005;<title>{escape(str(lost.get('why', ''))[:300])}</title></text>"
            )
    return marks
