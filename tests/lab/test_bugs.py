"""Each scenario that claims to show a historic bug fails on a wrong kernel that imitates the bug.

The wrong kernel answers as the buggy one did, which proves that the scenario looks there.
"""

from collections.abc import Iterator

import pytest

from tests.lab.player import Player
from tests.turns import marks_of
from vmm.catalogue.history import BUGS

IMITATED = {
    ("efbeec7098ee", "delete-then-create-at-gpa-0"): "gpa-0-lost",
    ("efbeec7098ee", "create-at-gpa-0"): "gpa-0-lost",
    ("edd4fa37baa6", "move-out-of-huge-page-alignment"): "move-unaligned-shifts",
    ("edd4fa37baa6", "move-into-huge-page-alignment"): "move-unaligned-shifts",
    ("0774a964ef56", "delete-from-the-lowest-gfn-up"): "delete-leaves-memory",
    ("0774a964ef56", "delete-the-slot-looked-up-last"): "delete-leaves-memory",
    ("0774a964ef56", "delete-from-the-highest-gfn-down"): "delete-highest-hides-next",
    ("e0135a104c52", "delete-whatever-the-hva"): "delete-other-hva-refused",
    ("fa3d315a4ce2", "refuse-a-kernel-hva"): "kernel-hva-accepted",
    ("fa3d315a4ce2", "refuse-a-kernel-hva-on-deletion"): "delete-hva-unchecked",
    ("f0736cf0550b", "delete-absent"): "absent-delete-accepted",
    ("f0736cf0550b", "delete-twice"): "absent-delete-accepted",
    ("12d6e7538e2d", "move-up"): "move-leaves-alias",
    ("12d6e7538e2d", "vcpus-move-after-cached-memory"): "move-leaves-alias",
    ("75d61fbcf563", "refuse-readonly-on"): "readonly-toggle-done",
    ("75d61fbcf563", "refuse-readonly-off"): "readonly-toggle-done",
    ("6fe639792c7b", "refuse-a-slot-id-beyond-the-last"): "id-beyond-end-accepted",
    ("152482580a1b", "racing-mmio-under-churn"): "create-late",
    ("152482580a1b", "vcpus-create-after-cached-mmio"): "create-missed-by-first-run",
    ("152482580a1b", "mmio-then-memory-then-mmio"): "create-late",
    ("76d58e0f07ec", "clear-grid-of-65-pages"): "clear-end-refused",
    ("76d58e0f07ec", "clear-grid-of-130-pages"): "clear-end-refused",
    ("76d58e0f07ec", "clear-errors-of-ranges"): "clear-beyond-accepted",
    ("7cd1bf039eeb", "clear-within-huge-pages-thp-initially-set"): "cleared-for-ever",
    ("7cd1bf039eeb", "clear-within-huge-pages-thp"): "cleared-for-ever",
    ("d012a06ab1d2", "racing-delete-and-create-without-zap-all"): "delete-leaves-memory",
    ("d012a06ab1d2", "racing-move-without-zap-all"): "move-leaves-alias",
    ("d012a06ab1d2", "delete-then-create-there-with-other-memory"): "reused-id-old-page",
    ("d012a06ab1d2", "move-then-create-at-the-old-place"): "move-leaves-alias",
    ("9935df5333aa", "memfd-slot-cannot-become-one"): "memfd-toggle-accepted",
    ("9935df5333aa", "memfd-slot-cannot-change"): "memfd-change-accepted",
    ("530a8ba71b4c", "racing-ring-under-load"): "ring-reset-beside-a-vcpu-one-more",
    ("910c57dfa4d1", "instructions-are-logged"): "atomic-not-logged",
    (
        "910c57dfa4d1",
        "instructions-that-compare-unequal-are-logged",
    ): "compared-unequal-not-logged",
    ("b60fe990c6b0", "devices-coalesced-ring-set-by-the-host"): "mmio-write-swallowed",
    (
        "c87661f855c3",
        "nothing-used-up-by-refused-creations",
    ): "creation-beyond-last-gfn-leaks-its-log",
}
"""The fault that imitates a bug, by the bug's first commit and the scenario."""

NOT_IMITATED = {
    ("e0135a104c52", "apic-page-then-a-slot-over-it"): "takes an internal slot",
    ("103c763c72dd", "other-vms-killed-while-closing"): "takes an internal slot",
    ("6fe639792c7b", "tss-with-a-full-table"): "takes an internal slot",
    ("7cd1bf039eeb", "clear-within-huge-pages-hugetlb"): "takes reserved huge pages",
    ("3ccbf6f47098", "racing-pre-fault-and-delete"): "takes KVM_CAP_PRE_FAULT_MEMORY",
    ("20a6cff3b283", "pre-fault-again-after-a-deletion"): "takes KVM_CAP_PRE_FAULT_MEMORY",
    ("b3e6212dea2e", "spaces-switched-between-changes"): "takes system management mode",
    ("817fa998362d", "spaces-execute-on-huge-pages"): "takes system management mode",
    (
        "fcd1ec9cb59c",
        "start-on-tables-that-are-left-without-a-slot-without-quirk",
    ): "takes shadow pages of the guest's page tables",
    (
        "fcd1ec9cb59c",
        "start-after-tables-of-other-memory-came-without-quirk",
    ): "takes shadow pages of the guest's page tables",
    ("fda4e2e85589", "vapic-at-the-ends-of-pages-and-slots"): "takes what KVM writes by itself",
    ("52ac8b358b0c", "racing-slots-and-unmap"): "takes a vCPU that hangs; the time limit ends it",
}
"""What the wrong kernel cannot imitate, and why."""


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with Player() as process:
        yield process


@pytest.mark.parametrize(
    ("bug", "scenario"),
    [pytest.param(bug, name, marks=marks_of(name)) for bug, name in IMITATED],
)
def test_scenario_shows_the_bug(bug: str, scenario: str, player: Player) -> None:
    assert player.play("-", scenario) == "passed -"
    verdicts = player.shows(IMITATED[bug, scenario], scenario)
    assert verdicts[-1].startswith("differs "), verdicts


def test_every_scenario_of_every_bug_is_looked_at() -> None:
    said = {(bug.commits[0], shown.scenario) for bug in BUGS for shown in bug.shown_by}
    assert said == {*IMITATED, *NOT_IMITATED}
