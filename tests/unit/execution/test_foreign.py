"""What a forked child finds out: the first call that is not EIO."""

import errno
from collections.abc import Callable

import pytest

from kvm_abi.raw import KvmError
from vmm.execution.probe.foreign import _first_not_refused


def refused_with(number: int) -> Callable[[], object]:
    def call() -> None:
        raise KvmError(number, "KVM_GET_DIRTY_LOG", None, "")

    return call


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([refused_with(errno.EIO), refused_with(errno.EIO)], 2),
        ([refused_with(errno.EIO), refused_with(errno.ENOENT)], 1),
        ([lambda: 0, refused_with(errno.EIO)], 0),
    ],
)
def test_the_first_call_is_found_that_is_not_refused_with_eio(
    answers: list[Callable[[], object]], found: int
) -> None:
    assert _first_not_refused({str(index): call for index, call in enumerate(answers)}) == found
