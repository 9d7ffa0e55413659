"""Conditions of known issues that concern what a vCPU remembers of pages that it met as MMIO.

A scenario is followed once, whatever its length.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from vmm.scenario.operations import (
    ATTRIBUTE_PRIVATE,
    GUEST_MEMFD,
    PAGE_SIZE_BYTES,
    READONLY,
    SMM,
    AnyOperation,
    ChangeHostMemory,
    Instruction,
    NewVm,
    Race,
    Scenario,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    Sweep,
    Touch,
    access_end,
    pages_of,
)
from vmm.scenario.plan import ANYWHERE, Step, steps
from vmm.scenario.races import gfns_of
from vmm.scenario.slots import KERNEL_HALF, as_id_of
from vmm.verdict.gfnset import GfnSet
from vmm.verdict.slotsbefore import Slots

_TAKE_AWAY = ("unmap", "forbid", "write_protect", "move_away", "truncate")
"""The changes of host memory after which an access may fail."""

_Named = Callable[[SetUserMemoryRegion], Iterable[tuple[int, range]]]
"""The pages that a call gives to a slot, as far as an issue is concerned: as_id and gfns."""


def reads_private_memory_over_mmio(scenario: Scenario) -> bool:
    """Whether private memory is touched at a gpa that was touched before it had a slot."""
    if not scenario.vm_type:
        return False
    if any(_is_raced_over_mmio(scenario, *each) for each in enumerate(scenario.operations)):
        return True
    if not any(
        isinstance(op, SetMemoryAttributes) and op.attributes & ATTRIBUTE_PRIVATE
        for op in scenario.operations
    ):
        return False
    return _any_own(scenario, _Met(scenario, _FirstCalls()), _is_touched_over_mmio)


def is_private_memory_over_mmio(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether a vCPU touches a page that it touched before the page's first slot was made.

    In a race it does not matter which vCPU did: they share what KVM knows of the page.
    """
    if isinstance(op, Race):
        return _is_raced_over_mmio(scenario, origin, op)
    return _is_touched_over_mmio(_known_at(scenario, origin, _Met(scenario, _FirstCalls())), op)


def _is_raced_over_mmio(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether vCPUs of a race touch a page that may have become private memory since it was met."""
    if not isinstance(op, Race):
        return False
    may_be = _MayBePrivate()
    for step in steps(scenario, ANYWHERE):
        if step.origin > origin:
            break
        may_be.follow(step.operation)
    return any(may_be.over_mmio(each) for each in _raced(op))


def touches_private_pages_met_as_mmio(scenario: Scenario) -> bool:
    """Whether a page is touched that became private after it was touched without a slot."""
    if not scenario.vm_type:
        return False
    return _any_own(scenario, _MadePrivate(scenario), _is_touched_over_mmio)


def is_touched_since_made_private(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether a vCPU touches a page that became private after it touched it without a slot."""
    return _is_touched_over_mmio(_known_at(scenario, origin, _MadePrivate(scenario)), op)


def switches_spaces_over_mmio(scenario: Scenario) -> bool:
    """Whether a vCPU in SMM accesses a page again whose slot in as_id 1 was made meanwhile."""
    return "smm" in scenario.needs and _any_own(
        scenario, _Met(scenario, _all_calls), _is_touched_in_smm
    )


def is_touched_over_mmio_in_smm(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such an access."""
    return _is_touched_in_smm(_known_at(scenario, origin, _Met(scenario, _all_calls)), op)


def returns_over_mmio(scenario: Scenario) -> bool:
    """Whether a vCPU touches a page again that it met as MMIO, after a look at it in SMM.

    Meanwhile a slot of as_id 0 was made there.
    """
    return "smm" in scenario.needs and _any_own(
        scenario, _Met(scenario, _all_calls), _is_touched_after_smm
    )


def is_touched_over_mmio_after_smm(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this is such a touch."""
    return _is_touched_after_smm(_known_at(scenario, origin, _Met(scenario, _all_calls)), op)


def crosses_spaces(scenario: Scenario) -> bool:
    """Whether a vCPU accesses a page right after it did so in the other address space."""
    if "smm" not in scenario.needs:
        return False
    crossing = _Crossing(scenario)
    for step in steps(scenario, ANYWHERE):
        crossing.follow(step)
    return crossing.is_any


def is_accessed_across_spaces(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether a vCPU accesses a page by then that it accessed in the other address space before."""
    crossing = _Crossing(scenario)
    for step in steps(scenario, ANYWHERE):
        if step.origin > origin:
            break
        crossing.follow(step)
    return crossing.is_crossed(op)


def writes_where_mmio_was(scenario: Scenario) -> bool:
    """Whether a guest writes to a READONLY slot on a page that it has met as MMIO.

    True only where the slot may lack host memory; else there is nothing to see of it.
    """
    named = _ReadonlyCalls(scenario)
    if not any(any(named(op)) for op in scenario.operations if isinstance(op, SetUserMemoryRegion)):
        return False
    met = _Met(scenario, named)
    for step in steps(scenario, ANYWHERE):
        met.follow(step)
        if _is_written(met, step.operation):
            return True
    return False


def is_written_where_mmio_was(scenario: Scenario, origin: int, op: AnyOperation) -> bool:
    """Whether this writes through a READONLY slot that was made since the vCPU touched the page."""
    return _is_written(_known_at(scenario, origin, _Met(scenario, _ReadonlyCalls(scenario))), op)


class _Met:
    """The pages that each vCPU touched, in each address space, before a call named them."""

    def __init__(self, scenario: Scenario, named: _Named) -> None:
        self._operations = scenario.operations
        self._named = named
        self._touched: defaultdict[tuple[int, int], GfnSet] = defaultdict(GfnSet)
        self._named_since: defaultdict[tuple[int, int], GfnSet] = defaultdict(GfnSet)
        self._then_in_smm: defaultdict[int, GfnSet] = defaultdict(GfnSet)

    def follow(self, step: Step) -> None:
        """Take the next step of the scenario into account."""
        op = step.operation
        if isinstance(op, Touch | Sweep | Instruction):
            gfns = _accessed(op)
            self._touched[op.as_id, op.vcpu].add(gfns)
            if op.as_id == SMM and self.has(0, op.vcpu, gfns):
                self._then_in_smm[op.vcpu].add(gfns)
        elif isinstance(op, SetUserMemoryRegion) and self.is_own(step):
            for as_id, gfns in self._named(op):
                self._name(as_id, gfns)

    def is_own(self, step: Step) -> bool:
        """Whether a step is the scenario's, and no survey's or slot for a guest to live in."""
        own = self._operations
        return 0 <= step.origin < len(own) and step.operation is own[step.origin]

    def has(self, as_id: int, vcpu: int, gfns: range) -> bool:
        """Whether any of these pages was touched before a call named it."""
        return self._named_since[as_id, vcpu].overlaps(gfns)

    def was_seen_in_smm(self, vcpu: int, gfns: range) -> bool:
        """Whether any of these pages was touched in SMM after a call of as_id 0 named it."""
        return self._then_in_smm[vcpu].overlaps(gfns)

    def _name(self, as_id: int, gfns: range) -> None:
        for (space, vcpu), touched in self._touched.items():
            if space == as_id:
                for each in touched.take(gfns):
                    self._named_since[space, vcpu].add(each)


class _Slots:
    """The slots of one address space, as far as calls tell.

    A call that is refused is taken for one that is not, unless it cannot be.
    """

    def __init__(self) -> None:
        self._slots: dict[int, range] = {}
        self._immutable: set[int] = set()
        self._taken = GfnSet()

    def hold_any(self, gfns: range) -> bool:
        """Whether a slot has any of these pages."""
        return self._taken.overlaps(gfns)

    def follow(self, call: SetUserMemoryRegion) -> None:
        """Take a call for a slot of this space into account.

        A slot with a guest_memfd can only be deleted, and none that is there gets one.
        """
        gfns, before = gfns_of(call), self._slots.pop(call.slot, range(0))
        self._taken.take(before)
        if not call.memory_size:
            self._immutable.discard(call.slot)
            return
        has_memfd = bool(call.flags & GUEST_MEMFD)
        is_fixed = bool(before) and (has_memfd or call.slot in self._immutable)
        is_taken = (
            _is_plain(call)
            and not is_fixed
            and len(before) in (0, len(gfns))
            and not self._taken.overlaps(gfns)
        )
        kept = gfns if is_taken else before
        if is_taken and has_memfd:
            self._immutable.add(call.slot)
        if kept:
            self._slots[call.slot] = kept
            self._taken.add(kept)


class _MadePrivate(_Met):
    """The pages that each vCPU touched where no slot was, before a call made them private."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario, _all_calls)
        self._slots = _Slots()

    def follow(self, step: Step) -> None:
        """Take the next step of the scenario into account."""
        op = step.operation
        if isinstance(op, Touch | Sweep):
            gfns = _accessed(op)
            if not self._slots.hold_any(gfns):
                self._touched[op.as_id, op.vcpu].add(gfns)
        elif isinstance(op, SetUserMemoryRegion):
            self._slots.follow(op)
        elif isinstance(op, SetMemoryAttributes) and op.attributes & ATTRIBUTE_PRIVATE:
            self._name(0, range(pages_of(op.address), pages_of(op.address + op.size)))


class _MayBePrivate:
    """The pages that may be private, and get a guest_memfd after a vCPU has touched them."""

    def __init__(self) -> None:
        self._touched = GfnSet()
        self._bound_since = GfnSet()
        self._private = GfnSet()

    def follow(self, op: AnyOperation) -> None:
        """Take an operation into account; those of a race in the order that shows most."""
        match op:
            case Touch() | Sweep() | Instruction():
                self._touched.add(_accessed(op))
            case Race():
                for access in _raced(op):
                    self.follow(access)
                for host in op.hosts:
                    for each in host.operations:
                        self.follow(each)
            case SetUserMemoryRegion() if op.flags & GUEST_MEMFD:
                for gfns in self._touched.take(gfns_of(op)):
                    self._bound_since.add(gfns)
            case SetMemoryAttributes() if op.attributes & ATTRIBUTE_PRIVATE:
                self._private.add(range(pages_of(op.address), pages_of(op.address + op.size)))
            case _:
                pass

    def over_mmio(self, op: Touch) -> bool:
        """Whether an access may find private memory where it has found none before."""
        gfns = _accessed(op)
        return self._bound_since.overlaps(gfns) and self._private.overlaps(gfns)


def _raced(race: Race) -> Iterator[Touch]:
    """Yield the touches of a race's vCPUs."""
    return (op for guest in race.guests for op in guest.program if isinstance(op, Touch))


class _Crossing(_Met):
    """The pages that a vCPU accessed in one address space after it met no slot in the other.

    What it has met as MMIO is asked about where KVM emulates, or where the page was MMIO before. A
    call that changes a slot of as_id 0 comes in between: then it is met anew.
    """

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario, _all_calls)
        self._slots: defaultdict[int, _Slots] = defaultdict(_Slots)
        self._last: dict[int, tuple[int, range]] = {}
        self._changed = Slots()
        self._crossed: defaultdict[tuple[int, int], GfnSet] = defaultdict(GfnSet)

    @property
    def is_any(self) -> bool:
        """Whether there is any such page."""
        return bool(self._crossed)

    def follow(self, step: Step) -> None:
        """Take the next step of the scenario into account."""
        super().follow(step)
        op = step.operation
        if isinstance(op, Touch | Sweep | Instruction):
            gfns = _accessed(op)
            space, met = self._last.pop(op.vcpu, (op.as_id, range(0)))
            if space != op.as_id and _overlap(met, gfns) and self._is_asked_about(op, gfns):
                self._crossed[op.as_id, op.vcpu].add(gfns)
            if not self._slots[op.as_id].hold_any(gfns):
                self._last[op.vcpu] = op.as_id, gfns
        elif isinstance(op, SetUserMemoryRegion):
            self._slots[as_id_of(op.slot)].follow(op)
            if self._changed.change(op) is not None and as_id_of(op.slot) == 0:
                self._last.clear()
        elif isinstance(op, NewVm):
            self._changed = Slots()

    def is_crossed(self, op: AnyOperation) -> bool:
        """Whether an operation accesses such a page."""
        if not isinstance(op, Touch | Sweep | Instruction):
            return False
        return self._crossed[op.as_id, op.vcpu].overlaps(_accessed(op))

    def _is_asked_about(self, op: Touch | Sweep | Instruction, gfns: range) -> bool:
        may_be_emulated = isinstance(op, Instruction) or op.access == "write"
        return may_be_emulated or self.has(op.as_id, op.vcpu, gfns)


class _FirstCalls:
    """The pages that no call has named before, all as those of as_id 0."""

    def __init__(self) -> None:
        self._made = GfnSet()

    def __call__(self, call: SetUserMemoryRegion) -> Iterable[tuple[int, range]]:
        gfns = gfns_of(call)
        fresh = self._made.missing(gfns)
        self._made.add(gfns)
        return [(0, each) for each in fresh]


def _all_calls(call: SetUserMemoryRegion) -> Iterable[tuple[int, range]]:
    return [(as_id_of(call.slot), gfns_of(call))]


class _ReadonlyCalls:
    """The pages that calls give to READONLY slots which may lack host memory."""

    def __init__(self, scenario: Scenario) -> None:
        self._lacking = {each.name for each in scenario.mappings if each.kind == "unmapped"}
        self._lacking |= {
            op.place.mapping
            for op in scenario.operations
            if isinstance(op, ChangeHostMemory) and op.how in _TAKE_AWAY
        }
        self._zero_end = max(
            (each.pages * PAGE_SIZE_BYTES for each in scenario.mappings if each.kind == "zero"),
            default=0,
        )

    def __call__(self, call: SetUserMemoryRegion) -> Iterable[tuple[int, range]]:
        may_be = call.flags & READONLY and _is_plain(call) and self._may_lack(call)
        return _all_calls(call) if may_be else ()

    def _may_lack(self, call: SetUserMemoryRegion) -> bool:
        hva = call.userspace_addr
        if isinstance(hva, int):
            return hva + call.memory_size > self._zero_end
        return hva.mapping in self._lacking


def _is_touched_over_mmio(met: _Met, op: AnyOperation) -> bool:
    return isinstance(op, Touch) and met.has(0, op.vcpu, _first_page(op))


def _is_touched_in_smm(met: _Met, op: AnyOperation) -> bool:
    if not isinstance(op, Touch | Instruction) or op.as_id != SMM:
        return False
    return met.has(SMM, op.vcpu, _accessed(op))


def _is_touched_after_smm(met: _Met, op: AnyOperation) -> bool:
    if not isinstance(op, Touch) or op.as_id == SMM:
        return False
    return met.was_seen_in_smm(op.vcpu, _first_page(op))


def _is_written(met: _Met, op: AnyOperation) -> bool:
    if not isinstance(op, Touch | Sweep) or op.access != "write":
        return False
    return met.has(op.as_id, op.vcpu, _accessed(op))


def _any_own(scenario: Scenario, met: _Met, shows: Callable[[_Met, AnyOperation], bool]) -> bool:
    """Whether an issue may show at any of the scenario's own operations."""
    for step in steps(scenario, ANYWHERE):
        met.follow(step)
        if met.is_own(step) and shows(met, step.operation):
            return True
    return False


def _known_at(scenario: Scenario, origin: int, met: _Met) -> _Met:
    """Return what is known after an operation and its survey."""
    for step in steps(scenario, ANYWHERE):
        if step.origin > origin:
            break
        met.follow(step)
    return met


def _is_plain(call: SetUserMemoryRegion) -> bool:
    """Whether nothing about a call's numbers has it refused."""
    address = call.userspace_addr
    low = address if isinstance(address, int) else address.offset
    aligned = (call.memory_size | call.guest_phys_addr | low) % PAGE_SIZE_BYTES == 0
    return aligned and low < KERNEL_HALF


def _overlap(gfns: range, others: range) -> bool:
    return gfns.start < others.stop and others.start < gfns.stop


def _first_page(op: Touch) -> range:
    return range(pages_of(op.gpa), pages_of(op.gpa) + 1)


def _accessed(op: Touch | Sweep | Instruction) -> range:
    return range(pages_of(op.gpa), pages_of(access_end(op) - 1) + 1)
