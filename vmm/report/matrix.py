"""Several results side by side as a page: a row a scenario, a column a kernel and backend."""

from collections.abc import Sequence
from dataclasses import dataclass

from vmm.report.outcomes import ICONS, kind_of, label_of
from vmm.report.pages import rendered
from vmm.report.plain import one_line
from vmm.report.resultfile import ResultFile, ScenarioResult
from vmm.scenario.words import counted
from vmm.verdict.judge import Status


@dataclass(frozen=True, slots=True)
class SavedResult:
    """A result, and the name of its file."""

    result: ResultFile
    file: str


def matrix_text(every: Sequence[SavedResult]) -> str:
    """Return the page. Rows follow the first result; scenarios that only others have come last."""
    outcomes = [{each.name: each for each in kept.result.scenarios} for kept in every]
    names = dict.fromkeys(name for column in outcomes for name in column)
    rows = [_row(name, [column.get(name) for column in outcomes]) for name in names]
    unlike = sum(bool(row["unlike"]) for row in rows)
    where = _where(every)
    title = f"{counted(len(names), 'scenario')} {where}"
    if len(every) > 1:
        title += f": {_alike(unlike, sum(bool(row['alone']) for row in rows), len(rows))}"
    return rendered("matrix.html", title=title, where=where, columns=_columns(every), rows=rows)


def _where(every: Sequence[SavedResult]) -> str:
    """Return what the columns are: kernels, or results where one kernel has several."""
    hosts = {(kept.result.host.kernel, kept.result.host.vendor) for kept in every}
    if len(hosts) < len(every):
        return f"in {counted(len(every), 'result')}"
    return f"on {counted(len(every), 'kernel')}"


def _alike(unlike: int, alone: int, count: int) -> str:
    """Return how scenarios compare; what ran on one kernel alone is not called alike."""
    if alone == count:
        return "none ran on two of them"
    differing = f"{unlike} {'has' if unlike == 1 else 'have'} different results"
    alike = differing if unlike else "all have the same results"
    return f"{alike}; {alone} ran on fewer than two" if alone else alike


def _columns(every: Sequence[SavedResult]) -> list[dict[str, object]]:
    hosts = [(kept.result.host.kernel, kept.result.host.vendor) for kept in every]
    return [
        {
            "kernel": one_line(f"Linux {kept.result.host.kernel}"),
            "backend": one_line(kept.result.host.vendor or "KVM"),
            "file": one_line(kept.file) if hosts.count(host) > 1 else "",
            "passed": sum(each.status is Status.PASSED for each in kept.result.scenarios),
            "count": len(kept.result.scenarios),
        }
        for kept, host in zip(every, hosts, strict=True)
    ]


def _row(name: str, outcomes: Sequence[ScenarioResult | None]) -> dict[str, object]:
    ran = [kind for each in outcomes if each is not None if (kind := kind_of(each)) != "skipped"]
    cells = [_cell(each) for each in outcomes]
    words = (name, *(cell["label"] for cell in cells))
    return {
        "name": one_line(name),
        "cells": cells,
        "unlike": len(set(ran)) > 1,
        "alone": len(ran) < 2,
        "text": one_line(" ".join(words).lower()),
    }


def _cell(each: ScenarioResult | None) -> dict[str, str]:
    if each is None:
        return {"kind": "dim", "icon": "", "label": "not run", "reason": ""}
    kind = kind_of(each)
    reason = each.reason
    if each.difference is not None and not reason:
        reason = f"{each.difference.operation}: {each.difference.observed}"
    return {
        "kind": kind,
        "icon": ICONS[kind],
        "label": label_of(kind),
        "reason": one_line(reason),
    }
