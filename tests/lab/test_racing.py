"""Every race fails on a kernel that is wrong now and then, and passes on a correct one.

The faults strike on every n-th occasion, heal by themselves, or strike only if a call comes from
another thread than the vCPU's. That proves that windows are short enough to see a single wrong
answer.
"""

from collections.abc import Iterator

import pytest

from tests.lab.player import Player
from vmm.catalogue import races, races_host, races_logs
from vmm.scenario.features import Features

FAULTS = {
    "racing-delete-and-create": (
        "old-place-seen-for-20-runs:every=5",
        "reused-id-old-page:every=7",
    ),
    "racing-delete-and-create-without-zap-all": ("old-place-seen-for-20-runs:every=5",),
    "racing-move": ("old-place-seen-for-20-runs:every=5", "move-content-lost:every=9"),
    "racing-move-without-zap-all": ("old-place-seen-for-20-runs:every=5",),
    "racing-move-onto-itself": ("new-place-missed-for-20-runs:every=5", "move-late:every=9"),
    "racing-execute": ("old-place-seen-for-20-runs:every=5", "reused-id-old-page:every=5"),
    "racing-mmio-under-churn": ("new-place-missed-for-20-runs:every=5",),
    "racing-neighbours-stay": ("delete-takes-next-gpa:every=20",),
    "racing-two-slots-on-one-page": ("move-content-lost:every=9",),
    "racing-dirty-log": ("dirty-lowest-lost:every=9", "dirty-neighbour-added:every=9"),
    "racing-flags": ("flags-only-unmaps:every=9", "dirty-lowest-lost:every=9"),
    "racing-dirty-log-through-moves": ("dirty-lost-after-move:every=9",),
    "racing-dirty-log-of-huge-pages": ("dirty-highest-lost:every=9",),
    "racing-drop": ("host-change-missed-first-page:every=9",),
    "racing-punch": ("host-change-missed-last-page:every=9",),
    "racing-unmap": ("host-change-missed-last-page:every=9",),
    "racing-protect": ("host-change-missed-first-page:every=9",),
    "racing-write-protect": ("write-protection-missed:every=9", "access-not-given-back:every=9"),
    "racing-two-mappings-of-one-file": (
        "old-place-seen-for-20-runs:every=5",
        "host-change-missed-last-page:every=9",
    ),
    "racing-truncate": ("truncation-missed:every=3", "grown-file-not-seen:every=3"),
    "racing-truncate-and-log": ("truncation-missed:every=5", "dirty-lowest-lost:every=9"),
    "racing-forked-child": ("fork-parts-the-guest:every=3",),
    "racing-forked-child-and-log": ("fork-stops-the-log",),
    "racing-map-over": ("fresh-memory-missed:every=9",),
    "racing-file-over-memory": ("file-over-memory-missed:every=9", "fresh-memory-missed:every=9"),
    "racing-file-over-memory-and-log": (
        "file-over-memory-missed:every=9",
        "dirty-lowest-lost:every=9",
    ),
    "racing-merged-pages": ("merging-parts-the-guest:every=3",),
    "racing-page-out": ("paged-out-is-lost:every=9",),
    "racing-memory-moved-away": ("moving-away-missed:every=3", "moved-back-not-seen:every=3"),
    "racing-memory-moved-away-and-log": ("moving-away-missed:every=3", "moving-back-stops-the-log"),
    "racing-pages-fetched-later": (
        "fetching-parts-the-guest:every=3",
        "fetched-last-page-not-seen:every=3",
    ),
    "racing-guarded-pages": ("guard-not-set:every=3", "guarding-parts-the-guest:every=3"),
    "racing-migrating": ("old-place-seen-for-20-runs:every=5",),
    "racing-clocks-through-moves": ("clock-not-logged-beside-a-vcpu", "clock-stays-after-move"),
    "racing-clocks-and-host-memory": ("clock-writes-beyond:every=9", "clock-after-deletion"),
    "racing-closed-guest-memfd": ("memfd-delete-refused:every=3",),
    "racing-punched-guest-memfd": ("memfd-punch-refused:every=9",),
    "racing-slots-and-unmap": ("old-place-seen-for-20-runs:every=5",),
    "racing-slots-logs-and-drop": ("dirty-lowest-lost:every=9", "delete-lost:every=9"),
    "racing-clear": ("clear-lowest-kept:every=9", "log-of-a-running-vcpu-lacks-lowest:every=9"),
    "racing-clear-parts": ("clear-to-the-end:every=5", "clear-beside-a-vcpu-clears-all"),
    "racing-initially-set": ("initially-set-ignored", "dirty-highest-lost:every=9"),
    "racing-initially-set-of-huge-pages": ("log-of-a-running-vcpu-lacks-lowest:every=9",),
    "racing-ring": ("ring-page-wrong:every=10", "ring-reset-beside-a-vcpu-one-more"),
    "racing-ring-through-moves": ("ring-slot-wrong:every=50",),
    "racing-ring-delete-and-create": ("ring-slot-wrong:every=50",),
    "racing-ring-flags": ("ring-page-wrong:every=10", "ring-reset-beside-a-vcpu-blinds"),
    "racing-ring-full": ("ring-seems-full", "ring-page-wrong:every=100"),
    "racing-ring-full-and-harvested": ("ring-reset-one-less:every=9",),
    "racing-ring-under-load": ("ring-reset-beside-a-vcpu-one-more", "ring-reset-lost"),
}
"""For each race, what it must see."""


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with Player() as process:
        yield process


@pytest.mark.parametrize(
    ("scenario", "fault"), [(name, fault) for name in FAULTS for fault in FAULTS[name]]
)
def test_race_sees_what_is_wrong(scenario: str, fault: str, player: Player) -> None:
    verdicts = player.shows(fault, scenario)
    assert verdicts[-1].startswith("differs "), verdicts


def test_every_race_is_in_the_table() -> None:
    every = (*races.SCENARIOS, *races_host.SCENARIOS, *races_logs.scenarios(Features()))
    # What needs private memory runs on no kernel that is here below the library.
    here = {s.name for s in every if "sw_protected" not in s.needs}
    assert here == set(FAULTS)


@pytest.mark.parametrize(
    "scenario", ["racing-execute", "racing-slots-logs-and-drop", "racing-clear", "racing-ring-full"]
)
def test_without_a_fault_the_race_passes(scenario: str, player: Player) -> None:
    assert player.play("-", scenario) == "passed -"
