"""A run as one self-contained HTML page: the verdict, and every scenario drawn."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec
from markupsafe import Markup

from vmm.host.structure import by_release
from vmm.report.counts import counted_as
from vmm.report.json import encoded
from vmm.report.outcomes import ICONS, kind_of, label_of
from vmm.report.pages import rendered
from vmm.report.plain import one_line
from vmm.report.reporter import Reporter, Write, at_the_end
from vmm.report.resultfile import ResultFile, ScenarioResult, result_file
from vmm.scenario.words import counted
from vmm.verdict.judge import Status

_VERDICTS = {
    Status.DIFFERS: ("This kernel differs from the model", "differs"),
    Status.INCONCLUSIVE: ("Inconclusive", "inconclusive"),
    Status.INTERNAL_ERROR: ("This program failed: no verdict on the kernel", "internal-error"),
    Status.SKIPPED: ("Nothing could run", "skipped"),
}
_API = "https://docs.kernel.org/virt/kvm/api.html"
_COMMIT = "https://git.kernel.org/linus/"
_CITED = re.compile(r"(api\.rst|\b[0-9a-f]{12}\b)")


def html_report(write: Write) -> Reporter:
    """Return a reporter that writes the whole page at the end."""
    return at_the_end(write, lambda run: html_text(result_file(run)))


def html_text(result: ResultFile) -> str:
    """Return the page."""
    kinds = Counter(map(kind_of, result.scenarios))
    known = (each for each in result.scenarios if each.status is Status.KNOWN)
    issues = {each.known_issue.name for each in known if each.known_issue}
    verdict, kind = _verdict(result.status, kinds, len(issues))
    return rendered(
        "result.html",
        result=result,
        verdict=verdict,
        kind=kind,
        facts=list(_facts(result)),
        notes=list(_notes(result)),
        outcomes=[
            {"kind": kind, "icon": icon, "name": counted_as(label_of(kind), kinds[kind])}
            for kind, icon in ICONS.items()
            if kinds[kind]
        ],
        subjects=[group["subject"] for group in _groups(result)],
        groups=_groups(result),
        structure=result.host.memslots or by_release(result.host.kernel),
        rules=[
            {
                "name": name,
                "promise": rule.promise,
                "basis": _basis(rule.basis),
                "cite": _cite(rule.cite),
            }
            for name, rule in result.rules.items()
        ],
        data=json_for_script([_shown(each) for each in result.scenarios]),
    )


def _verdict(status: Status, kinds: Counter[str], issues: int) -> tuple[str, str]:
    """Return the heading, and the kind whose colour it has: with known issues that of "known".

    A pass is said of the scenarios that ran: a few show less than all.
    """
    if status is not Status.PASSED:
        return _VERDICTS[status]
    heading = f"{counted(kinds.total() - kinds['skipped'], 'scenario')} ran: no difference"
    if kinds["known"]:
        return f"{heading}, but for {counted(issues, 'known issue')}", "known"
    return heading, "passed"


def json_for_script(value: object) -> Markup:
    """Return JSON that is safe inside a script element: nothing in it can end the element."""
    return Markup(encoded(value).decode().replace("<", "\\u003c"))


def _subject(each: ScenarioResult) -> str:
    return each.tags[0] if each.tags else "scenarios"


def _groups(result: ResultFile) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for each in result.scenarios:
        kind = kind_of(each)
        words = (each.name, each.why, *each.tags, *each.rules, label_of(kind))
        shown = {
            "name": each.name,
            "link": quote(each.name, safe=""),
            "kind": kind,
            "icon": ICONS[kind],
            "label": label_of(kind),
            "text": one_line(" ".join(words).lower()),
        }
        groups.setdefault(_subject(each), []).append(shown)
    return [{"subject": name, "scenarios": members} for name, members in groups.items()]


def _facts(result: ResultFile) -> Iterator[tuple[str, str]]:
    host = result.host
    yield "kernel", f"Linux {host.kernel}"
    yield "backend", host.vendor or "KVM"
    yield "TDP", host.tdp
    yield "CPU", host.cpu + (" (a virtual machine)" if host.hypervisor else "")
    yield "slots", str(result.features.nr_memslots)
    yield "took", f"{result.seconds:.1f} s"


def _notes(result: ResultFile) -> Iterator[str]:
    if result.not_run:
        count, names = len(result.not_run), ", ".join(result.not_run[:8])
        yield f"{counted(count, 'scenario')} did not run: {names}{' ...' if count > 8 else ''}"
    yield from filter(None, (result.obstacle, result.early, *result.error.splitlines()[-1:]))
    if not result.kernel_healthy:
        yield "The kernel complained: see the scenarios marked with ⚠."
    yield from result.weaknesses


def _shown(each: ScenarioResult) -> dict[str, Any]:
    """Return what the page's script needs of a scenario."""
    kind = kind_of(each)
    data: dict[str, Any] = msgspec.to_builtins(each)
    for unused in ("rules", "tags", "known_issue", "status"):
        del data[unused]
    if data["difference"]:
        del data["difference"]["slot_map"]
    data["evidence"] = each.known_issue.evidence if each.known_issue else ""
    again = each.again or f"vmm check {shlex.quote(each.name)}"
    shown: dict[str, Any] = _printable(data)
    return {**shown, "kind": kind, "icon": ICONS[kind], "label": label_of(kind), "again": again}


def _printable(value: Any) -> Any:
    """Return the same data with only printable characters in its texts."""
    match value:
        case str():
            return one_line(value)
        case list() | tuple():
            return [_printable(item) for item in value]
        case dict():
            return {key: _printable(item) for key, item in value.items()}
        case _:
            return value


def _basis(basis: str) -> str:
    return "documented" if basis == "documented" else "known from the source only"


def _cite(cite: str) -> list[dict[str, str]]:
    """Return a citation in pieces; those that name a document or a commit have a link."""
    pieces = [piece for piece in _CITED.split(cite) if piece]
    return [{"text": piece, "href": _address(piece)} for piece in pieces]


def _address(piece: str) -> str:
    if not _CITED.fullmatch(piece):
        return ""
    return _API if piece == "api.rst" else f"{_COMMIT}{piece}"
