"""A finding as a bug report, in Markdown and as plain text, with what kernel maintainers ask for.

Both forms are made from the same sections. Text that may come from a stranger's file (a scenario to
be minimised, a kernel log) is escaped, line by line.
"""

import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmm.host.config import kernel_options
from vmm.host.hostinfo import HostInfo
from vmm.scenario import outcomewords, words
from vmm.scenario.history import (
    AnyOutcome,
    DirtyPages,
    Done,
    Event,
    History,
    Inspected,
    Raced,
    Ran,
    Refused,
    RingPages,
    Swept,
    Touched,
)
from vmm.scenario.operations import (
    GUEST_SIZE_BYTES,
    AnyOperation,
    Execute,
    GetDirtyLog,
    HarvestDirtyRing,
    Instruction,
    Mapping,
    Place,
    Race,
    Scenario,
    SetUserMemoryRegion,
    Sweep,
    Touch,
)
from vmm.scenario.plan import guest_slots
from vmm.scenario.shown import shown
from vmm.scenario.threadwords import threads
from vmm.scenario.toolversion import tool_version
from vmm.verdict.hostchange import HOST_CHANGES, last_host_change
from vmm.verdict.judge import Difference, Verdict

_MOST = 400
_MOST_OF_A_TITLE = 150
_MAIL_COLUMNS = 75
_SHORTER = (
    (re.compile(r"\([^()]*\)"), "()"),
    (re.compile(r" (?:at|from) (?:gpa |[\w.-]+\+)?0x[0-9a-f]+"), ""),
    (re.compile(r" instead of .*"), ""),
    (re.compile(r"(\w+\(\): )\1"), r"\1"),
    (re.compile(r"\{[^{}]+\}"), "pages"),
    (re.compile(r"host collects (coalesced writes), .*"), r"wrong \1, or signals of eventfds"),
    (re.compile(r"ends with wrong registers, flags or exits"), "ends wrongly"),
    (re.compile(r"(?<=KVM: )after .*?, (?!(?:in a race|and) )"), ""),
)
"""What a subject can do without, where it fits no line: the text has it."""
_MAPS = re.compile(r"(\[\d+\] .*) (-> .*)")
_UNBROKEN = "\0"  # `shown` leaves none in a text.
_KINDS = {
    "anonymous": "anonymous memory",
    "shared": "shared anonymous memory",
    "memfd": "a memfd",
    "private_file": "a memory file mapped with MAP_PRIVATE",
    "pfnmap": "page frames of a memfd, mapped through /dev/udmabuf (VM_PFNMAP)",
    "hugetlb": "2 MiB huge pages",
    "hugetlb_memfd": "a memfd of 2 MiB huge pages",
    "thp": "anonymous memory, aligned for transparent huge pages",
    "zero": "anonymous memory at virtual address 0",
    "unmapped": "reserved addresses with nothing mapped there",
    "guest_memfd": "a guest_memfd, once it is mapped there",
}
_CONFIG = ("tdp_mmu", "ept", "npt", "unrestricted_guest", "avic", "enable_apicv", "nx_huge_pages")
"""Module parameters that decide how KVM handles memslots."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report. ``kind`` says how its lines are set: a list, steps or as they are.

    As they are means ``verbatim``, also in a mail, or ``lines``, which a mail wraps like all
    others.
    """

    title: str
    lines: tuple[str, ...]
    kind: str = "list"


def subject(
    scenario: Scenario, history: History | None, verdict: Verdict | None, otherwise: str
) -> str:
    """Return in a few words what happened, and after which change of a slot or of host memory.

    Values are left to the text: accesses are described by where they ended, calls by their kind.
    """
    difference = None if verdict is None else verdict.difference
    if difference is None or history is None:
        return shown(otherwise, _MOST_OF_A_TITLE)
    event = history.events[difference.event]
    expected = difference.expected[0].outcome if difference.expected else ""
    change, slot = _last_change(scenario, history, difference)
    if isinstance(event.operation, SetUserMemoryRegion):
        outcome = outcomewords.outcome(event.outcome)
        what = f"{change} of slot {words.slot_number(event.operation.slot)}: {outcome}"
        return shown(_instead(what, expected), _MOST_OF_A_TITLE)
    of_slot = f"{change} of slot {words.slot_number(slot)}" if change else ""
    after = _after(scenario, difference, event, of_slot)
    return shown(f"{after}{_what(event, difference, expected)}", _MOST_OF_A_TITLE)


def _after(scenario: Scenario, difference: Difference, event: Event, of_slot: str) -> str:
    """Name the changes before a difference: that of a slot, and the host's where it counts."""
    changed = last_host_change(scenario, difference)
    changes = [of_slot]
    if changed is not None and not isinstance(event.operation, HOST_CHANGES):
        by_host = words.operation(scenario.operations[changed])
        later = scenario.operations[changed + 1 : difference.origin + 1]
        covered = any(isinstance(each, SetUserMemoryRegion) for each in later)
        changes = [by_host, of_slot] if covered else [by_host]
    named = " and ".join(filter(None, changes))
    return f"after {named}, " if named else ""


def _instead(what: str, expected: str) -> str:
    return f"{what} instead of {expected}" if expected else what


def _what(event: Event, difference: Difference, expected: str) -> str:
    """Say what differs at an operation that does not change slots."""
    amiss = difference.observed.removeprefix(outcomewords.outcome(event.outcome)).removeprefix("; ")
    match event.operation, event.outcome:
        case Touch() as op, Touched(mmio=exits):
            return f"{op.access} at gpa {op.gpa:#x} {_ended(bool(exits), expected)}"
        case Execute() as op, Touched(mmio=exits):
            return f"execution at gpa {op.gpa:#x} {_ended(bool(exits), expected)}"
        case Sweep() as op, Swept(mmio=exits):
            return f"string {op.access} from gpa {op.gpa:#x} on {_ended(bool(exits), expected)}"
        case Instruction() as op, Ran(mmio=exits):
            wrong = "ends with wrong registers, flags or exits"
            how = _ended(bool(exits), expected, otherwise=wrong)
            return f"{shown(op.name)} at gpa {op.gpa:#x} {how}"
        case GetDirtyLog() as op, DirtyPages() if amiss:
            return f"dirty log of slot {words.slot_number(op.slot)}: {amiss}"
        case HarvestDirtyRing() as op, RingPages() if amiss:
            return f"dirty ring of vCPU {op.vcpu}: {amiss}"
        case _, Inspected(changes=changes):
            if not changes:
                return "host memory lacks what was written"
            first = words.hva(Place(changes[0].mapping, changes[0].offset))
            place = amiss.removeprefix("wrong: ").partition(" ")[0] or first
            return f"host memory holds wrong bytes at {place}"
        case _, Raced():
            call = difference.operation.partition("; ")[0]
            if " at gpa " in call:
                return f"in a race, {call}: {_ended('MMIO' in difference.observed, expected)}"
            return _instead(f"in a race, {call}: {difference.observed}", expected)
        case operation, outcome:
            return _instead(
                f"{words.operation(operation)}: {outcomewords.outcome(outcome)}", expected
            )


def _ended(exits: bool, expected: str, otherwise: str = "") -> str:
    """Say how an access ended; ``expected`` is an outcome in words."""
    if not expected or exits == ("MMIO" in expected):
        return otherwise or f"meets the wrong {'exits' if exits else 'memory'}"
    if exits:
        return "meets MMIO, not memory"
    return "meets memory, not MMIO"


def sections(
    scenario: Scenario,
    history: History | None,
    verdict: Verdict | None,
    host: HostInfo,
    log: Sequence[str],
    files: set[str],
) -> Iterator[Section]:
    """Yield the sections after the summary."""
    steps = tuple(_steps(scenario, history))
    yield Section("Steps", steps, "steps")
    before = len(steps) - len(scenario.operations)
    for number, operation in enumerate(scenario.operations, before + 1):
        if isinstance(operation, Race):
            yield Section(f"Threads of step {number}", tuple(threads(operation)), "lines")
    yield Section("Memory", tuple(_memory(scenario)))
    if verdict is not None and verdict.difference is not None:
        difference = verdict.difference
        expected = tuple(
            f"{each.outcome}: {each.promise} ({each.basis}: {each.cite})"
            for each in difference.expected
        )
        yield Section("Expected", expected)
        yield Section("Observed", (f"{difference.operation}: {difference.observed}",))
        yield Section("Slots at that moment", difference.slot_map or ("(no slot)",), "lines")
    if log:
        yield Section("Kernel log", tuple(log), "verbatim")
    yield Section("Host", tuple(_host(host)))
    yield Section("To see it again", tuple(_again(files)), "verbatim")


def markdown(title: str, summary: str, parts: Sequence[Section]) -> str:
    """Return the report for a bug tracker."""
    text = [f"# KVM: memslots: {title}\n", summary]
    for part in parts:
        lines = [shown(line, _MOST) for line in part.lines]
        match part.kind:
            case "steps":
                body = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
            case "verbatim" | "lines":
                body = "```\n" + "\n".join(line.replace("```", "'''") for line in lines) + "\n```"
            case _:
                body = "\n".join(f"- {line}" for line in lines)
        text.append(f"## {part.title}\n\n{body}\n")
    return "\n".join(text)


def mail(title: str, summary: str, parts: Sequence[Section]) -> str:
    """Return the report as a mail to a list: a subject and short lines."""
    about = _wrapped(summary.replace("`", ""))
    text = [f"Subject: {_mail_subject(title)}\n", f"{about}\n"]
    for part in parts:
        lines = [shown(line, _MOST) for line in part.lines]
        if part.kind == "verbatim":
            body = "\n".join(f"  {line}" for line in lines)
        elif part.kind == "lines":
            body = "\n".join(_wrapped(_host_side(line), "  ", "      ") for line in lines)
        elif part.kind == "steps":
            marked = ((f"  {number}. ", line) for number, line in enumerate(lines, 1))
            body = "\n".join(_wrapped(line, mark) for mark, line in marked)
        else:
            body = "\n".join(_wrapped(line, "  - ") for line in lines)
        text.append(f"{part.title}:\n\n{body}\n")
    return "\n".join(text)


def _mail_subject(title: str) -> str:
    """Return a title that fits a line; what matters least goes first."""
    text = f"[BUG] KVM: {title}"
    for needless, instead in _SHORTER:
        if len(text) > _MAIL_COLUMNS:
            text = needless.sub(instead, text)
    return textwrap.shorten(text, _MAIL_COLUMNS, placeholder=" ...", break_on_hyphens=False)


def _host_side(line: str) -> str:
    """Keep together what a slot maps, and its flags: there a line of the slot map is broken."""
    found = _MAPS.match(line)
    return f"{found.group(1)} {found.group(2).replace(' ', _UNBROKEN)}" if found else line


def _wrapped(text: str, mark: str = "", then: str | None = None) -> str:
    filled = textwrap.fill(
        " ".join(text.split()),
        _MAIL_COLUMNS,
        initial_indent=mark,
        subsequent_indent=" " * len(mark) if then is None else then,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_UNBROKEN, " ")


def _last_change(
    scenario: Scenario, history: History | None, difference: Difference
) -> tuple[str, int]:
    """Return the last change of a slot up to the difference, and the slot."""
    outcomes = _outcomes(scenario, history)
    slots: dict[int, SetUserMemoryRegion] = {}
    last = ("", 0)
    for origin, operation in enumerate(scenario.operations[: difference.origin + 1]):
        if not isinstance(operation, SetUserMemoryRegion):
            continue
        change = _change(operation, slots.get(operation.slot))
        if origin == difference.origin and words.operation(operation) == difference.operation:
            return change, operation.slot
        if not isinstance(outcomes.get(origin, Done()), Done):
            continue
        if operation.memory_size:
            slots[operation.slot] = operation
        else:
            slots.pop(operation.slot, None)
        last = (change, operation.slot)
    return last


def _steps(scenario: Scenario, history: History | None) -> Iterator[str]:
    """Yield each operation: region calls by what they do, and what the kernel refused.

    The tool's own slots come first, as in the C program, so that the numbers are the same.
    """
    for own in guest_slots(scenario):
        yield f"create, for the test guest itself: {words.operation(own)}"
    outcomes = _outcomes(scenario, history)
    slots: dict[int, SetUserMemoryRegion] = {}
    for origin, operation in enumerate(scenario.operations):
        outcome = outcomes.get(origin, Done())
        yield _step(operation, outcome, slots)
        if isinstance(operation, SetUserMemoryRegion) and isinstance(outcome, Done):
            slots[operation.slot] = operation
            if not operation.memory_size:
                del slots[operation.slot]


def _outcomes(scenario: Scenario, history: History | None) -> dict[int, AnyOutcome]:
    """Return the outcome of each operation by its index, without those of surveys."""
    outcomes: dict[int, AnyOutcome] = {}
    for event in () if history is None else history.events:
        if (event.operation,) == scenario.operations[event.origin : event.origin + 1]:
            outcomes.setdefault(event.origin, event.outcome)
    return outcomes


def _step(
    operation: AnyOperation, outcome: AnyOutcome, slots: dict[int, SetUserMemoryRegion]
) -> str:
    text = words.operation(operation)
    if isinstance(operation, SetUserMemoryRegion):
        text = f"{_change(operation, slots.get(operation.slot))}: {text}"
    return f"{text} -> {outcomewords.outcome(outcome)}" if isinstance(outcome, Refused) else text


def _change(operation: SetUserMemoryRegion, old: SetUserMemoryRegion | None) -> str:
    """Return the kind of a change (kvm_mr_change), or which change of them it cannot be."""
    if not operation.memory_size:
        return "delete"
    if old is None:
        return "create"
    if operation.memory_size != old.memory_size:
        return "change size"
    if operation.userspace_addr != old.userspace_addr:
        return "change hva"
    if operation.guest_phys_addr != old.guest_phys_addr:
        return "move"
    return "change flags" if operation.flags != old.flags else "no change"


def _memory(scenario: Scenario) -> Iterator[str]:
    for mapping in scenario.mappings:
        yield _mapping(mapping)
    for slot in guest_slots(scenario):
        yield (
            f"{words.hva(slot.userspace_addr)}: the test guest's own code and data, "
            f"{GUEST_SIZE_BYTES >> 10} KiB; its memslot {words.slot_number(slot.slot)} at gpa "
            f"{slot.guest_phys_addr:#x} is the "
            f"tool's own{'' if _meets(scenario, slot) else ', and no other step touches it'}"
        )


def _meets(scenario: Scenario, own: SetUserMemoryRegion) -> bool:
    """Whether a call of the scenario names the tool's slot, or overlaps it."""
    first, end = own.guest_phys_addr, own.guest_phys_addr + own.memory_size
    return any(
        operation.slot == own.slot
        or (operation.guest_phys_addr < end and first < operation.guest_phys_addr + size)
        for operation in scenario.operations
        if isinstance(operation, SetUserMemoryRegion)
        for size in [operation.memory_size]
    )


def _mapping(mapping: Mapping) -> str:
    pages = words.counted(mapping.pages, "page")
    whose = f"that of {shown(mapping.of)}" if mapping.of else "with its own content"
    if mapping.pages != 1:
        whose = f"each {whose}"
    return f"{shown(mapping.name)}: {pages} of {_KINDS[mapping.kind]}, {whose}"


def _host(host: HostInfo) -> Iterator[str]:
    yield from (f"{name}: {value}" for name, value in host.in_brief().items())
    for module, parameters in sorted(host.modules.items()):
        told = [f"{name}={parameters[name]}" for name in _CONFIG if name in parameters]
        if told:
            yield f"{module}: {', '.join(told)}"
    options = kernel_options(host.kernel)
    if options:
        yield f"kernel configuration: {', '.join(options)}"
    if host.command_line:
        yield f"kernel command line: {host.command_line}"
    yield f"tool: memslot-vmm {tool_version()}, started as `{shlex.join(['vmm', *sys.argv[1:]])}`"


def _again(files: set[str]) -> Iterator[str]:
    """Yield the commands for the files that exist, each short enough for a mail."""
    named = [each for each in ("repro.c", "scenario.json", "history.jsonl") if each in files]
    if named:
        yield f"# Attached, or beside this text: {', '.join(named)}"
    if "repro.c" in files:
        yield "cc -o repro repro.c && ./repro; echo $?"
        yield "# 0: right, 1: wrong, else: cannot say. To bisect on the machine itself:"
        yield "./repro; s=$?; [ $s -ge 2 ] && s=125; exit $s"
    if "scenario.json" in files:
        yield "vmm run scenario.json"
        yield "# To bisect in a kernel's tree, with scenario.json there, under QEMU:"
        yield "git bisect run sh -c 'make -j8 bzImage modules || exit 125"
        yield "  vmm lab run --bisect --kernel . -- run scenario.json'"
    if "history.jsonl" in files:
        yield "vmm judge history.jsonl"
