"""What a forked child finds out: the first call that is not EIO."""

import errno
from collections.abc import Callable

import pytest

from kvm_abi.raw import KvmError
from vmm.execution.callers import CallerDiedError
from vmm.execution.probe import child
from vmm.execution.probe.foreign import _first_not_refused
from vmm.scenario.trouble import Trouble


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


def test_a_child_that_something_kills_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(begin: Callable[[str], None], _limit_s: float) -> child.Probed:
        begin("a forked child makes calls on a VM")
        raise CallerDiedError("SIGKILL")

    monkeypatch.setattr(child, "_probed", killed)
    reason = "died: SIGKILL, in the child that was to make the call"
    assert child.probe() == Trouble("a forked child makes calls on a VM", reason=reason)
