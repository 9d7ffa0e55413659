"""Random races: host threads that each change their own slots and memory, while vCPUs run.

A race takes as long as thousands of other operations, so few scenarios are races.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vmm.fuzz.generate.dice import Dice
from vmm.fuzz.generate.pools import GUEST
from vmm.fuzz.generate.private import FILE, racing_attributes
from vmm.fuzz.generate.race_twists import TWISTS, WITHOUT_CLOCKS, Parts, twisted
from vmm.scenario.features import Features
from vmm.scenario.hostpages import CHANGES
from vmm.scenario.operations import (
    HUGE_PAGE_PAGES,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    SMM,
    AnyOperation,
    AsId,
    ChangeHostMemory,
    CreateGuestMemfd,
    GetDirtyLog,
    GuestThread,
    HostAction,
    HostChangeKind,
    HostThread,
    HostWrite,
    Inspect,
    KvmclockCtrl,
    Mapping,
    MappingKind,
    Place,
    PreFaultMemory,
    Race,
    Scenario,
    SetClockMsr,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    Touch,
)
from vmm.scenario.slots import as_id_of

_PAGES = 6
_GFN = 0x100
_AREA_GFNS = 6
_KINDS: tuple[MappingKind, ...] = ("anonymous", "anonymous", "shared", "memfd")
_VALUES = 0x4000_0000
_CLOCK_OFFSET = 0x700
_TWISTED = 0.4
"""The share of races that have a twist."""

_HUGE_SHARE = 0.15
_FILE_OVER = 0.6
_MERGES = 0.05

_KEPT = "kept"
"""The mapping that the host writes to and never takes away."""

_MOVES = 0.15
_UNDONE: tuple[tuple[HostChangeKind, HostChangeKind], ...] = (
    ("move_away", "move_back"),
    ("fetch_later", "settle"),
    ("guard", "settle"),
)
_PAIRS: tuple[tuple[HostChangeKind, ...], ...] = (
    *(("drop",), ("punch",), ("unmap", "map"), ("forbid", "allow")),
    *(("write_protect", "allow"), ("map_fresh", "map"), ("page_out",), ("truncate", "extend")),
)
"""Changes of host memory, each with the one that undoes it."""


def race_scenario(dice: Dice, features: Features, name: str) -> Scenario:
    """Return a scenario with one race, and looks at the result."""
    mappings = _mappings(dice, features)
    vcpus = dice.pick((1, 2, 2))
    spaces: Sequence[AsId] = (0, SMM) if features.smm and dice.chance(0.5) else (0,)
    hosts = tuple(
        _host(dice, features, number, mappings, spaces) for number in range(dice.between(1, 3))
    )
    is_private = features.sw_protected and features.guest_memfd and dice.chance(0.4)
    if is_private:
        spaces = (0,)
        area = range(_GFN * PAGE_SIZE_BYTES, (_GFN + _AREA_GFNS - 1) * PAGE_SIZE_BYTES)
        hosts = racing_attributes(dice, hosts[:1], area[::PAGE_SIZE_BYTES])
    guests = tuple(_guest(dice, features, vcpu, hosts, spaces) for vcpu in range(vcpus))
    first = tuple(_first(dice, hosts))
    twist = "" if is_private or not dice.chance(_TWISTED) else dice.pick(TWISTS)
    has_clocks = not is_private and twist not in WITHOUT_CLOCKS
    clocks = tuple(_clocks(dice, features, vcpus, len(hosts))) if has_clocks else ()
    looks = tuple(_looks(dice, vcpus, hosts, clocks))
    needs: tuple[str, ...] = ("smm",) if SMM in spaces else ()
    parts = Parts(hosts, guests, (*first, *clocks), looks)
    if is_private:
        file = CreateGuestMemfd(FILE, _PAGES * PAGE_SIZE_BYTES)
        parts = replace(parts, before=(file, *first))
        needs = ("sw_protected", "guest_memfd", "user_memory2")
    parts = twisted(dice, features, twist, parts)
    return Scenario(
        name=name,
        operations=(*parts.before, Race(parts.hosts, parts.guests), *parts.after),
        mappings=mappings,
        why="A random race.",
        source="vmm fuzz",
        tags=("fuzz",),
        needs=(*needs, *parts.needs),
        vm_type=1 if is_private else 0,
        survey="none",
        vcpus=vcpus,
        guest=GUEST,
    )


def _mappings(dice: Dice, features: Features) -> tuple[Mapping, ...]:
    """Return the memory of a race; what is taken away is not what the host writes to."""
    taken = Mapping("taken", _PAGES, dice.pick(("anonymous", "memfd")))
    kept = Mapping(_KEPT, _PAGES, dice.pick(_KINDS))
    again = tuple(
        Mapping(f"{each.name}-again", _PAGES, "memfd", of=each.name)
        for each in (kept, taken)
        if each.kind == "memfd" and dice.chance(0.5)
    )
    mappings = (kept, taken, *again)
    if features.collapse and features.sync_mmu and dice.chance(_HUGE_SHARE):
        mappings += (Mapping("huge", HUGE_PAGE_PAGES, "thp"),)
    return mappings


def _first(dice: Dice, hosts: Sequence[HostThread]) -> Iterator[SetUserMemoryRegion]:
    """Yield the slots that are there before the race begins: some of those that threads change."""
    for host in hosts:
        for op in host.operations[:1]:
            if isinstance(op, SetUserMemoryRegion) and dice.chance(0.7):
                yield op


def _host(
    dice: Dice, features: Features, number: int, mappings: Sequence[Mapping], spaces: Sequence[AsId]
) -> HostThread:
    """Return a thread with a slot and gpas of its own; the first one changes host memory.

    A slot in as_id 1 overlaps the gpas of another thread's slot in as_id 0.
    """
    as_id = dice.pick(spaces) if number else 0
    operations: list[HostAction] = []
    pages = dice.between(1, 3)
    flags = dice.pick((0, 0, LOG_DIRTY_PAGES, LOG_DIRTY_PAGES))
    readonly = READONLY if features.readonly_mem and dice.chance(0.15) else 0
    hva = Place(dice.pick(mappings).name, dice.below(_PAGES - pages + 1) * PAGE_SIZE_BYTES)
    slot = as_id << 16 | 1 + number
    area = _GFN + (number - as_id) * _AREA_GFNS
    for turn in range(dice.between(2, 5)):
        what = dice.random() if turn else 0.0
        gfn = area + dice.below(_AREA_GFNS - pages + 1)
        if what < 0.6:
            given = flags if dice.chance(0.8) else flags ^ LOG_DIRTY_PAGES
            form = SetUserMemoryRegion
            if features.user_memory2 and dice.chance(0.1):
                form = SetUserMemoryRegion2
            size = pages * PAGE_SIZE_BYTES
            operations.append(form(slot, gfn * PAGE_SIZE_BYTES, size, hva, given | readonly))
        elif what < 0.75:
            operations.append(SetUserMemoryRegion(slot))
        elif what < 0.9:
            operations.append(GetDirtyLog(slot))
        elif number:
            place = Place(_KEPT, dice.below(_PAGES) * PAGE_SIZE_BYTES + 0x300 + 4 * number)
            operations.append(HostWrite(place, dice.below(_VALUES)))
        else:
            operations += _change(dice, features, mappings)
    if not number and features.sync_mmu and dice.chance(_MOVES):
        operations = list(_moving(dice, mappings, operations))
    return HostThread(tuple(operations), dice.between(2, 6), dice.pick((1, 1, 0)))


def _change(dice: Dice, features: Features, mappings: Sequence[Mapping]) -> Iterator[HostAction]:
    if not features.sync_mmu:
        return
    taken = dice.pick([each for each in mappings if each.name != _KEPT and each.of != _KEPT])
    files = [each for each in mappings if each.kind == "memfd" and not each.of]
    if taken.kind == "anonymous" and files and dice.chance(_FILE_OVER):
        yield from _over(dice, taken, dice.pick(files))
        return
    if features.ksm and dice.chance(_MERGES) and taken.kind in CHANGES["merge"].kinds:
        yield ChangeHostMemory(Place(taken.name), taken.pages, "merge")
        return
    pair = dice.pick(_PAIRS)
    if taken.kind == "thp" and dice.chance(0.5):
        yield ChangeHostMemory(Place(taken.name), taken.pages, "collapse")
        return
    hides_a_file = pair[0] == "map_fresh" and taken.kind != "anonymous"
    if hides_a_file or taken.kind not in CHANGES[pair[0]].kinds:
        pair = ("drop",)
    first = dice.below(_PAGES)
    pages = dice.between(1, min(3, _PAGES - first))
    if pair[0] == "truncate":
        taken, pages = (
            next(m for m in mappings if m.name == (taken.of or taken.name)),
            _PAGES - first,
        )
    for how in pair:
        yield ChangeHostMemory(Place(taken.name, first * PAGE_SIZE_BYTES), pages, how)


def _over(dice: Dice, taken: Mapping, file: Mapping) -> Iterator[HostAction]:
    """Yield a change that maps pages of a file over memory, and now and then one that ends that."""
    pages = dice.between(1, 3)
    first, shown = dice.below(_PAGES - pages + 1), dice.below(_PAGES - pages + 1)
    place = Place(taken.name, first * PAGE_SIZE_BYTES)
    yield ChangeHostMemory(place, pages, "map_file", Place(file.name, shown * PAGE_SIZE_BYTES))
    if dice.chance(0.7):
        yield ChangeHostMemory(place, pages, dice.pick(("map", "map_fresh")))


def _moving(
    dice: Dice, mappings: Sequence[Mapping], operations: Sequence[HostAction]
) -> Iterator[HostAction]:
    """Yield operations, and among them a change of memory that the thread has to undo.

    What takes pages of the same memory away is left out, and so are such changes of files.
    """
    change, undone = dice.pick(_UNDONE)
    taken = next(each for each in mappings if each.name != _KEPT and each.of != _KEPT)
    if taken.kind not in CHANGES[change].kinds:
        yield from operations
        return
    stay = [
        op
        for op in operations
        if not isinstance(op, ChangeHostMemory) or CHANGES[op.how].access is None
    ]
    first = dice.below(_PAGES)
    place, pages = Place(taken.name, first * PAGE_SIZE_BYTES), dice.between(1, _PAGES - first)
    at = dice.between(1, len(stay))  # The first operation names the thread's slot.
    until = at + dice.below(len(stay) + 1 - at)
    yield from stay[:at]
    yield ChangeHostMemory(place, pages, change)
    yield from (op for op in stay[at:until] if not isinstance(op, ChangeHostMemory))
    yield ChangeHostMemory(place, pages, undone)
    yield from stay[until:]


def _guest(
    dice: Dice,
    features: Features,
    vcpu: int,
    hosts: Sequence[HostThread],
    spaces: Sequence[AsId],
) -> GuestThread:
    """Return a thread that reads anywhere, and writes where no other vCPU does."""
    program: list[Touch | PreFaultMemory] = []
    for number in range(dice.between(1, 4)):
        gpa, as_id = _gpa(dice, len(hosts)), dice.pick(spaces)
        if features.pre_fault and dice.chance(0.1):
            program.append(PreFaultMemory(gpa, PAGE_SIZE_BYTES, vcpu=vcpu))
        elif dice.chance(0.5):
            at = gpa + dice.pick((0x40, 0x100, 0x200))
            program.append(Touch(at, vcpu=vcpu, as_id=as_id))
        else:
            value = _VALUES + (vcpu << 24) + (number << 20)
            at = gpa + 0x200 + 0x10 * vcpu
            program.append(Touch(at, "write", value=value, vcpu=vcpu, as_id=as_id))
            program.append(Touch(at, vcpu=vcpu, as_id=as_id))
    return GuestThread(tuple(program), migrates=dice.pick((0, 0, 0, 1, 5)))


def _gpa(dice: Dice, hosts: int) -> int:
    return (_GFN + dice.below(hosts * _AREA_GFNS)) * PAGE_SIZE_BYTES


def _clocks(dice: Dice, features: Features, vcpus: int, hosts: int) -> Iterator[SetClockMsr]:
    for vcpu in range(vcpus):
        if features.steal_time and dice.chance(0.3):
            yield SetClockMsr("steal_time", _gpa(dice, hosts) + _CLOCK_OFFSET, vcpu=vcpu)
        if features.kvmclock and features.kvmclock_ctrl and dice.chance(0.2):
            yield SetClockMsr("system_time", _gpa(dice, hosts) + _CLOCK_OFFSET + 0x80, vcpu=vcpu)


def _looks(
    dice: Dice,
    vcpus: int,
    hosts: Sequence[HostThread],
    clocks: tuple[SetClockMsr, ...],
) -> Iterator[AnyOperation]:
    """Yield looks at the result of a race: memory, logs and clocks."""
    slots = [_slot_of(host) for host in hosts]
    spaces: list[AsId] = [0, SMM] if any(map(as_id_of, slots)) else [0]
    yield from map(GetDirtyLog, slots)
    asked = {clock.vcpu for clock in clocks if clock.clock == "system_time"}
    for vcpu in range(vcpus):
        if vcpu in asked:
            yield KvmclockCtrl(vcpu)
        for as_id in spaces:
            for gfn in range(_GFN, _GFN + len(hosts) * _AREA_GFNS):
                yield Touch(gfn * PAGE_SIZE_BYTES + 0x40, vcpu=vcpu, as_id=as_id)
    yield Inspect()
    yield from (SetUserMemoryRegion(slot) for slot in slots if dice.chance(0.5))
    yield from (Touch(_gpa(dice, len(hosts)) + 0x40, vcpu=vcpu) for vcpu in range(vcpus))


def _slot_of(host: HostThread) -> int:
    """Return the slot that a thread changes, which its first operation names."""
    first = host.operations[0]
    assert isinstance(first, SetUserMemoryRegion)
    return first.slot
