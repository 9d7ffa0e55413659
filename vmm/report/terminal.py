"""Verdicts as lines of styled text, for a terminal or a log file."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from rich.text import Text

from vmm.host.health import Problem
from vmm.report.counts import counted_as
from vmm.scenario import words
from vmm.scenario.endings import DIED, HARNESS
from vmm.scenario.operations import Scenario
from vmm.scenario.shown import shown
from vmm.verdict.groups import Alike, Skipped
from vmm.verdict.hostchange import last_host_change
from vmm.verdict.judge import Difference, Expected, Status, UnderWay
from vmm.verdict.result import Checked, Run

STYLES = {
    Status.PASSED: "green",
    Status.DIFFERS: "bold red",
    Status.INCONCLUSIVE: "yellow",
    Status.INTERNAL_ERROR: "bold red",
    Status.SKIPPED: "cyan",
    Status.KNOWN: "magenta",
    Status.PASSES_NOW: "bold green",
}
_LABEL_WIDTH = 10
_TITLE_WIDTH = 12
_INDENT = "  "
_MANY = 8
_MOST = 4000
_MOST_OF_WHY = 400
"""The most characters shown of a line, and of a scenario file's own text."""


def scenario_report(checked: Checked, again: str, width: int | None) -> list[Text]:
    """Return the report on one scenario; nothing if it passed.

    ``again`` is the command that shows it again; lines are wrapped at ``width`` columns if given.
    """
    verdict = checked.verdict
    lines: list[Text] = []
    if verdict.difference is not None:
        lines += _title(checked, verdict.reason, width)
        lines += _evidence(checked, width)
        lines += _difference(checked.scenario, verdict.difference, width)
    elif verdict.status is Status.INTERNAL_ERROR:
        lines += _title(checked, "this program failed, which says nothing about the kernel", width)
        lines += _field("traceback", verdict.reason.removeprefix(HARNESS).splitlines(), None)
    elif verdict.status is not Status.PASSED:
        lines += _title(checked, verdict.reason, width)
        lines += _evidence(checked, width)
        if verdict.reason.startswith(f"{DIED}SIGKILL"):
            why = "for want of memory (the kernel's log names what the OOM killer ended)"
            lines += _field("perhaps", [why], width)
    elif checked.problems:
        lines += _title(checked, "no outcome is wrong, but the kernel complained", width)
    if verdict.under_way is not None:
        lines += _field("under way", step_under_way(checked.scenario, verdict.under_way), width)
    for problem in checked.problems:
        lines += _problem(problem, width)
    if lines and verdict.status is not Status.SKIPPED:
        lines += _field("again", [again], width)
    return lines


def _evidence(checked: Checked, width: int | None) -> list[Text]:
    """Return how a known issue was found out; nothing if there is none."""
    if checked.issue is None or checked.verdict.status is not Status.KNOWN:
        return []
    return list(_field("evidence", [checked.issue.evidence], width))


def headline(checked: Checked, width: int | None) -> list[Text]:
    """Return a short report on a scenario: its verdict and the reason."""
    difference = checked.verdict.difference
    text = checked.verdict.reason
    if difference is not None and not text:
        rules = ", ".join(dict.fromkeys(each.rule for each in difference.expected))
        text = f"operation {difference.origin} breaks {rules}: {difference.observed}"
    elif checked.problems and not text:
        text = checked.problems[0].what
    return list(_title(checked, text.partition("\n")[0], width))


def counts(found: Mapping[Status, int]) -> Text:
    """Return one line that says how many histories got which verdict."""
    line = Text(words.counted(sum(found.values()), "history", "histories"), style="bold")
    parts = [
        Text(counted_as(status.value, found[status]), style=STYLES[status])
        for status in Status
        if found.get(status)
    ]
    return line.append(": ").append(Text(", ").join(parts))


def skipped(group: Skipped, width: int | None) -> list[Text]:
    """Return a line on scenarios that were skipped for one reason."""
    count = len(group.names)
    name = group.names[0] if count == 1 else f"{count} scenarios"
    head = f"{Status.SKIPPED.value.upper():<{_TITLE_WIDTH}} "
    lines = []
    for number, piece in enumerate(_pieces(f"{name}: {group.reason}", width, len(head))):
        line = Text(head if number == 0 else " " * len(head), style=STYLES[Status.SKIPPED])
        lines.append(line.append(piece, style="default not bold"))
    return lines


def others(group: Alike, width: int | None) -> list[Text]:
    """Return the names of the scenarios whose result has the same cause as the one shown."""
    if not group.others:
        return []
    label = "so do" if group.shortest.verdict.status is Status.DIFFERS else "also in"
    text = f"{words.counted(len(group.others), 'scenario')}: {', '.join(group.others)}"
    return list(_field(label, [text], width))


def summary(run: Run, width: int | None) -> list[Text]:
    """Return the last lines of a run of many scenarios: remarks, and the counts."""
    line = Text(words.counted(len(run.checked), "scenario"), style="bold")
    parts = [
        Text(counted_as(status.value, count), style=STYLES[status])
        for status, count in run.counts.items()
        if count
    ]
    complaints = sum(bool(each.unexplained) for each in run.checked)
    if complaints:
        parts.append(Text(f"the kernel complained in {complaints}", style="bold red"))
    if 2 * run.ran < len(run.checked):
        parts.append(Text(f"only {run.ran} of {len(run.checked)} ran", style="yellow"))
    if run.not_run:
        parts.append(Text(f"{len(run.not_run)} did not run", style="yellow"))
    line.append(": ").append(Text(", ").join(parts) if parts else "nothing ran")
    line.append(f" in {run.seconds:.1f} s", style="not bold")
    vendor = run.host.vendor or "KVM"
    cpus = " and ".join(map(str, sorted(set(run.cpus))))
    where = Text(
        f"Linux {run.host.kernel}, {vendor}, on CPU{'s' * (' ' in cpus)} {cpus}", style="dim"
    )
    return [*remarks(run, width), where, line]


def remarks(run: Run, width: int | None) -> list[Text]:
    """Return what weakens the verdict, and what an early end left out."""
    lines: list[Text] = []
    for weakness in run.weaknesses:
        lines += _labelled("note:", weakness, width)
    return lines + left_out(run, width)


def left_out(run: Run, width: int | None) -> list[Text]:
    """Return why a run ended early, and what did not run."""
    lines: list[Text] = []
    if run.not_run:
        names = ", ".join(run.not_run)
        if len(run.not_run) > _MANY:
            names = f"all from {run.not_run[0]} to {run.not_run[-1]}"
        why = f" ({run.early})" if run.early else ""
        left = f"{words.counted(len(run.not_run), 'scenario')} did not run{why}: {names}"
        lines += _labelled("left out:", left, width)
    elif run.early:
        lines += _labelled("note:", run.early, width)
    return lines


def single(checked: Checked, again: str, width: int | None) -> list[Text]:
    """Return the whole report on one scenario, a pass included."""
    verdict = checked.verdict
    if verdict.status is Status.PASSED and not checked.failed:
        rules = words.counted(len(verdict.rules), "rule")
        extent = f"{words.counted(verdict.events, 'event')} judged by {rules}"
        return [*_title(checked, extent, width), *_field("refused", _refused((checked,)), width)]
    lines = [
        *scenario_report(checked, again, width),
        *_field("refused", _refused((checked,)), width),
    ]
    count = len(checked.scenario.operations)
    if verdict.status is Status.INCONCLUSIVE and checked.ran < count:
        left = f"operations {checked.ran} to {count - 1}" if count - 1 > checked.ran else "the last"
        lines += _field("not run", [left], width)
    return lines


def rules(checked: Checked, width: int | None) -> list[Text]:
    """Return the names of the rules that decided at least one event; nothing if none did."""
    names = checked.verdict.rules
    return list(_field("rules", [", ".join(names)] if names else [], width))


def refused_in(run: Run, width: int | None) -> list[Text]:
    """Return the region calls that were refused in a run: counts, rules, and the first."""
    lines: list[Text] = []
    for value in _refused(run.checked):
        lines += _labelled("refused:" if not lines else " " * len("refused:"), value, width)
    return lines


def _refused(found: Iterable[Checked]) -> list[str]:
    """Return the region calls that were rightly refused: counts, rules, and the first."""
    every = [(each, calls) for each in found for calls in each.verdict.refused]
    if not every:
        return []
    kinds: Counter[tuple[str, str]] = Counter()
    for _, calls in every:
        kinds[calls.errno, calls.rule] += calls.count
    texts = [f"{count} x {name} by {rule}" for (name, rule), count in kinds.most_common(_MANY)]
    if len(kinds) > _MANY:
        texts.append(f"and {words.counted(len(kinds) - _MANY, 'kind')} more")
    checked, first = every[0]
    step = _step(checked.scenario, first.origin, first.operation)
    who = "" if len({id(each) for each, _ in every}) == 1 else f"{checked.verdict.scenario}, "
    count = words.counted(kinds.total(), "region call")
    return [f"{count}, as the rules say: {', '.join(texts)}", f"first: {who}{step[-1]}"]


def listing(scenarios: Iterable[tuple[Scenario, str]], width: int | None) -> list[Text]:
    """Return a line for each scenario: its name, why, tags, and what it lacks if it is skipped."""
    chosen = list(scenarios)
    column = max((len(scenario.name) for scenario, _ in chosen), default=0)
    if width is not None:
        column = min(column, width // 3)
    return [
        Text(f"{scenario.name:<{column}}", style="bold")
        .append(f"  {scenario.why}", style="not bold")
        .append(f" [{', '.join(scenario.tags)}]" if scenario.tags else "", style="not bold dim")
        .append(f" (skipped: needs {lack})" if lack else "", style="not bold cyan")
        for scenario, lack in chosen
    ]


def _title(checked: Checked, text: str, width: int | None) -> Iterator[Text]:
    verdict = checked.verdict
    word, style = verdict.status.value, STYLES[verdict.status]
    if checked.failed and verdict.status is not Status.DIFFERS:
        word, style = "unhealthy", STYLES[Status.DIFFERS]
    head = f"{word.upper():<{_TITLE_WIDTH}} "
    pieces = _pieces(f"{verdict.scenario}{': ' if text else ''}{text}", width, len(head))
    for number, piece in enumerate(pieces):
        line = Text(head if number == 0 else " " * len(head), style=style)
        line.append(piece, style="default not bold")
        if number == 0:
            line.stylize("bold", len(head), len(head) + len(verdict.scenario))
        yield line


def _difference(scenario: Scenario, found: Difference, width: int | None) -> Iterator[Text]:
    if scenario.why:
        yield from _field("why", [shown(scenario.why, _MOST_OF_WHY)], width)
    yield from _field("step", differing_step(scenario, found), width)
    expected: list[str] = []
    for each in found.expected:
        expected += _expectation(each, again=bool(expected))
    yield from _field("expected", expected, width, "green")
    yield from _field("observed", [found.observed], width, "red")
    slots = found.slot_map or ("no slot",)
    yield from _field("slots", slots, width)


def differing_step(scenario: Scenario, found: Difference) -> list[str]:
    """Return the lines that say where a difference is."""
    return [*_step(scenario, found.origin, found.operation), *_after(scenario, found)]


def _after(scenario: Scenario, found: Difference) -> Iterator[str]:
    """Yield the host's last change, if it may be what the kernel did not follow."""
    changed = last_host_change(scenario, found)
    if changed is not None and changed != found.origin:
        yield f"after operation {changed}: {words.operation(scenario.operations[changed])}"


def step_under_way(scenario: Scenario, begun: UnderWay) -> list[str]:
    """Return the lines that say what was under way at the end."""
    lines = _step(scenario, begun.origin, begun.operation)
    if begun.more:
        lines.append(f"or a later one of the {begun.more + 1} touches in this KVM_RUN")
    return lines


def _step(scenario: Scenario, origin: int, operation: str) -> list[str]:
    """Return the operation that a step belongs to, and the step itself if it is another."""
    count = len(scenario.operations)
    if not 0 <= origin < count:
        when = "before the first operation" if origin < 0 else "at the end"
        return [f"{when}: {operation}"]
    place = f"operation {origin} (of 0 to {count - 1})"
    asked = words.operation(scenario.operations[origin])
    if asked == operation:
        return [f"{place}: {asked}"]
    return [f"{place}: {asked}", f"then {operation}"]


def _expectation(expected: Expected, again: bool) -> list[str]:
    basis = "documented" if expected.basis == "documented" else "known from the source only"
    return [
        f"{'or ' if again else ''}{expected.outcome}",
        f"by {expected.rule}: {expected.promise}",
        f"({basis}: {expected.cite})",
    ]


def _problem(problem: Problem, width: int | None) -> Iterator[Text]:
    yield from _field("kernel", [problem.what], width, "red")
    if problem.excerpt:
        yield from _field("log", problem.excerpt, None)


def _field(label: str, values: Iterable[str], width: int | None, style: str = "") -> Iterator[Text]:
    """Yield a label and its values, one below the other; the first value carries the style."""
    for index, value in enumerate(values):
        head = f"{_INDENT}{label if index == 0 else '':<{_LABEL_WIDTH}}"
        for number, piece in enumerate(_pieces(value, width, len(head), hanging=index > 0)):
            line = Text(head if number == 0 else " " * len(head), style="dim")
            yield line.append(piece, style=f"not dim {style if index == 0 else ''}".strip())


def _labelled(label: str, text: str, width: int | None) -> Iterator[Text]:
    """Yield a remark on the whole run."""
    used = len(label) + 1
    for number, piece in enumerate(_pieces(text, width, used)):
        head = f"{label} " if number == 0 else " " * used
        yield Text(head, style="yellow").append(piece, style="default")


def _pieces(text: str, width: int | None, used: int, hanging: bool = False) -> list[str]:
    """Wrap a line; ``hanging`` indents what continues an inner line.

    All text about a scenario passes through here, so that nothing in it can forge a line.
    """
    text = shown(text, _MOST)
    if width is None:
        return [text]
    room = max(width - used, 30)
    indent = "  " if hanging else ""
    return textwrap.wrap(
        text, room, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    ) or [""]
