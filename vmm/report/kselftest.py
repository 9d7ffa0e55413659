"""The exit statuses of the kernel's selftests, for those who run this as one of them."""

from vmm.report.ktap import is_ok
from vmm.verdict.judge import Status
from vmm.verdict.result import Run

PASS, FAIL, XFAIL, XPASS, SKIP = range(5)
"""KSFT_PASS and so on, as tools/testing/selftests/kselftest.h numbers them."""


def kselftest_status(run: Run) -> int:
    """Return a run's exit status: that of its one scenario, or what many amount to.

    As kselftest counts, one failure makes a run fail, and one pass without any failure makes it
    pass. What is inconclusive, or did not run, is a failure.
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
