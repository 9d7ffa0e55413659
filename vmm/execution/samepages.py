"""KSM, which merges equal pages (Documentation/admin-guide/mm/ksm.rst)."""

import time
from pathlib import Path

_KSM = Path("/sys/kernel/mm/ksm")
_LONGEST_S = 2.0
_LOOKS = 2
"""KSM merges a page only if it did not change since the scan before."""


def merges_pages() -> bool:
    """Whether KSM is running."""
    try:
        return (_KSM / "run").read_text().strip() == "1"
    except OSError:
        return False


def wait_for_scans() -> None:
    """Wait until KSM has scanned all pages twice, or until that should have happened."""
    end = time.monotonic() + _LONGEST_S
    goal = _scans() + _LOOKS + 1
    while _scans() < goal and time.monotonic() < end:
        time.sleep(0.01)


def _scans() -> int:
    try:
        return int((_KSM / "full_scans").read_text())
    except (OSError, ValueError):
        return 0
