"""Outcomes in words: what is wrong of much is said, and little else."""

from vmm.scenario.history import AnyOutcome, HostChange, Inspected
from vmm.scenario.outcomewords import amiss, outcome

ZEROS = bytes(0x1000)


def told(observed: Inspected, *allowed: AnyOutcome) -> str:
    return amiss(observed, allowed)


def test_one_wrong_byte_of_a_page_is_named() -> None:
    right = ZEROS[:0x200] + b"\1" + ZEROS[0x201:]
    seen, wanted = (Inspected((HostChange("a", 0x1000, data),)) for data in (ZEROS, right))
    assert outcome(seen) == "changed: a+0x1000 (page 1) = 00 x4096"
    assert outcome(wanted).endswith(f" = {'00' * 16}... (4096 bytes)")
    assert told(seen, wanted) == "; wrong: a+0x1200 00 instead of 01"


def test_what_changed_and_what_did_not_are_told_apart() -> None:
    seen = Inspected((HostChange("a", 0, b"\1\2"), HostChange("b", 0x10, b"\7")))
    wanted = Inspected((HostChange("a", 1, b"\2\3\4"),))
    assert told(seen, wanted) == (
        "; wrong: a+0x0 01 instead of unchanged, a+0x2 unchanged instead of 0304, "
        "b+0x10 07 instead of unchanged"
    )
    assert told(seen, seen) == ""


def test_bytes_that_kvm_may_write_are_never_wrong() -> None:
    seen = Inspected((HostChange("a", 0, b"\1\2\3"),))
    assert told(seen, Inspected((), room=(("a", 0, 2),))) == (
        "; wrong: a+0x2 03 instead of unchanged"
    )
    assert told(seen, Inspected((), room=(("a", 0, 3),))) == ""


def test_no_word_of_memory_is_wider_than_a_mail() -> None:
    for size in (1, 4, 5, 31, 32, 33, 70, 5000):
        for data in (bytes(size), bytes(each % 251 for each in range(size))):
            text = outcome(Inspected((HostChange("a", 0, data),)))
            assert max(map(len, text.split())) <= 70
