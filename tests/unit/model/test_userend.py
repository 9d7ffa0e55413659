import errno

import pytest

from vmm.model.allowed import Allowed
from vmm.model.rule import source
from vmm.model.userend import HVA_NONCANONICAL, UserEnd
from vmm.scenario.history import AnyOutcome, Done, Refused

PAGE = 0x1000
END = 0x7FFF_FFFF_F000
FIVE_LEVELS = (1 << 56) - PAGE
REFUSED = Refused(errno.EINVAL)
CREATED = Allowed(Done(), source("create", "a slot is created", "here"))


def outcomes(end: UserEnd, hva: int, pages: int) -> set[AnyOutcome]:
    """Return what a creation may come to."""
    return {each.outcome for each in end.allowed(hva, pages * PAGE, CREATED, REFUSED)}


def see(end: UserEnd, hva: int, pages: int, outcome: AnyOutcome) -> None:
    """Let a kernel give an answer."""
    allowed = end.allowed(hva, pages * PAGE, CREATED, REFUSED)
    [chosen] = [each for each in allowed if each.outcome == outcome]
    chosen.adopt()


@pytest.mark.parametrize(("hva", "pages"), [(0, 1), (END - PAGE, 1), (END - 4 * PAGE, 4)])
def test_what_ends_below_is_nothing_special(hva: int, pages: int) -> None:
    assert UserEnd().allowed(hva, pages * PAGE, CREATED, REFUSED) == (CREATED,)


@pytest.mark.parametrize(
    ("hva", "pages"), [(END, 1), (END - PAGE, 2), (1 << 56, 1), ((1 << 63) - 2 * PAGE, 1)]
)
def test_kernels_differ_above(hva: int, pages: int) -> None:
    assert outcomes(UserEnd(), hva, pages) == {Done(), REFUSED}


def test_one_kernel_does_not_differ_from_itself() -> None:
    end = UserEnd()
    see(end, END, 1, REFUSED)
    assert outcomes(end, END - PAGE, 2) == {REFUSED}
    assert outcomes(end, FIVE_LEVELS, 1) == {REFUSED}
    assert outcomes(end, END - PAGE, 1) == {Done()}


def test_with_five_levels_more_is_user_memory() -> None:
    end = UserEnd()
    see(end, FIVE_LEVELS - PAGE, 1, Done())
    see(end, FIVE_LEVELS, 1, REFUSED)
    assert outcomes(end, END, 1) == {Done()}
    assert outcomes(end, FIVE_LEVELS - PAGE, 2) == {REFUSED}


def test_a_call_that_is_refused_anyway_teaches_nothing() -> None:
    end = UserEnd()
    refused = Allowed(REFUSED, CREATED.rule)
    for allowed in end.allowed(END, PAGE, refused, REFUSED):
        assert allowed.outcome == REFUSED
        allowed.adopt()
    assert outcomes(end, END, 1) == {Done(), REFUSED}
    assert {each.rule for each in end.allowed(END, PAGE, refused, REFUSED)} == {
        HVA_NONCANONICAL,
        CREATED.rule,
    }
