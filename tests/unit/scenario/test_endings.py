"""Why a history ends before its scenario does."""

import errno

from vmm.scenario.endings import is_short, of_the_host


def test_what_has_no_words_of_its_own_gets_some() -> None:
    assert of_the_host(MemoryError()) == "the host: out of memory"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert of_the_host(full) == "the host: [Errno 28] No space left on device"


def test_only_what_runs_out_is_the_hosts() -> None:
    assert is_short(MemoryError())
    assert is_short(OSError(errno.EMFILE, ""))
    assert not is_short(OSError(errno.EINVAL, ""))
    assert not is_short(ValueError())
