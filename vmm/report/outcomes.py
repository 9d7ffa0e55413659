"""What pages call the outcomes, and the sign that each of them has."""

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
"""The kinds of outcomes, the weightiest first, each with a sign that needs no colour."""


def kind_of(each: ScenarioResult) -> str:
    """Return the kind of a scenario's outcome; a complaint of the kernel is one of its own."""
    if each.failed and each.status is not Status.DIFFERS:
        return "unhealthy"
    return each.status.value.replace(" ", "-")


def label_of(kind: str) -> str:
    """Return a kind in words."""
    return kind.replace("-", " ")
