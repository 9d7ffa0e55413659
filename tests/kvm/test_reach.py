"""How far guests reach on the real kernel, and what is tried to find that out."""

import msgspec

from kvm_abi.raw import CData
from vmm.execution.probe import reach
from vmm.execution.probe.features import probe_features
from vmm.execution.runner import run_isolated
from vmm.kvm.system import Kvm
from vmm.scenario.features import Features
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    Execute,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.scenario.plan import out_of_reach
from vmm.verdict.judge import Status, judge

PAGE = PAGE_SIZE_BYTES


def test_guests_reach_as_far_as_slots_do_but_for_what_processors_reserve(kvm: Kvm) -> None:
    features = probe_features(kvm)
    end = (features.last_gfn + 1) * PAGE
    assert REAL_MODE_END < features.touch_limit <= end
    # AMD processors keep 12 GiB below the end, or below 1 TiB.
    assert features.touch_limit >= min(end, 1 << kvm.supported_gpa_bits(), 1 << 40) - (12 << 30)


def _entries(cpuid: CData) -> list[CData]:
    return list(cpuid.entries[0 : cpuid.nent])


def test_the_supported_cpuid_is_changed_in_one_place_only(kvm: Kvm) -> None:
    usual, changed = kvm.supported_cpuid(), kvm.cpuid_with_gpa_bits(39)
    assert usual.nent == changed.nent
    differing = [
        (old.function, new.eax & 0xFF)
        for old, new in zip(_entries(usual), _entries(changed), strict=True)
        if old.eax != new.eax
    ]
    assert differing == [(0x8000_0008, 39)] or kvm.supported_gpa_bits() == 39


def test_a_limit_that_takes_64_bit_mode_is_tried_in_it() -> None:
    # In real mode there is nothing to try.
    assert not reach.reaches(REAL_MODE_END)
    assert reach.reaches(REAL_MODE_END + PAGE)


def test_the_guests_last_page_is_read_written_swept_and_executed(kvm: Kvm) -> None:
    features = probe_features(kvm)
    last = features.touch_limit - PAGE
    scenario = Scenario(
        "last-page",
        (
            SetUserMemoryRegion(1, last, PAGE, Place("a")),
            Touch(last + PAGE - 4, "write", value=5),
            Touch(last + PAGE - 1, width=1),
            Sweep(last, 1024),
            Execute(last),
        ),
        (Mapping("a", 1),),
    )
    assert out_of_reach(scenario, features.touch_limit) == ""
    assert out_of_reach(scenario, features.touch_limit - 1) != ""
    verdict = judge(run_isolated(scenario, features))
    assert (verdict.status, verdict.reason) == (Status.PASSED, "")


def test_surveys_end_where_guests_do() -> None:
    # The same scenario, on a host whose guests have 36 bits: nothing is lost but the touches.
    features = msgspec.structs.replace(Features(), touch_limit=1 << 36)
    region = SetUserMemoryRegion(1, (1 << 36) - PAGE, 2 * PAGE, Place("a"))
    scenario = Scenario("s", (region,), (Mapping("a", 2),))
    history = run_isolated(scenario, features)
    touched = [e.operation.gpa for e in history.events if isinstance(e.operation, Touch)]
    assert touched
    assert max(touched) < 1 << 36
    assert judge(history).status is Status.PASSED
