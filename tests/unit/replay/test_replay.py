"""From a trace to a scenario, and to a verdict on the kernel that it was made on."""

import errno
import re

import pytest

from tests.traced import EEXIST, EINVAL, KVM, TRACES, region, replay_in
from vmm.replay.build import Replay
from vmm.replay.judging import judged
from vmm.replay.reader import read_lines, read_trace
from vmm.scenario.features import Features
from vmm.scenario.history import Refused
from vmm.scenario.operations import ChangeHostMemory, Mapping, Place, SetUserMemoryRegion
from vmm.scenario.validate import validate
from vmm.verdict.judge import Status

HVA = 0x7F0000000000
Q35 = TRACES / "qemu-q35-seabios.strace"


def of_q35() -> Replay:
    trace = read_trace(Q35)
    return Replay(trace, trace.vms[0])


def calls_of(made: Replay) -> list[SetUserMemoryRegion]:
    return [op for op in made.built.scenario.operations if isinstance(op, SetUserMemoryRegion)]


def status(*lines: str) -> Status:
    return judged(replay_in(*lines)).verdict.status


def test_ranges_that_overlap_are_one_mapping_of_true_size() -> None:
    made = replay_in(
        KVM,
        region(0, 0, 0x4000, HVA),
        region(0, 0, 0, HVA),
        region(1, 0x10000, 0x4000, HVA + 0x3000),
        region(2, 0x20000, 0x1000, HVA + 0x100000),
    )
    assert made.built.scenario.mappings == (Mapping("m0", 7), Mapping("m1", 1))
    assert [op.userspace_addr for op in calls_of(made)] == [
        Place("m0"),
        Place("m0"),
        Place("m0", 0x3000),
        Place("m1"),
    ]


def test_huge_memory_keeps_its_place_in_a_huge_page() -> None:
    made = replay_in(
        KVM,
        f"7 mmap(NULL, 8388608, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = {HVA:#x}",
        f"7 madvise({HVA:#x}, 8388608, MADV_HUGEPAGE) = 0",
        region(0, 0x10000, 0x200000, HVA + 0x1000),
    )
    assert made.built.scenario.mappings == (Mapping("m0", 513, "thp"),)
    (op,) = made.built.scenario.operations
    assert isinstance(op, SetUserMemoryRegion)
    assert op.userspace_addr == Place("m0", 0x1000)


def test_reserved_huge_pages_are_transparent_where_the_host_has_none() -> None:
    lines = (
        KVM,
        "7 mmap(NULL, 4194304, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB, -1, 0)"
        f" = {HVA:#x}",
        region(0, 0, 0x400000, HVA),
    )
    trace = read_lines(iter(enumerate(lines, 1)), "t")
    kinds = []
    for features in (None, Features(hugetlb_pages=2), Features(hugetlb_pages=1)):
        kinds.append(Replay(trace, trace.vms[0], features).built.scenario.mappings[0].kind)
    assert kinds == ["hugetlb", "hugetlb", "thp"]


def huge(at: int, size: int, flags: str = "") -> list[str]:
    """Return lines that map memory of huge pages."""
    return [
        f"7 mmap(NULL, {size}, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS{flags}, -1, 0)"
        f" = {at:#x}",
        f"7 madvise({at:#x}, {size}, MADV_HUGEPAGE) = 0",
    ]


@pytest.mark.parametrize(
    ("size", "kinds", "notes"),
    [(0x4000000, ["thp", "thp"], 0), (0x10000000, ["anonymous", "anonymous"], 1)],
)
def test_transparent_huge_pages_are_small_where_too_many_would_be_filled(
    size: int, kinds: list[str], notes: int
) -> None:
    at = (HVA, HVA + 0x40000000)
    made = replay_in(
        KVM,
        *huge(at[0], size),
        *huge(at[1], size),
        region(0, 0, size, at[0]),
        region(1, size, size, at[1]),
        region(2, 0xFFFC0000, 0x40000, 0x7E0000000000),
    )
    assert [mapping.kind for mapping in made.built.scenario.mappings[1:]] == kinds
    assert sum("transparent huge pages" in note for note in made.built.notes) == notes
    validate(made.built.scenario)


def test_more_huge_pages_than_a_scenario_may_have_are_others() -> None:
    made = replay_in(KVM, *huge(HVA, 1 << 30, "|MAP_HUGETLB"), region(0, 1 << 32, 1 << 30, HVA))
    assert made.built.scenario.mappings[0].kind in ("thp", "anonymous")
    validate(made.built.scenario)


def test_the_guest_lives_where_no_slot_is() -> None:
    made = of_q35()
    guest = made.built.scenario.guest
    assert 0 <= guest.gpa < 0xFFFC0000
    assert guest.gpa + 0x10000 < 0xFFFC0000
    calls = calls_of(made)
    assert guest.slot not in {op.slot for op in calls}
    assert not any(
        op.guest_phys_addr < guest.gpa + 0x11000
        and guest.gpa - 0x1000 < op.guest_phys_addr + op.memory_size
        for op in calls
    )


def test_what_is_made_of_a_trace_is_safe_to_run() -> None:
    validate(of_q35().built.scenario)


def test_a_change_of_the_host_is_in_the_scenario_between_the_calls() -> None:
    made = replay_in(
        KVM,
        region(0, 0, 0x4000, HVA),
        f"7 madvise({HVA + 0x1000:#x}, 1048576, MADV_DONTNEED) = 0",
        region(0, 0, 0, HVA),
    )
    assert made.built.scenario.operations[1] == ChangeHostMemory(Place("m0", 0x1000), 3, "drop")
    assert made.built.steps[1].line.number == 3


def test_addresses_that_only_deletions_name_need_no_memory_of_their_own() -> None:
    made = replay_in(KVM, region(0), region(0, size=0, hva=HVA + 0x900000))
    assert made.built.scenario.mappings[-1] == Mapping("elsewhere", 1, "unmapped")
    validate(made.built.scenario)


def test_a_real_trace_is_judged_without_a_difference() -> None:
    made = of_q35()
    assert (made.summary.regions, made.summary.refused) == (39, 0)
    found = judged(made)
    assert (found.verdict.status, found.assumed) == (Status.PASSED, ())


@pytest.mark.parametrize("number", [71, 74, 79, 101, 117])
@pytest.mark.parametrize("result", [EINVAL, EEXIST])
def test_one_altered_line_is_found(number: int, result: str) -> None:
    lines = Q35.read_text().splitlines()
    lines[number - 1] = re.sub(r"= 0$", f"= {result}", lines[number - 1])
    trace = read_lines(iter(enumerate(lines, 1)), "t")
    found = judged(Replay(trace, trace.vms[0]))
    assert found.verdict.status is Status.DIFFERS
    assert found.line is not None
    assert found.line.number == number


def test_an_overlap_that_was_accepted_is_found_on_its_line() -> None:
    found = judged(replay_in(KVM, region(0), region(1, 0x11000)))
    assert found.verdict.difference is not None
    assert found.verdict.difference.expected[0].outcome == "EEXIST"
    assert found.line is not None
    assert found.line.number == 3


def test_what_a_trace_leaves_open_is_assumed_in_the_kernels_favour() -> None:
    found = judged(replay_in(KVM, region(0), region(1 << 16)))
    assert found.verdict.status is Status.PASSED
    assert found.assumed == ("KVM_CAP_MULTI_ADDRESS_SPACE of 2",)
    told = "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_MULTI_ADDRESS_SPACE) = 1"
    assert status(told, KVM, region(0), region(1 << 16)) is Status.DIFFERS


def test_nothing_is_assumed_that_does_not_explain_the_answer() -> None:
    found = judged(replay_in(KVM, region(0, result=EINVAL)))
    assert (found.verdict.status, found.assumed) == (Status.DIFFERS, ())


def test_calls_under_way_at_the_same_time_may_have_been_made_in_either_order() -> None:
    create = region(1, 0x10000, head="9 ")
    begun, rest = create[: create.rindex(")")] + " <unfinished ...>", "9 <... ioctl resumed>) = 0"
    delete = region(0, 0x10000, 0)
    assert status(KVM, region(0), begun, delete, rest) is Status.PASSED
    # The other way round: the line of the creation ends first, and the deletion is under way.
    gone = region(0, 0x10000, 0, head="9 ")
    begun = gone[: gone.rindex(")")] + " <unfinished ...>"
    created = region(1, 0x10000)
    assert status(KVM, region(0), begun, created, rest) is Status.PASSED
    assert status(KVM, region(0), created, gone) is Status.DIFFERS


def test_what_comes_after_a_call_that_is_not_read_is_not_judged() -> None:
    pointer = "7 ioctl(8, 0x4098ae49, 0x7ffd0da8ebc0) = 0"
    found = judged(replay_in(KVM, region(0), pointer, region(1, 0x11000)))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert found.line is not None
    assert found.line.number == 3
    assert status(KVM, region(0), region(1, 0x11000), pointer) is Status.DIFFERS


def test_an_answer_that_only_a_rare_kernel_gives_is_no_pass() -> None:
    refused = region(0, flags="KVM_MEM_READONLY", result=EINVAL)
    found = judged(replay_in(KVM, refused))
    assert found.verdict.status is Status.INCONCLUSIVE
    assert (found.line and found.line.number, found.assumed[0][:22]) == (
        2,
        "no KVM_CAP_READONLY_ME",
    )
    told = "7 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_READONLY_MEM) = 0"
    assert status(KVM, told, refused) is Status.PASSED


@pytest.mark.parametrize("name", ["KVM_CAP_MULTI_ADDRESS_SPACE", "KVM_CAP_NR_MEMSLOTS"])
@pytest.mark.parametrize("answer", ["99999999999999", "-7"])
def test_what_a_trace_says_of_its_kernel_takes_no_memory(name: str, answer: str) -> None:
    told = f"7 ioctl(3, KVM_CHECK_EXTENSION, {name}) = {answer}"
    assert status(KVM, told, region(0)) is Status.PASSED


def test_a_difference_in_a_vm_that_is_older_than_the_trace_is_no_verdict() -> None:
    assert status(region(0), region(5, size=0)) is Status.INCONCLUSIVE


def test_a_host_that_is_short_of_memory_is_no_verdict_on_its_kernel() -> None:
    short = region(1, 0x40000, result="-1 ENOMEM (Cannot allocate memory)")
    assert status(KVM, region(0), short) is Status.INCONCLUSIVE
    assert status(KVM, region(0), short, region(2, 0x10000)) is Status.DIFFERS


def test_a_slot_over_the_kernels_own_pages_may_be_refused() -> None:
    assert status(KVM, region(0, 0xFEE00000, result=EEXIST)) is Status.INCONCLUSIVE
    assert status(KVM, region(0, 0xFEE00000)) is Status.PASSED


def test_a_slot_in_a_forked_child_is_eio() -> None:
    fork = "7 clone(child_stack=NULL, flags=SIGCHLD) = 10"
    eio = "-1 EIO (Input/output error)"
    assert status(KVM, region(0), fork, region(1, 0x40000, head="10 ", result=eio)) is Status.PASSED
    assert status(KVM, region(0), fork, region(1, 0x40000, head="10 ")) is Status.DIFFERS


def test_refused_calls_are_named() -> None:
    made = replay_in(KVM, region(0), region(1, 0x11000, result=EEXIST))
    (step,) = made.summary.first_refused
    assert (step.line.number, step.outcome) == (3, Refused(errno.EEXIST))


def test_a_call_that_answers_a_number_where_there_is_none_differs() -> None:
    assert status(KVM, region()) is Status.PASSED
    assert status(KVM, region().replace("= 0", "= 1")) is Status.DIFFERS
    line = "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7f0000000000 ret=1"
    trace = read_lines(iter([(1, line)]), "t")
    assert judged(Replay(trace, trace.vms[0])).verdict.status is Status.DIFFERS


def test_what_agrees_of_a_vm_that_is_older_than_the_trace_is_no_pass() -> None:
    found = judged(replay_in(region(), region(1, 0x10000))).verdict
    assert found.status is Status.INCONCLUSIVE
    assert "older than the trace" in found.reason


def test_a_slot_of_the_kernels_own_explains_that_it_is_in_the_way_and_nothing_else() -> None:
    apic = 0xFEE00000
    assert status(KVM, region(0, apic, 0x1000, result=EEXIST)) is Status.INCONCLUSIVE
    assert status(KVM, region(0, apic, 0x1000, result=EINVAL)) is Status.DIFFERS


def private(gpa: int, result: str, size: int = 0x2000) -> str:
    line = region(0, gpa, size, HVA, "KVM_MEM_GUEST_MEMFD", result)
    line = line.replace("REGION,", "REGION2,")
    return line.replace("}", ", guest_memfd_offset=0, guest_memfd=11}")


def test_what_a_slot_forbids_differs_whatever_its_guest_memfd_is() -> None:
    made = (KVM.replace("VM, 0", "VM, 0x1"), private(0x10000, "0"))
    assert status(*made, private(0x20000, EINVAL)) is Status.PASSED
    assert status(*made, private(0x20000, "0")) is Status.DIFFERS
    assert status(made[0], private(0x10000, EINVAL)) is Status.INCONCLUSIVE


def halves(line: str, pid: int) -> tuple[str, str]:
    """Return a call as strace writes it when another thread's line comes between."""
    begun, result = line.removeprefix("7 ").rsplit(") = ", 1)
    return f"{pid} {begun} <unfinished ...>", f"{pid} <... ioctl resumed>) = {result}"


def test_a_call_may_have_happened_long_before_its_line_ends() -> None:
    begun, ended = halves(region(0, size=0), 8)
    between = [region(number, 0x100000 * number) for number in range(1, 7)]
    lines = (KVM, region(0), begun, *between[:3], region(9), *between[3:], ended)
    assert status(*lines) is Status.PASSED  # Slot 9 is where slot 0 was.
    assert status(KVM, region(0), *between[:3], region(9), *between[3:]) is Status.DIFFERS


def test_what_is_under_way_elsewhere_raises_no_doubt() -> None:
    begun, ended = halves(region(1, 0x100000), 8)
    assert status(KVM, begun, region(0, result=EINVAL), ended) is Status.DIFFERS
    near, ended = halves(region(1, 0x11000, result=EEXIST), 8)
    assert status(KVM, near, region(0, result=EINVAL), ended) is Status.INCONCLUSIVE
    other, ended = halves(region(0x10000), 8)  # The other address space has nothing to do with it.
    assert status(KVM, other, region(0, result=EINVAL), ended) is Status.DIFFERS


def test_what_only_a_kernel_explains_that_a_later_answer_rules_out_differs_itself() -> None:
    readonly = [region(1, 0x20000, flags="KVM_MEM_READONLY", result=EINVAL)]
    later = region(2, 0x30000, flags="KVM_MEM_READONLY")
    found = judged(replay_in(KVM, region(), *readonly, region(3, 0x50000), later))
    assert found.verdict.status is Status.DIFFERS
    assert found.line is not None
    assert (found.line.number, found.assumed) == (3, ())
    found = judged(replay_in(KVM, region(), *readonly, region(3, 0x50000)))
    assert found.verdict.status is Status.INCONCLUSIVE
