"""What a kernel can do in a VM of a type: KVM_CHECK_EXTENSION on the VM is what counts."""

import errno

import msgspec
import pytest

from vmm.model.model import Model
from vmm.scenario.features import Features, PerVm, check_features
from vmm.scenario.history import Refused
from vmm.scenario.operations import (
    GetDirtyLog,
    Mapping,
    Place,
    SetUserMemoryRegion,
)
from vmm.scenario.problem import ScenarioError
from vmm.verdict.ideal import EVERYTHING

OLD = msgspec.structs.replace(EVERYTHING, protected=None)
ANSWERS = PerVm(readonly_mem=False, guest_memfd_flags=1, pre_fault=True)
ASKED = msgspec.structs.replace(EVERYTHING, guest_memfd=False, protected=ANSWERS)
SLOT = SetUserMemoryRegion(1 << 16 | 1, 0x10000, 0x1000, Place("a"))


@pytest.mark.parametrize("features", [OLD, ASKED])
def test_a_vm_with_private_memory_has_one_address_space(features: Features) -> None:
    assert (features.address_spaces, features.smm) == (2, True)
    assert (features.of_vm(1).address_spaces, features.of_vm(1).smm) == (1, False)
    assert features.of_vm(0) is features


def test_what_the_vm_answers_is_what_it_has() -> None:
    has = ASKED.of_vm(1)
    assert not has.readonly_mem
    assert has.guest_memfd
    assert (has.guest_memfd_flags, has.pre_fault, has.memory_attributes) == (1, True, 8)
    assert has.nr_memslots == ASKED.nr_memslots


def test_a_kernel_may_give_such_a_vm_two_address_spaces() -> None:
    two = msgspec.structs.replace(ASKED, protected=PerVm(address_spaces=2))
    assert (two.of_vm(1).address_spaces, two.of_vm(1).smm) == (2, True)


@pytest.mark.parametrize("operation", [SLOT, GetDirtyLog(1 << 16 | 1)])
def test_the_other_address_space_is_einval_there(
    operation: SetUserMemoryRegion | GetDirtyLog,
) -> None:
    (choice,) = Model((Mapping("a", 1),), ASKED, 1).allowed(operation)
    assert choice.outcome == Refused(errno.EINVAL)
    (choice,) = Model((Mapping("a", 1),), ASKED, 0).allowed(operation)
    assert choice.outcome != Refused(errno.EINVAL)


def test_what_is_missing_depends_on_the_type() -> None:
    assert ASKED.missing(("smm", "sw_protected")) == ""
    lacking = ASKED.missing(("smm", "sw_protected"), 1)
    assert lacking.startswith("KVM_CAP_X86_SMM")
    assert lacking.endswith("in a VM of type KVM_X86_SW_PROTECTED_VM")
    assert ASKED.missing(("guest_memfd",)) == "KVM_CAP_GUEST_MEMFD"
    assert ASKED.missing(("guest_memfd",), 1) == ""


def test_what_no_kernel_answers_is_refused_there_too() -> None:
    wrong = msgspec.structs.replace(ASKED, protected=PerVm(address_spaces=1 << 40))
    with pytest.raises(ScenarioError, match=r"\$\.features\.protected\.address_spaces"):
        check_features(wrong)
    check_features(ASKED)
    check_features(OLD)
