"""Coverage as text, Markdown or JSON: what is checked, by what, and where there are gaps."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from vmm.host.hostinfo import HostInfo
from vmm.report import json
from vmm.scenario.shown import shown
from vmm.verdict.coverage import BugCoverage, Coverage, RuleCoverage, State

STYLES = {
    State.CHECKED: "green",
    State.DIFFERS: "bold red",
    State.KNOWN: "magenta",
    State.NOT_HERE: "cyan",
    State.NOT_RUN: "yellow",
    State.GAP: "bold yellow",
}
_STATE_WIDTH = max(len(state.value) for state in State)
_SHOWN = 2
_SHOWN_IN_MARKDOWN = 3


def coverage_lines(coverage: Coverage) -> list[Text]:
    """Return a line for each rule and each bug, the host, and counts."""
    rules, bugs = coverage.rules, coverage.bugs
    names = max((len(each.rule.name) for each in rules), default=0)
    commits = max((len(" ".join(each.bug.commits)) for each in bugs), default=0)
    lines = [Text("Rules", style="bold")]
    lines += [_line(r.state, f"{r.rule.name:<{names}}", _rule_by(r, _SHOWN)) for r in rules]
    lines.append(Text("\nBugs that kernels had", style="bold"))
    lines += [_line(b.state, f"{' '.join(b.bug.commits):<{commits}}", _bug_by(b)) for b in bugs]
    lines += [Text(""), Text(_where(coverage.host), style="dim")]
    for what, counted in (("rules", rules), ("bugs", bugs)):
        lines.append(_counts(what, [each.state for each in counted]))
    return lines


def coverage_markdown(coverage: Coverage) -> str:
    """Return the whole table as a Markdown page."""
    return "\n".join(
        [
            "# What is checked, and by what",
            "",
            "Made by `vmm coverage --markdown` from what really ran. *Checked* rules decided at",
            "least one event on this host; a bug is *checked* if a scenario that would have shown",
            f"it passed. This is {_where(coverage.host)}.",
            "",
            "## Rules",
            "",
            *_table(
                ("here", "rule", "promise", "rests on", "scenarios"),
                (_rule_row(each) for each in coverage.rules),
            ),
            "",
            "## Bugs that kernels had",
            "",
            *_table(
                (
                    "here",
                    "mended by",
                    "what went wrong",
                    "could be met",
                    "would have been shown by",
                ),
                (_bug_row(each) for each in coverage.bugs),
            ),
            "",
        ]
    )


def coverage_json(coverage: Coverage) -> str:
    """Return the whole table as JSON, with all scenario names."""
    data = {
        "format": json.FORMAT,
        "exit_status": coverage.exit_status,
        "rules": [
            {
                "rule": each.rule.name,
                "promise": each.rule.promise,
                "basis": each.rule.basis,
                "cite": each.rule.cite,
                "state": each.state.value,
                "scenarios": each.scenarios,
                "why": each.why,
            }
            for each in coverage.rules
        ],
        "bugs": [
            {
                "commits": each.bug.commits,
                "wrong": each.bug.wrong,
                "where": each.bug.where,
                "gap": each.bug.gap,
                "state": each.state.value,
                "scenarios": [
                    {"name": name, "because": show.because, "status": status}
                    for show, (name, status) in zip(each.bug.shown_by, each.results, strict=True)
                ],
            }
            for each in coverage.bugs
        ],
        "host": coverage.host,
    }
    return json.text(data)


def _line(state: State, name: str, by: str) -> Text:
    line = Text(f"{state.value:<{_STATE_WIDTH}}", style=STYLES[state])
    return line.append(f"  {name}", style="default not bold").append(
        f"  {by}", style="not bold dim"
    )


def _rule_by(each: RuleCoverage, most: int) -> str:
    return shown(each.why) if each.why else _some(list(map(shown, each.scenarios)), most)


def _bug_by(each: BugCoverage) -> str:
    if each.bug.gap:
        return f"{each.bug.wrong}: {each.bug.gap}"
    results = (
        name if status == "passed" else f"{name} ({status})" for name, status in each.results
    )
    return f"{each.bug.wrong}: {', '.join(results)}"


def _where(host: HostInfo) -> str:
    facts = (f"Linux {host.kernel}", host.vendor or "KVM", f"TDP {host.tdp}")
    return ", ".join(map(shown, facts))


def _counts(what: str, states: Sequence[State]) -> Text:
    line = Text(f"{len(states)} {what}: ", style="bold")
    counter = Counter(states)
    parts = [
        Text(f"{counter[state]} {state.value}", style=STYLES[state])
        for state in State
        if counter[state]
    ]
    return line.append(Text(", ").join(parts))


def _rule_row(each: RuleCoverage) -> tuple[str, ...]:
    rule = each.rule
    basis = rule.basis if rule.basis == "documented" else "source only"
    by = shown(each.why) or _some(
        [f"`{shown(name)}`" for name in each.scenarios], _SHOWN_IN_MARKDOWN
    )
    return each.state.value, f"`{rule.name}`", rule.promise, f"{basis}: {rule.cite}", by


def _bug_row(each: BugCoverage) -> tuple[str, ...]:
    bug = each.bug
    shown_by = "; ".join(
        f"`{show.scenario}`: {show.because}" + ("" if status == "passed" else f" ({status})")
        for show, (_, status) in zip(bug.shown_by, each.results, strict=True)
    )
    commits = ", ".join(f"`{commit}`" for commit in bug.commits)
    return each.state.value, commits, bug.wrong, bug.where, bug.gap or shown_by


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    for row in rows:
        yield _row(row)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _some(names: Sequence[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
