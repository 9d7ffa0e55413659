"""What a scenario may say of priorities and assist pages, and in which words it is told."""

import pytest

from vmm.scenario.operations import AnyOperation, Guest, Scenario, SetApic, SetPageMsr, SetVapicAddr
from vmm.scenario.problem import ScenarioError
from vmm.scenario.validate import validate
from vmm.scenario.words import operation


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (SetVapicAddr(0xFFFF_0000), "the guest's own memory"),
        (SetVapicAddr((1 << 52) - 3), "52 bits"),
        (SetVapicAddr(-4), "52 bits"),
        (SetVapicAddr(0, vcpu=1), "vcpus allows"),
        (SetApic(priority=256), "not within 0 to 0xff"),
        (SetApic(priority=-1), "not within 0 to 0xff"),
        (SetApic(vcpu=1), "vcpus allows"),
        (SetPageMsr("pv_eoi", 0x1001), "a multiple of 0x2"),
        (SetPageMsr("assist_page", 0x1800), "a multiple of 0x1000"),
        (SetPageMsr("async_pf", 0x1820), "a multiple of 0x40"),
        (SetPageMsr("assist_page", 0xFFFF_0000), "the guest's own memory"),
        (SetPageMsr("pv_eoi", 1 << 52), "52 bits"),
    ],
)
def test_what_is_not_safe_or_means_nothing_is_refused(wrong: AnyOperation, says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        validate(Scenario("vapic", (wrong,)))


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (SetVapicAddr(0x1000), "vCPU 0: KVM_SET_VAPIC_ADDR(0x1000)"),
        (SetApic(), "vCPU 0: KVM_SET_LAPIC(enabled by software)"),
        (SetApic(False, 0x30), "vCPU 0: KVM_SET_LAPIC(disabled by software, TPR=0x30)"),
        (SetPageMsr("pv_eoi", 0x1000), "vCPU 0: KVM_SET_MSRS(MSR_KVM_PV_EOI_EN = 0x1000 | 1)"),
        (SetPageMsr("async_pf", 0x1000), "vCPU 0: KVM_SET_MSRS(MSR_KVM_ASYNC_PF_EN = 0x1000 | 9)"),
        (
            SetPageMsr("assist_page", 0x1000, on=False),
            "vCPU 0: KVM_SET_MSRS(HV_X64_MSR_VP_ASSIST_PAGE = 0)",
        ),
    ],
)
def test_words(op: AnyOperation, words: str) -> None:
    validate(Scenario("vapic", (op,)))
    assert operation(op) == words


def test_what_names_no_memory_is_not_in_the_way_of_the_guest() -> None:
    guest = Guest(gpa=0)
    off = (SetVapicAddr(0), SetPageMsr("pv_eoi", 0, on=False))
    validate(Scenario("vapic", off, guest=guest))
    for op in (SetVapicAddr(4), SetPageMsr("pv_eoi", 0)):
        with pytest.raises(ScenarioError, match="the guest's own memory"):
            validate(Scenario("vapic", (op,), guest=guest))
