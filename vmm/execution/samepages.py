"""KSM, which merges pages that are alike (Documentation/admin-guide/mm/ksm.rst)."""

import time
from pathlib import Path

_KSM = Path("/sys/kernel/mm/ksm")
_LONGEST_S = 2.0
_LOOKS = 2
"""A page is merged when it is as it was at the look before."""


def merges_pages() -> bool:
    """Tell whether KSM is at work here."""
    try:
        return (_KSM / "run").read_text().strip() == "1"
    except OSError:
        return False


def wait_for_scans() -> None:
    """Wait until KSM has looked at all pages twice, or not much longer than that takes."""
    end = time.monotonic() + _LONGEST_S
    goal = _scans() + _LOOKS + 1
    while _scans() < goal and time.monotonic() < end:
        time.sleep(0.01)


def _scans() -> int:
    try:
        return int((_KSM / "full_scans").read_text())
    except (OSError, ValueError):
        return 0
