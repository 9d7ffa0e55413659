"""guest_memfds and memory attributes in a trace whose structures were read."""

import pytest

from tests.traced import EFAULT, EINVAL, ENOENT, ENOTTY, KVM, region, replay_in, trace_of
from vmm.replay.build import Replay
from vmm.replay.judging import judged
from vmm.scenario.operations import (
    ChangeHostMemory,
    CloseGuestMemfd,
    CreateGuestMemfd,
    MapGuestMemfd,
    Mapping,
    NewVm,
    Place,
    PreFaultMemory,
    PunchGuestMemfd,
    SetMemoryAttributes,
    SetUserMemoryRegion2,
)
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status

PRIVATE_VM = KVM.replace("CREATE_VM, 0", "CREATE_VM, 0x1")
SNP_VM = KVM.replace("CREATE_VM, 0", "CREATE_VM, 0x4")
NEWER = "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY2) = 1"
SUPPORTED = "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_ATTRIBUTES) = 8"
EBADF = "-1 EBADF (Bad file descriptor)"
EOPNOTSUPP = "-1 EOPNOTSUPP (Operation not supported)"
OVERLAP = "-1 EEXIST (File exists)"
ANY = region(5, 0x90000)
CLOSED = "7 close(9) = 0"
OTHER_CLOSED = "7 close(40) = 0"


def made(size: int = 0x4000, flags: int = 0, result: str = "9", fd: int = 8) -> str:
    fields = f"{{size={size}, flags={flags:#x}}}"
    return f"7 ioctl({fd}, KVM_CREATE_GUEST_MEMFD, {fields}) = {result}"


def bound(
    slot: int = 0,
    gpa: int = 0x10000,
    offset: int = 0,
    result: str = "0",
    memfd: int = 9,
    fd: str = "8",
) -> str:
    flags, name = "KVM_MEM_GUEST_MEMFD", "KVM_SET_USER_MEMORY_REGION2"
    line = region(slot, gpa, 0x2000, flags=flags, result=result, name=name, fd=fd)
    return line.replace("}", f", guest_memfd_offset={offset:#x}, guest_memfd={memfd}}}")


def private(
    gpa: int = 0x10000, size: int = 0x1000, attributes: int = 8, flags: int = 0, result: str = "0"
) -> str:
    fields = f"{{address={gpa:#x}, size={size}, attributes={attributes:#x}, flags={flags:#x}}}"
    return f"7 ioctl(8, KVM_SET_MEMORY_ATTRIBUTES, {fields}) = {result}"


def punched(offset: int, size: int, mode: str = "KEEP_SIZE|PUNCH_HOLE", result: str = "0") -> str:
    flags = "|".join(f"FALLOC_FL_{each}" for each in mode.split("|"))
    return f"7 fallocate(9, {flags}, {offset}, {size}) = {result}"


def in_private_vm(*lines: str) -> Replay:
    return replay_in(PRIVATE_VM, NEWER, SUPPORTED, ANY, *lines)


@pytest.mark.parametrize(
    "lines",
    [
        (made(), bound(), bound(1, 0x20000, 0x2000)),
        (made(), bound(), bound(1, 0x20000, 0x1000, OVERLAP)),
        (made(), bound(), bound(1, 0x20000, 0x1000, EINVAL)),
        (made(), bound(0, 0x10000, 0x3000, EINVAL)),
        (made(0x1001, 0, EINVAL), made(0, 0, EINVAL)),
        (made(), "7 dup(9) = 10", CLOSED, bound(memfd=10), bound(1, 0x20000, 0x2000, EBADF)),
        (made(), bound(), CLOSED, bound(1, 0x20000, 0, EBADF), region(0, size=0)),
        (made(), bound(), "7 close_range(3, 4294967295, 0) = 0", bound(1, 0x20000, 0, EBADF)),
        (made(), bound(memfd=8, result=EINVAL), bound()),
        ('7 memfd_create("m", 0) = 12', bound(memfd=12, result=EINVAL)),
        (bound(memfd=-1, result=EBADF),),
        (made(), bound(), punched(0, 0x1000), punched(1, 0x1000, result=EINVAL)),
        (made(), punched(0, 0x1000, "PUNCH_HOLE", EOPNOTSUPP), punched(0x3000, 0x4000)),
        (private(), private(attributes=0), private(0, 0x1000 << 12)),
        (private(1, result=EINVAL), private(size=0, result=EINVAL)),
        (private(attributes=1, result=EINVAL), private(flags=1, result=EINVAL)),
    ],
)
def test_what_kvm_promises_of_private_memory_passes(lines: tuple[str, ...]) -> None:
    made_of = in_private_vm(OTHER_CLOSED, *lines)
    validate(made_of.built.scenario)
    assert (made_of.built.scenario.vm_type, "sw_protected" in made_of.built.scenario.needs) == (
        1,
        True,
    )
    found = judged(made_of)
    assert (found.verdict.status, found.assumed) == (Status.PASSED, ()), found


@pytest.mark.parametrize(
    "lines",
    [
        (made(), bound(), bound(1, 0x20000, 0x1000)),
        (made(), bound(), bound(1, 0x20000, 0x2000, EINVAL)),
        (made(), bound(0, 0x10000, 0x3000)),
        (made(), bound(result=EBADF)),
        (made(0x1001),),
        (made(result=EINVAL),),
        (made(), CLOSED, bound(memfd=-1)),
        (made(), bound(memfd=8)),
        (made(), bound(), CLOSED, region(0, size=0), region(0, size=0, gpa=0)),
        (made(), bound(), punched(1, 0x1000)),
        (made(), punched(0, 0x1000, result=EINVAL)),
        (made(), punched(0x3000, 0x2000, "KEEP_SIZE")),
        (private(result=EINVAL),),
        (private(result=ENOTTY),),
        (private(1),),
        (private(attributes=1),),
    ],
)
def test_what_kvm_does_not_promise_of_it_differs_in_its_line(lines: tuple[str, ...]) -> None:
    found = judged(in_private_vm(OTHER_CLOSED, *lines))
    assert (found.verdict.status, found.assumed) == (Status.DIFFERS, ()), found
    assert found.line is not None
    assert found.line.number == len(lines) + 5


ENODEV = "-1 ENODEV (No such device)"
FLAGS = "7 ioctl(8, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS) = 3"
SHARED_HVA = "0x7f0000000000"


def mapped(
    result: str = SHARED_HVA, kind: str = "MAP_SHARED", size: int = 0x4000, rest: str = "NULL"
) -> str:
    return f"7 mmap({rest}, {size}, PROT_READ|PROT_WRITE, {kind}, 9, 0) = {result}"


@pytest.mark.parametrize(
    "lines",
    [
        (made(flags=3), mapped(), mapped(EINVAL, "MAP_PRIVATE")),
        (made(flags=1), mapped(kind="MAP_SHARED|MAP_NORESERVE")),
        (made(), mapped(ENODEV), mapped(ENODEV, "MAP_PRIVATE")),
        (made(flags=3), mapped(rest="0x7f0000000000", kind="MAP_SHARED|MAP_FIXED")),
        (made(flags=3), mapped().replace("9, 0)", "9, 0x2000)")),
        (made(), mapped(ENODEV, rest="0x10000").replace("9, 0)", "9, 0x1000)")),
        (made(), mapped(EINVAL, rest="0x1"), mapped("-1 ENOMEM (Cannot allocate memory)")),
        (
            made(flags=3),
            mapped(),
            bound(),
            punched(0, 0x1000),
            "7 munmap(0x7f0000000000, 16384) = 0",
        ),
    ],
)
def test_a_guest_memfd_is_mapped_as_its_flags_say(lines: tuple[str, ...]) -> None:
    made_of = replay_in(KVM, NEWER, FLAGS, OTHER_CLOSED, *lines, ANY)
    validate(made_of.built.scenario)
    found = judged(made_of)
    assert (found.verdict.status, found.assumed) == (Status.PASSED, ()), found


@pytest.mark.parametrize(
    "lines",
    [
        (made(flags=3), mapped(ENODEV)),
        (made(flags=3), mapped(kind="MAP_PRIVATE")),
        (made(flags=2), mapped()),
        (made(), mapped(EINVAL)),
        (made(), mapped(EINVAL).replace("9, 0)", "9, 0x1000)")),
        (made(flags=3), mapped(kind="MAP_PRIVATE|MAP_FIXED", rest="0x7f0000000000")),
    ],
)
def test_a_mapping_of_it_that_should_not_be_differs_in_its_line(lines: tuple[str, ...]) -> None:
    found = judged(replay_in(KVM, NEWER, FLAGS, OTHER_CLOSED, *lines, ANY))
    assert found.verdict.status is Status.DIFFERS, found
    assert found.line is not None
    assert found.line.number == 6


def test_memory_that_shows_a_guest_memfd_does_so_here() -> None:
    begin = region(0, hva=0x7F0000001000, flags="KVM_MEM_GUEST_MEMFD", size=0x2000)
    begin = begin.replace("REGION,", "REGION2,")
    begin = begin.replace("}", ", guest_memfd_offset=0x1000, guest_memfd=9}")
    replayed = replay_in(KVM, NEWER, made(flags=3), mapped(), begin)
    validate(replayed.built.scenario)
    assert replayed.built.scenario.mappings == (Mapping("m0", 3, "guest_memfd"),)
    _, shown, slot = replayed.built.scenario.operations
    assert shown == MapGuestMemfd("guest_memfd 1", "m0")
    assert isinstance(slot, SetUserMemoryRegion2)
    assert slot.userspace_addr == Place("m0", 0x1000)


def test_a_mapping_from_an_offset_shows_the_rest_of_it_here() -> None:
    begin = region(0, hva=0x7F0000000000, flags="KVM_MEM_GUEST_MEMFD", size=0x2000)
    begin = begin.replace("REGION,", "REGION2,")
    begin = begin.replace("}", ", guest_memfd_offset=0x2000, guest_memfd=9}")
    shown = mapped(size=0x2000).replace("9, 0)", "9, 0x2000)")
    replayed = replay_in(KVM, NEWER, made(flags=3), shown, begin, shown)
    validate(replayed.built.scenario)
    assert replayed.built.scenario.mappings == (Mapping("m0", 4, "guest_memfd"),)
    *_, slot, again = replayed.built.scenario.operations
    assert isinstance(slot, SetUserMemoryRegion2)
    assert slot.userspace_addr == Place("m0", 0x2000)
    assert again == MapGuestMemfd("guest_memfd 1", "m0")
    assert replayed.built.notes == ()


def test_a_guest_memfd_over_the_memory_of_a_slot_is_other_memory_here() -> None:
    over = mapped(rest=SHARED_HVA, kind="MAP_SHARED|MAP_FIXED")
    replayed = replay_in(KVM, NEWER, FLAGS, region(0), made(flags=3), over)
    validate(replayed.built.scenario)
    assert judged(replayed).verdict.status is Status.PASSED
    *_, change = replayed.built.scenario.operations
    assert change == ChangeHostMemory(Place("m0"), 2, "map")
    assert replayed.built.notes == ("a mapping of a guest_memfd is memory of another file here",)


def test_what_no_operation_is_like_is_said_to_be_so() -> None:
    lines = (made(flags=3), mapped("-1 EAGAIN (Resource temporarily unavailable)"))
    trace = trace_of(KVM, NEWER, FLAGS, *lines, ANY)
    assert dict(trace.passed_over) == {"mmap of a guest_memfd, which no operation is like": 1}


def test_a_guest_memfd_that_no_slot_shows_is_mapped_aside() -> None:
    replayed = replay_in(KVM, NEWER, made(0x8000, 3), mapped("0x7e0000000000"), ANY)
    validate(replayed.built.scenario)
    assert replayed.built.scenario.mappings[-1] == Mapping("shown0", 4, "guest_memfd")


def test_two_mappings_of_one_guest_memfd_are_not_both_shown_here() -> None:
    second = mapped("0x7e0000000000")
    lines = (region(0), region(1, 0x20000, hva=0x7E0000000000))
    replayed = replay_in(KVM, NEWER, made(flags=3), mapped(), second, *lines)
    validate(replayed.built.scenario)
    assert [each.kind for each in replayed.built.scenario.mappings] == ["guest_memfd", "memfd"]
    assert replayed.built.notes == ("a mapping of a guest_memfd is memory of another file here",)


VCPU = "7 ioctl(8, KVM_CREATE_VCPU, 0) = 20"


def ahead(gpa: int = 0x10000, size: int = 0x2000, flags: int = 0, result: str = "0") -> str:
    fields = f"{{gpa={gpa:#x}, size={size}, flags={flags:#x}}}"
    return f"7 ioctl(20, KVM_PRE_FAULT_MEMORY, {fields}) = {result}"


@pytest.mark.parametrize(
    "lines",
    [
        (ahead(), ahead(size=0x1000), ahead(0x11000, 0x10000)),
        (ahead(result=EFAULT), ahead(0x40000, result=ENOENT)),
        (ahead(flags=1, result=EINVAL), ahead(1, result=EINVAL), ahead(size=0, result=EINVAL)),
        (ahead(0xFEE00000), ahead(result="-1 EINTR (Interrupted system call)")),
        (region(0, size=0), ahead(result=ENOENT), ahead(0x20000)),
    ],
)
def test_what_is_mapped_ahead_may_end_like_this(lines: tuple[str, ...]) -> None:
    found = judged(replay_in(KVM, CAN_PRE_FAULT, region(), region(1, 0x20000), VCPU, *lines))
    assert found.verdict.status in (Status.PASSED, Status.INCONCLUSIVE), found
    assert (found.verdict.status is Status.PASSED) == ("EINTR" not in lines[-1])
    assert not found.assumed


CAN_PRE_FAULT = "7 ioctl(8, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) = 1"


@pytest.mark.parametrize(
    "line",
    [
        *(ahead(result=ENOENT), ahead(0x40000), ahead(flags=1), ahead(0x10001), ahead(size=0)),
        *(ahead(result=EINVAL), ahead(result=EOPNOTSUPP), ahead(0x40000, result=EFAULT)),
    ],
)
def test_what_is_mapped_ahead_otherwise_differs_in_its_line(line: str) -> None:
    found = judged(replay_in(KVM, CAN_PRE_FAULT, region(), region(1, 0x20000), VCPU, line))
    assert found.verdict.status is Status.DIFFERS, found
    assert found.line is not None
    assert found.line.number == 6


def test_whether_a_kernel_maps_ahead_is_assumed_where_it_does() -> None:
    found = judged(replay_in(KVM, region(), VCPU, ahead(result=EOPNOTSUPP)))
    assert (found.verdict.status, found.assumed) == (Status.PASSED, ())
    assert judged(replay_in(KVM, region(), VCPU, ahead())).verdict.status is Status.PASSED
    found = judged(replay_in(KVM, region(), VCPU, ahead(0x40000, result=ENOENT)))
    assert found.assumed == ("KVM_CAP_PRE_FAULT_MEMORY",)


def test_more_than_a_scenario_may_map_ahead_is_mapped_ahead_in_part() -> None:
    replayed = replay_in(KVM, region(size=1 << 30), VCPU, ahead(size=1 << 30))
    validate(replayed.built.scenario)
    (op,) = [op for op in replayed.built.scenario.operations if isinstance(op, PreFaultMemory)]
    assert op.size == 1 << 27
    assert judged(replayed).verdict.status is Status.PASSED
    too_much = trace_of(KVM, region(), VCPU, ahead(size=1 << 31))
    assert list(too_much.passed_over) == [
        "KVM_PRE_FAULT_MEMORY, whose gpa or whose VM the trace does not show"
    ]


def test_they_become_operations_that_can_be_run() -> None:
    lines = (made(), bound(), private(), punched(0, 0x1000), CLOSED)
    _, first, second, *others = in_private_vm(*lines).built.scenario.operations
    assert first == CreateGuestMemfd("guest_memfd 1", 0x4000)
    assert isinstance(second, SetUserMemoryRegion2)
    assert second.guest_memfd == "guest_memfd 1"
    assert others == [
        SetMemoryAttributes(0x10000, 0x1000, 8),
        PunchGuestMemfd("guest_memfd 1", 0, 0x1000),
        CloseGuestMemfd("guest_memfd 1"),
    ]


def test_a_guest_memfd_of_another_vm_is_refused() -> None:
    other = PRIVATE_VM.replace("= 8", "= 20")
    lines = (PRIVATE_VM, NEWER, made(), other, bound(fd="20", result=EINVAL), OTHER_CLOSED)
    trace = trace_of(*lines)
    second = Replay(trace, trace.vms[1])
    validate(second.built.scenario)
    assert [type(op) for op in second.built.scenario.operations[:2]] == [CreateGuestMemfd, NewVm]
    assert judged(second).verdict.status is Status.PASSED
    accepted = trace_of(*(line.replace(EINVAL, "0") for line in lines))
    found = judged(Replay(accepted, accepted.vms[1]))
    assert found.verdict.difference is not None
    assert [each.rule for each in found.verdict.difference.expected] == ["guest-memfd-foreign"]


def test_a_descriptor_may_have_been_closed_if_the_trace_has_no_closing() -> None:
    found = judged(in_private_vm(made(), bound(result=EBADF)))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert found.verdict.reason == "which descriptors were closed is not in the trace"


def test_flags_of_a_guest_memfd_are_those_that_the_kernel_names() -> None:
    flags = "7 ioctl(8, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS) = 3"
    lines = (made(0x1000, 3), made(0x1000, 4, EINVAL))
    found = judged(replay_in(KVM, ANY, flags, *lines))
    assert (found.verdict.status, found.assumed) == (Status.PASSED, ())
    found = judged(replay_in(KVM, ANY, *lines))
    assert (found.verdict.status, found.assumed[-1]) == (
        Status.PASSED,
        "KVM_CAP_GUEST_MEMFD_FLAGS of 0x3",
    )
    assert judged(replay_in(KVM, ANY, flags, made(0x1000, 4))).verdict.status is Status.DIFFERS


def test_a_vm_without_private_memory_takes_no_attributes() -> None:
    passed = judged(replay_in(KVM, NEWER, SUPPORTED, ANY, private(result=EINVAL)))
    assert (passed.verdict.status, passed.assumed) == (Status.PASSED, ())
    assert judged(replay_in(KVM, NEWER, SUPPORTED, ANY, private())).verdict.status is Status.DIFFERS


def test_attributes_that_a_trace_does_not_ask_for_are_assumed() -> None:
    found = judged(replay_in(PRIVATE_VM, NEWER, ANY, private()))
    assert found.verdict.status is Status.PASSED
    assert found.assumed == ("KVM_CAP_MEMORY_ATTRIBUTES of 0x8",)


def test_a_confidential_vm_is_replayed_by_one_that_this_host_may_have() -> None:
    replayed = replay_in(SNP_VM, NEWER, SUPPORTED, made(), bound(), private())
    assert replayed.built.scenario.vm_type == 1
    assert replayed.built.notes == ("the VM is one of type KVM_X86_SW_PROTECTED_VM here",)
    assert judged(replayed).verdict.status is Status.PASSED
    assert replay_in(SNP_VM, region()).built.scenario.vm_type == 0


def test_the_first_form_takes_no_guest_memfd_whatever_the_file_is() -> None:
    found = judged(replay_in(KVM, region(0, flags="KVM_MEM_GUEST_MEMFD")))
    assert found.verdict.difference is not None
    assert [each.rule for each in found.verdict.difference.expected] == ["first-form-flags"]


def test_a_second_form_that_was_carried_out_says_that_the_kernel_has_it() -> None:
    found = judged(replay_in(KVM, made(), bound(offset=0x7FFF_FFFF_FFFF_F000), CLOSED))
    assert found.verdict.difference is not None
    assert [each.rule for each in found.verdict.difference.expected] == ["guest-memfd-end"]
    assert [each.outcome for each in found.verdict.difference.expected] == ["EINVAL"]
