"""What of several changes needs no kernel."""

import errno
import os
from collections.abc import Iterator

import pytest

from kvm_abi import raw
from kvm_abi.raw import RegionsError
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.regions import Region, Regions
from vmm.kvm.vm import Vm


@pytest.fixture
def other() -> Iterator[Vm]:
    """A VM whose file is none of KVM's."""
    with Vm(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), 4096) as vm:
        yield vm


def test_the_first_is_refused(other: Vm) -> None:
    with pytest.raises(RegionsError, match=r"ENOTTY .*, as number 1 of 2") as refused:
        other.set_user_memory_regions([Region(slot=0), Region(slot=1)])
    assert (refused.value.errno, refused.value.done) == (errno.ENOTTY, 0)
    other.set_user_memory_regions([])


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        (Region(1 << 32), OverflowError, "slot=4294967296"),
        (Region(0, flags=-1), OverflowError, "flags=-1"),
        (Region(0, memory_size=1 << 64), OverflowError, "memory_size="),
        (Region(0, guest_phys_addr="0"), TypeError, "guest_phys_addr='0'"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_does_not_fit_is_named(
    change: Region, error: type[Exception], field: str, other: Vm
) -> None:
    with pytest.raises(error, match=field):
        Regions([Region(0), change])
    with pytest.raises(error, match=field):
        other.set_user_memory_region(*change)


def test_an_address_is_inside_its_mapping() -> None:
    with HostMapping.anonymous(4096) as memory:
        with pytest.raises(ValueError, match="is outside"):
            Regions([Region(0, 0, 0, 4096, HostAddress(memory, 8192))])
        with pytest.raises(TypeError, match="is no address"):
            Regions([Region(0, 0, 0, 4096, memory)])  # type: ignore[arg-type]


def test_what_is_no_refusal_of_kvm_says_which_it_was() -> None:
    error = raw.regions_error(1, (3, 0, 0, 0, 0), 1, 4)
    assert not isinstance(error, RegionsError)
    assert getattr(error, "__notes__", None) == ["It was number 2 of 4."]


def test_a_wrong_number_of_arguments_is_said() -> None:
    with pytest.raises(TypeError, match="takes 6 arguments, not 2"):
        raw.issue_region(0, 1)  # type: ignore[call-arg]


@pytest.mark.parametrize(("npages", "fill"), [(0, bytes(8)), (-1, bytes(8)), (1, b"x")])
def test_a_bitmap_that_the_kernel_would_write_beyond_is_refused(
    npages: int, fill: bytes, other: Vm
) -> None:
    with pytest.raises(ValueError, match="1 page or more"):
        other.get_dirty_log(0, npages, fill)
