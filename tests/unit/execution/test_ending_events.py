"""Eventfds that writes have signalled are free again once they end and are closed."""

import os
from contextlib import ExitStack
from typing import Any

import pytest

from vmm.execution.churn import _Churn


class KeepsEventfds:
    """A VM, as far as eventfds go; ``leaks``: of those that end, each stays."""

    def __init__(self, leaks: bool) -> None:
        self._leaks = leaks
        self.kept: list[int] = []

    def ioeventfd(self, file: int, gpa: int, length: int, *, on: bool = True) -> None:
        if self._leaks and not on:
            self.kept.append(os.dup(file))


@pytest.mark.parametrize("leaks", [False, True])
def test_eventfds_that_stay_are_noted(leaks: bool) -> None:
    vm = KeepsEventfds(leaks)
    anything: Any = None
    churn = _Churn(anything, 1, anything, anything, anything, ExitStack())
    churn._vm = vm  # type: ignore[assignment]
    try:
        churn._end_events()
    finally:
        for file in vm.kept:
            os.close(file)
    assert bool(churn.accepted) is leaks
