"""The names and icons of outcomes on pages."""

from vmm.report.resultfile import ScenarioResult
from vmm.verdict.judge import Status

ICONS = {
    "differs": "≠",
    "unhealthy": "⚠",
    "internal-error": "✗",
    "inconclusive": "?",
    "known": "~",
    "passes-now": "↑",
    "passed": "✓",
    "skipped": "·",
}
"""The kinds of outcomes, the gravest first, each with an icon that needs no colour."""


def kind_of(each: ScenarioResult) -> str:
    """Return the kind of a scenario's outcome; a complaint of the kernel has its own kind."""
    if each.failed and each.status is not Status.DIFFERS:
        return "unhealthy"
    return each.status.value.replace(" ", "-")


def label_of(kind: str) -> str:
    """Return a kind in words."""
    return kind.replace("-", " ")
