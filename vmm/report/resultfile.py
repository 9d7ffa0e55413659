"""The result of a run as `--format json` has it: the one type that is written, read and published.

``docs/result.schema.json`` is made from it. A reader refuses a file of another format, or with
other types.
"""

import inspect
import json
import sys
from datetime import UTC, datetime
from typing import Literal

import msgspec

from vmm.host.health import Problem
from vmm.host.hostinfo import HostInfo
from vmm.report.terminal import differing_step, step_under_way
from vmm.report.text import check_again
from vmm.scenario.features import Features, PerVm
from vmm.scenario.kinds import RESULT, other_than
from vmm.scenario.toolversion import tool_version
from vmm.scenario.undecodable import UNDECODABLE
from vmm.verdict.judge import Difference, Status, UnderWay
from vmm.verdict.known.issue import KnownIssue
from vmm.verdict.refusals import RefusedCalls
from vmm.verdict.result import Checked, Run
from vmm.verdict.steps import RuleText, Step, rule_texts

FORMAT: Literal[1] = 1


class ResultError(ValueError):
    """A file that is not a result; the text is one line with file, place and remedy."""


class ScenarioResult(msgspec.Struct, frozen=True):
    """The result of one scenario.

    ``reason`` explains a status that is neither a plain pass nor a difference. ``rules`` decided at
    least one of its ``events``. The kernel complained of ``kernel_complaints`` while it ran.
    ``failed`` says whether the kernel differed or complained and no known issue explains it.
    ``steps`` are for drawing: see `Step`. ``refused`` are the region calls that the kernel rightly
    refused. ``again`` is the command that shows the result again. ``step`` says in words where it
    differs, or what was under way at the end.
    """

    name: str
    status: Status
    reason: str
    why: str
    tags: tuple[str, ...]
    events: int
    rules: tuple[str, ...]
    seconds: float
    difference: Difference | None
    under_way: UnderWay | None
    kernel_complaints: tuple[Problem, ...]
    known_issue: KnownIssue | None
    source: str = ""
    failed: bool = False
    steps: tuple[Step, ...] = ()
    refused: tuple[RefusedCalls, ...] = ()
    again: str = ""
    step: tuple[str, ...] = ()


class Tool(msgspec.Struct, frozen=True):
    """The program that wrote a result."""

    name: str = "memslot-vmm"
    version: str = ""


class ResultFile(msgspec.Struct, frozen=True):
    """The result of a whole run; scenarios are in the order of the catalogue.

    ``not_run`` names those that an early end left out, ``weaknesses`` what could not be watched.
    ``rules`` are all that a scenario of this run names. ``obstacle`` says why nothing could run,
    ``early`` why the run ended early; ``error`` is the traceback of an error of this program that
    belongs to no scenario. ``time`` is when the result was written, in ISO 8601.
    """

    format: Literal[1]
    status: Status
    exit_status: int
    counts: dict[str, int]
    seconds: float
    cpus: tuple[int, ...]
    scenarios: tuple[ScenarioResult, ...]
    not_run: tuple[str, ...]
    kernel_healthy: bool
    weaknesses: tuple[str, ...]
    features: Features
    host: HostInfo
    rules: dict[str, RuleText] = {}
    obstacle: str = ""
    early: str = ""
    error: str = ""
    tool: Tool = Tool()
    time: str = ""
    kernel_command_line: str = ""


def result_file(run: Run) -> ResultFile:
    """Return a run as it is written."""
    return ResultFile(
        format=FORMAT,
        status=run.status,
        exit_status=run.exit_status,
        counts={status.value: count for status, count in run.counts.items()},
        seconds=round(run.seconds, 3),
        cpus=run.cpus,
        scenarios=tuple(map(_scenario, run.checked)),
        not_run=run.not_run,
        kernel_healthy=not any(checked.unexplained for checked in run.checked),
        weaknesses=run.weaknesses,
        features=run.features,
        host=run.host,
        rules=rule_texts(_named_rules(run)),
        obstacle=run.obstacle,
        early=run.early,
        error=run.error,
        tool=Tool(version=tool_version()),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        kernel_command_line=run.host.command_line,
    )


def parse_result(text: bytes, name: str) -> ResultFile:
    """Return the result in a file's text; errors call the file ``name``.

    Raises ResultError.
    """
    other = other_than(RESULT, text)
    if other:
        raise ResultError(f"{name}: {other}")
    try:
        head = msgspec.json.decode(text, type=_Head)
        found = head.format
        if found == FORMAT:
            return _decoded(text, head)
    except UNDECODABLE as error:
        raise ResultError(f"{name}: not a result of `vmm check --json`: {error}") from None
    raise ResultError(
        f"{name}: format {found} is not known here (this reads format {FORMAT}): "
        "use the version of this program that wrote it"
    )


class _Head(msgspec.Struct):
    format: int
    features: dict[str, object] = {}


def _decoded(text: bytes, head: _Head) -> ResultFile:
    """Decode a result; features that only another version of this program asks for are left out.

    A history's are never: it would be judged as if the kernel lacked them.
    """
    known = _known_features(head.features)
    if known == head.features:
        return msgspec.json.decode(text, type=ResultFile)
    data = msgspec.json.decode(text)
    data["features"] = known
    return msgspec.convert(data, ResultFile)


def _known_features(features: dict[str, object]) -> dict[str, object]:
    protected = features.get("protected")
    known = {name: features[name] for name in Features.__struct_fields__ if name in features}
    if isinstance(protected, dict):
        fields = PerVm.__struct_fields__
        known["protected"] = {name: protected[name] for name in fields if name in protected}
    return known


def schema() -> dict[str, object]:
    """Return the JSON Schema of a result, without the docstrings' examples.

    It is the same with any version of msgspec.
    """
    made = msgspec.json.schema(ResultFile)
    for definition in made["$defs"].values():
        if "description" in definition:
            text = inspect.cleandoc(definition["description"])
            definition["description"] = text.partition(">>>")[0].strip()
        for field in definition.get("properties", {}).values():
            if field.get("default") == {}:
                del field["default"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "memslot-vmm result",
        **made,
    }


def _scenario(checked: Checked) -> ScenarioResult:
    verdict = checked.verdict
    return ScenarioResult(
        name=verdict.scenario,
        status=verdict.status,
        reason=verdict.reason,
        why=checked.scenario.why,
        tags=checked.scenario.tags,
        events=verdict.events,
        rules=verdict.rules,
        seconds=round(checked.seconds, 4),
        difference=verdict.difference,
        under_way=verdict.under_way,
        kernel_complaints=checked.problems,
        known_issue=checked.issue,
        source=checked.scenario.source,
        failed=checked.failed,
        steps=checked.steps,
        refused=verdict.refused,
        again=check_again(checked),
        step=tuple(_step(checked)),
    )


def _step(checked: Checked) -> list[str]:
    difference, begun = checked.verdict.difference, checked.verdict.under_way
    if difference is not None:
        return differing_step(checked.scenario, difference)
    return step_under_way(checked.scenario, begun) if begun is not None else []


def _named_rules(run: Run) -> set[str]:
    names: set[str] = set()
    for checked in run.checked:
        names.update(checked.verdict.rules)
        if checked.verdict.difference is not None:
            names.update(each.rule for each in checked.verdict.difference.expected)
    return names


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=1) + "\n")
