"""Checks that a race is safe to run, and that its outcome can be judged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from vmm.scenario import operations
from vmm.scenario.hostpages import CHANGES, EMPTIES, keeper_of
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    ChangeHostMemory,
    ClearDirtyLog,
    CloseGuestMemfd,
    Execute,
    GetDirtyLog,
    GuestThread,
    HarvestDirtyRing,
    HostAction,
    HostChangeKind,
    HostThread,
    HostWrite,
    Place,
    PreFaultMemory,
    PunchGuestMemfd,
    Race,
    ResetDirtyRings,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
    pages_of,
)
from vmm.scenario.slots import as_id_of

MAX_SLOT_PAGES = 1 << 18
"""Pages of one slot: its metadata are allocated at once, about 10 bytes a page."""

MAX_CALLS = 20_000
MAX_PROGRAM = 64
MAX_ACCESSES = 1 << 20
"""The most accesses of all vCPUs of a race: each result is kept."""

MAX_HOST_THREADS = 4
MAX_PAUSE = 100

_BACKED = ("anonymous", "shared", "memfd", "thp", "hugetlb")
_OVER = ("map_fresh", "map_file")
"""The changes that map other memory over pages."""

_TAKES = ("unmap", "forbid", "write_protect")
"""The changes that keep accesses from pages for as long as the host likes."""

TWO_FILES = "whether a page still shows its file, or a copy, would have to be followed"

_OF_A_SLOT = SetUserMemoryRegion | GetDirtyLog | ClearDirtyLog

Mappings = Mapping[str, operations.Mapping]

Changed = tuple[str, str, range]
"""What is changed: the kind of object, where it is, and the range of numbers there."""

_ALL_USERS = (1 << 32) + 1
"""Users of an open guest_memfd: each 32-bit slot number that may bind it, and the host itself."""

_Change = tuple[int, int, int, int]
"""(first, one after the last, host thread, index of its operation)."""


def host_change_problem(op: ChangeHostMemory, mappings: Mappings) -> str:
    """Return what is wrong with a change of a mapping that exists; empty if nothing is."""
    kinds = CHANGES[op.how].kinds
    if mappings[op.place.mapping].kind not in kinds:
        return f".how: {op.how!r} takes a mapping of kind {', '.join(kinds)}"
    if op.place.offset % PAGE_SIZE_BYTES or op.pages < 1:
        return ".place: whole pages are needed"
    keeper = keeper_of(mappings[op.place.mapping], mappings.values())
    if keeper and op.how in EMPTIES:
        return f".how: {keeper!r} keeps the pages of the file"
    return ""


def race_problem(
    race: Race,
    vcpus: int,
    mappings: Mappings,
    spaces: Sequence[int],
    named: Mapping[int, Sequence[Changed]],
    problem: Callable[[AnyOperation], str],
) -> str:
    """Return what is wrong with a race, beginning with the field; empty if nothing is.

    ``spaces`` are the address spaces that guests access; ``named`` has the gfns that a slot may
    hold when the race begins, and the pages that it may bind; ``problem`` checks one operation by
    itself.
    """
    if len(race.hosts) > MAX_HOST_THREADS:
        return f".hosts: more than {MAX_HOST_THREADS}"
    if not 1 <= len(race.guests) <= vcpus:
        return f".guests: 1 to {vcpus} are needed ($.vcpus)"
    for place, operation in _operations(race):
        found = problem(operation)
        if found:
            return f"{place}{found}"
    if race.hosts and not any(host.rounds for host in race.hosts):
        return ".hosts: one has to have a number of rounds"
    for number, host in enumerate(race.hosts):
        found = _host_problem(host, len(race.guests), mappings, spaces)
        found = found or _child_problem(host) or _undoing_problem(host)
        if found:
            return f".hosts[{number}]{found}"
    for number, guest in enumerate(race.guests):
        found = _guest_problem(number, guest)
        if found:
            return f".guests[{number}]{found}"
    if sum(guest.windows * len(guest.program) for guest in race.guests) > MAX_ACCESSES:
        return f".guests: more than {MAX_ACCESSES} accesses of all vCPUs (windows times program)"
    return _disorder(race, named, mappings) or _unreadable(race, mappings)


def _operations(race: Race) -> Iterator[tuple[str, HostAction | Touch | Execute | PreFaultMemory]]:
    for number, host in enumerate(race.hosts):
        for index, action in enumerate(host.operations):
            yield f".hosts[{number}].operations[{index}]", action
    for number, guest in enumerate(race.guests):
        for index, access in enumerate(guest.program):
            yield f".guests[{number}].program[{index}]", access


def _host_problem(host: HostThread, guests: int, mappings: Mappings, spaces: Sequence[int]) -> str:
    if host.rounds < 0 or not 1 <= max(host.rounds, 1) * len(host.operations) <= MAX_CALLS:
        return f".rounds: 1 to {MAX_CALLS} calls are needed"
    if not 0 <= host.pause <= MAX_PAUSE:
        return f".pause: 0 to {MAX_PAUSE}"
    for index, op in enumerate(host.operations):
        if isinstance(op, _OF_A_SLOT) and as_id_of(op.slot) not in spaces:
            return f".operations[{index}].slot: one of as_id 0 is needed, or $.needs names smm"
        if isinstance(op, SetUserMemoryRegion):
            if op.caller != "owner" or op.argument != "readable":
                return f".operations[{index}]: its owner makes it, with a readable argument"
            if pages_of(op.memory_size) > MAX_SLOT_PAGES:
                return (
                    f".operations[{index}].memory_size: a slot has at most "
                    f"{MAX_SLOT_PAGES} pages here"
                )
            if op.memory_size and not _is_backed(op, mappings):
                return f".operations[{index}].userspace_addr: a mapping with memory is needed"
        if isinstance(op, GetDirtyLog) and op.bitmap != "writable":
            return f".operations[{index}].bitmap: a writable one is needed"
        if isinstance(op, ClearDirtyLog) and op.bitmap != "readable":
            return f".operations[{index}].bitmap: a readable one is needed"
        if _hides_a_file(op, mappings):
            what = f"{_how(op)!r} takes anonymous memory in a race"
            return f".operations[{index}].how: {what}: {TWO_FILES}"
        if isinstance(op, HarvestDirtyRing) and op.vcpu >= guests:
            return f".operations[{index}].vcpu: the race has {guests}"
        if isinstance(op, HostWrite) and op.place.offset % 4:
            return f".operations[{index}].place.offset: a multiple of 4 is needed"
        if isinstance(op, HostWrite) and mappings[op.place.mapping].kind not in _BACKED:
            return f".operations[{index}].place: a mapping with memory is needed"
    return ""


def _child_problem(host: HostThread) -> str:
    """Check that a thread ends the children that it forks, in each of its rounds."""
    turns = [how for how in map(_how, host.operations) if how in ("fork", "reap")]
    if turns and (turns[0], turns[-1]) != ("fork", "reap"):
        return ".operations: a thread that forks a child ends it itself, after that"
    return ""


_UNDONE: Mapping[HostChangeKind, HostChangeKind] = {
    "move_away": "move_back",
    "fetch_later": "settle",
    "guard": "settle",
}
"""The changes that a thread undoes itself, and by what."""

_WHOLE = (*_UNDONE.keys(), *_UNDONE.values())


def _undoing_problem(host: HostThread) -> str:
    """Check that a thread undoes what it does to pages, and finds them whole in each round."""
    done: set[tuple[HostChangeKind, str, int]] = set()
    meant: set[str] = set()
    for op in host.operations:
        if not isinstance(op, ChangeHostMemory) or op.how not in _WHOLE:
            continue
        first = op.place.offset // PAGE_SIZE_BYTES
        undoing = _UNDONE.get(op.how, op.how)
        pages = {(undoing, op.place.mapping, first + page) for page in range(op.pages)}
        if op.how in _UNDONE:
            done |= pages
        elif pages <= done:
            done -= pages
        else:
            return f".operations: {op.how!r} undoes what the thread has done itself"
        meant.add(op.place.mapping)
    used = set(map(_how, host.operations))
    for how, undone in _UNDONE.items():
        if how in used and any(undone == each for each, *_ in done):
            return f".operations: a thread ends each {how!r} by {undone!r}"
    for index, op in enumerate(host.operations):
        takes = _how(op) in _TAKES or _how(op) == "map_file"
        if takes and isinstance(op, ChangeHostMemory) and op.place.mapping in meant:
            return f".operations[{index}].how: {op.how!r} takes a mapping whose pages stay"
    return ""


def _how(op: HostAction) -> HostChangeKind | None:
    return op.how if isinstance(op, ChangeHostMemory) else None


def _hides_a_file(op: HostAction, mappings: Mappings) -> bool:
    return (
        isinstance(op, ChangeHostMemory)
        and op.how in _OVER
        and mappings[op.place.mapping].kind != "anonymous"
    )


def _is_backed(op: SetUserMemoryRegion, mappings: Mappings) -> bool:
    hva = op.userspace_addr
    return isinstance(hva, Place) and mappings[hva.mapping].kind in (*_BACKED, "guest_memfd")


def _guest_problem(number: int, guest: GuestThread) -> str:
    program = guest.program
    if guest.windows < 1:
        return ".windows: at least 1 is needed"
    if guest.migrates < 0:
        return ".migrates: 0 or more is needed"
    if not 1 <= len(program) <= MAX_PROGRAM:
        return f".program: 1 to {MAX_PROGRAM} accesses are needed"
    if len(program) > 1 and any(isinstance(op, Execute) for op in program):
        return ".program: an execution stands alone"
    for index, op in enumerate(program):
        if op.vcpu != number:
            return f".program[{index}].vcpu: {number} is needed"
        if isinstance(op, Touch) and (op.width != 4 or op.gpa % 4):
            return f".program[{index}]: aligned accesses of 4 bytes are needed"
        if isinstance(op, PreFaultMemory) and not _is_one_page(op):
            return f".program[{index}]: one page at a time is mapped ahead, without flags"
    return ""


def _is_one_page(op: PreFaultMemory) -> bool:
    return op.size == PAGE_SIZE_BYTES and not op.gpa % PAGE_SIZE_BYTES and not op.flags


def gfns_of(op: SetUserMemoryRegion) -> range:
    """Return the gfns that a call names."""
    first = op.guest_phys_addr // PAGE_SIZE_BYTES
    return range(first, first + pages_of(op.memory_size))


def _disorder(race: Race, named: Mapping[int, Sequence[Changed]], mappings: Mappings) -> str:
    """Check that no two host threads change the same thing: the order would be unknown.

    Changes are ranges of numbers, visited from the lowest start up.
    """
    changes: dict[tuple[str, str], list[_Change]] = {}
    for number, host in enumerate(race.hosts):
        slots: set[int] = set()
        for index, op in enumerate(host.operations):
            changed = _changed(op, mappings)
            if isinstance(op, SetUserMemoryRegion) and op.slot not in slots:
                slots.add(op.slot)
                # The first call on a slot may free what it held, which others may then take.
                changed = chain(changed, named.get(op.slot, ()))
            for kind, name, numbers in changed:
                change = (numbers.start, numbers.stop, number, index)
                changes.setdefault((kind, name), []).append(change)
    for (kind, name), of_a_kind in changes.items():
        ends = [0] * len(race.hosts)
        for start, stop, number, index in sorted(of_a_kind):
            others = (end for other, end in enumerate(ends) if other != number)
            if max(others, default=0) > start:
                what = f"{kind} {name}{start:#x}"
                return f".hosts[{number}].operations[{index}]: another thread changes {what}"
            ends[number] = max(ends[number], stop)
    return _cut_elsewhere(race, mappings)


def _cut_elsewhere(race: Race, mappings: Mappings) -> str:
    """Check that no thread cuts a file that another one maps over pages."""
    cut: dict[str, int] = {}
    for number, host in enumerate(race.hosts):
        for op in host.operations:
            if isinstance(op, ChangeHostMemory) and op.how in ("truncate", "extend"):
                cut[mappings[op.place.mapping].of or op.place.mapping] = number
    for number, host in enumerate(race.hosts):
        for index, op in enumerate(host.operations):
            source = op.source if isinstance(op, ChangeHostMemory) else None
            if source is not None and cut.get(source.mapping, number) != number:
                where = f".hosts[{number}].operations[{index}].source"
                return f"{where}: another thread cuts {source.mapping!r}"
    return ""


def _space(op: SetUserMemoryRegion) -> str:
    return "in SMM " if as_id_of(op.slot) else ""


def places_of(op: SetUserMemoryRegion) -> Iterator[Changed]:
    """Yield the gfns that a call names, and the pages of a guest_memfd."""
    if not pages_of(op.memory_size):
        return
    yield "gfn", _space(op), gfns_of(op)
    if isinstance(op, SetUserMemoryRegion2) and isinstance(op.guest_memfd, str):
        yield "page", f"{op.guest_memfd}+", _pages(op.guest_memfd_offset, op.memory_size)


def _pages(offset: int, size: int) -> range:
    return range(offset // PAGE_SIZE_BYTES, -(-(offset + size) // PAGE_SIZE_BYTES))


def _changed(op: HostAction, mappings: Mappings) -> Iterator[Changed]:
    """Yield the slots, gfns and pages whose order of changes has to be known."""
    if isinstance(op, SetUserMemoryRegion):
        yield "slot", "", range(op.slot, op.slot + 1)
        yield from places_of(op)
        if isinstance(op, SetUserMemoryRegion2) and isinstance(op.guest_memfd, str):
            yield "file", op.guest_memfd, range(op.slot, op.slot + 1)
    elif isinstance(op, GetDirtyLog | ClearDirtyLog):
        yield "slot", "", range(op.slot, op.slot + 1)
    elif isinstance(op, CloseGuestMemfd):
        yield "file", op.name, range(_ALL_USERS)
    elif isinstance(op, PunchGuestMemfd):
        yield "page", f"{op.name}+", _pages(op.offset, op.size)
        yield "file", op.name, range(_ALL_USERS - 1, _ALL_USERS)
    elif isinstance(op, SetMemoryAttributes):
        # What a gpa reaches depends on its slot and its attributes.
        first = op.address // PAGE_SIZE_BYTES
        yield "gfn", "", range(first, first + pages_of(op.size))
    elif isinstance(op, HarvestDirtyRing):
        yield "ring", "", range(op.vcpu, op.vcpu + 1)
    elif isinstance(op, ResetDirtyRings):
        yield "rings", "", range(1)
    elif _how(op) in ("fork", "reap"):
        yield "child", "", range(1)
    elif isinstance(op, ChangeHostMemory):
        first = op.place.offset // PAGE_SIZE_BYTES
        if op.how in _WHOLE:
            yield "page", f"{op.place.mapping}+", range(mappings[op.place.mapping].pages)
        elif op.how in ("truncate", "extend"):
            for view in _views(op.place.mapping, mappings):
                yield "page", f"{view}+", range(first, mappings[view].pages)
        else:
            yield "page", f"{op.place.mapping}+", range(first, first + op.pages)


def _views(mapping: str, mappings: Mappings) -> Iterator[str]:
    """Yield the mappings of the same file."""
    file = mappings[mapping].of or mapping
    yield from (name for name, each in mappings.items() if (each.of or name) == file)


def _unreadable(race: Race, mappings: Mappings) -> str:
    """Check that the host writes no memory that a thread removes, and no vCPU executes zeros."""
    changes = [op for host in race.hosts for op in host.operations]
    takes = {
        op.place.mapping
        for op in changes
        if isinstance(op, ChangeHostMemory) and op.how in (*_TAKES, *_UNDONE)
    }
    for op in changes:
        if isinstance(op, ChangeHostMemory) and op.how == "truncate":
            takes.update(_views(op.place.mapping, mappings))
    if any(_how(op) == "fork" for op in changes):
        others = {
            how
            for how in map(_how, changes)
            if how and (how in _WHOLE or not CHANGES[how].leaves_pages)
        }
        if others:
            what = " and ".join(map(repr, sorted(others)))
            return f".hosts: a forked child looks at memory that {what} may take away"
    for op in changes:
        if isinstance(op, HostWrite) and op.place.mapping in takes:
            return f".hosts: {op.place.mapping!r} is written and taken away"
    executes = any(isinstance(op, Execute) for guest in race.guests for op in guest.program)
    loses = any(
        isinstance(op, ChangeHostMemory)
        and (op.how == "move_away" or not CHANGES[op.how].keeps)
        and not (op.how not in EMPTIES and mappings[op.place.mapping].kind == "memfd")
        for op in changes
    )
    if executes and loses:
        return ".hosts: content is lost that a vCPU may execute"
    if executes and any(isinstance(op, SetMemoryAttributes) for op in changes):
        return ".hosts: attributes change, and a guest_memfd has no code for a vCPU to execute"
    return ""
