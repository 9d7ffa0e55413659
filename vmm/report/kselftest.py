"""The exit statuses of the kernel's selftests, for running `vmm check` as one of them."""

from vmm.report.ktap import is_ok
from vmm.verdict.judge import Status
from vmm.verdict.result import Run
from vmm.verdict.statuses import NOTHING_RAN

PASS, FAIL, XFAIL, XPASS, SKIP = range(5)
"""KSFT_PASS and so on, as in tools/testing/selftests/kselftest.h."""


def status_without_a_run(status: int) -> int:
    """Return what one of our exit statuses is as a kselftest, for a run that did not end."""
    return SKIP if status == NOTHING_RAN else FAIL


def kselftest_status(run: Run) -> int:
    """Return a run's exit status as a kselftest.

    As in kselftest, any failure makes the run fail; else one pass makes it pass. A scenario that is
    inconclusive, or did not run, is a failure.
    """
    too_few = run.ran < run.required
    if run.not_run or run.error or too_few or not all(map(is_ok, run.checked)):
        return FAIL
    found = {checked.verdict.status for checked in run.checked}
    for status, number in (
        (Status.PASSED, PASS),
        (Status.PASSES_NOW, XPASS),
        (Status.KNOWN, XFAIL),
    ):
        if status in found:
            return number
    return SKIP
