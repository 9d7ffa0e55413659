"""An ideal kernel: at each step it gives the first outcome that the model allows.

It tells which rules a scenario meets on kernels it cannot run on; tests use it without a kernel.
"""

from itertools import count, zip_longest

from vmm.model.model import Model
from vmm.scenario.clocks import LAYOUTS
from vmm.scenario.features import Features
from vmm.scenario.history import (
    AnyOutcome,
    Call,
    CallOutcome,
    End,
    Event,
    Header,
    History,
    HostChange,
    Inspected,
    Met,
    Raced,
    RingPages,
    RingsReset,
    Seen,
    Window,
)
from vmm.scenario.operations import (
    SLOT_ZAP_ALL,
    AnyOperation,
    Execute,
    HarvestDirtyRing,
    HostAction,
    Inspect,
    PreFaultMemory,
    Race,
    Scenario,
    Touch,
)
from vmm.scenario.plan import steps
from vmm.scenario.windows import in_window
from vmm.verdict.judge import judge

_SLOTS = 509

EVERYTHING = Features(
    nr_memslots=_SLOTS,
    address_spaces=2,
    smm=True,
    user_memory2=True,
    guest_memfd=True,
    guest_memfd_flags=3,
    pre_fault=True,
    vm_types=3,
    memory_attributes=8,
    manual_dirty_log=True,
    dirty_log_initially_set=True,
    dirty_ring_bytes=4096,
    dirty_ring_acq_rel=True,
    internal_tss=True,
    internal_identity=True,
    internal_apic=True,
    quirks=SLOT_ZAP_ALL,
    failing_allocations=True,
    starts_32_bit=True,
    zero_page=True,
    hugetlb_pages=8,
    coalesced_mmio=True,
    coalesced_pio=True,
    ioeventfd=True,
    kvmclock=True,
    kvmclock_ctrl=True,
    steal_time=True,
    collapse=True,
    ksm=True,
    userfaultfd=True,
    pfnmap=True,
    forced_emulation=True,
)
"""A kernel and a host with every feature, and few slots, so that filling the table is quick."""

PLAIN = Features(nr_memslots=_SLOTS, readonly_mem=False, sync_mmu=False, irqchip=False)
"""A kernel with the fewest features: some rules say what is refused without a feature."""


_EVEN = b"\2"


def rules_met(scenario: Scenario, features: Features) -> frozenset[str]:
    """Return the rules that may decide a scenario's events; none if it needs more features."""
    if features.missing(scenario.needs, scenario.vm_type):
        return frozenset()
    kernel = IdealKernel(scenario, features)
    history = kernel.history()
    if any(isinstance(operation, Race) for operation in scenario.operations):
        kernel.rules.update(judge(history).rules)
    return frozenset(kernel.rules)


def _seen(outcome: AnyOutcome) -> AnyOutcome:
    """Return what the host sees after KVM has written its clocks: an even version in each."""
    if not isinstance(outcome, Inspected):
        return outcome
    versions = (
        HostChange(each.mapping, each.offset + LAYOUTS[each.clock].version, _EVEN)
        for each in outcome.due
    )
    return Inspected((*outcome.changes, *versions))


class IdealKernel:
    """A kernel that gives the first outcome that the model allows.

    ``rules`` are those of all allowed outcomes. `history` raises IndexError for an operation of
    which the model knows no outcome.
    """

    def __init__(self, scenario: Scenario, features: Features) -> None:
        self._header = Header(scenario, features)
        self._model = Model.of(self._header)
        self.rules: set[str] = set()
        self._harvested = 0

    def history(self) -> History:
        """Return the history of the scenario on this kernel."""
        events: list[Event] = []
        header = self._header
        for step in steps(header.scenario, header.features.touch_limit):
            operation = step.operation
            outcome = (
                self._race(operation) if isinstance(operation, Race) else self._next(operation)
            )
            events.append(Event(step.origin, operation, outcome))
        return History(header, tuple(events), End(events=len(events)))

    def _next(self, operation: AnyOperation) -> AnyOutcome:
        allowed = self._model.prefer(operation)
        self.rules.update(choice.rule.name for choice in allowed)
        return _seen(allowed[0].outcome)

    def _race(self, race: Race) -> Raced:
        """Return the outcome of a race whose threads take turns: a call, then a window per vCPU."""
        moments = count()
        calls: list[list[Call]] = [[] for _ in race.hosts]
        windows: list[list[Window]] = [[] for _ in race.guests]
        seen: list[dict[Seen, int]] = [{} for _ in race.guests]
        most = max((host.rounds for host in race.hosts), default=0)
        queues = [
            [op for _ in range(host.rounds or most) for op in host.operations]
            for host in race.hosts
        ]
        for turn in zip_longest(*queues):
            for thread, operation in enumerate(turn):
                if operation is not None:
                    begin, outcome = next(moments), self._called(operation)
                    calls[thread].append(Call(begin, next(moments), outcome))
                for vcpu, guest in enumerate(race.guests):
                    begin, number = next(moments), len(windows[vcpu])
                    met = tuple(self._accessed(op, number) for op in guest.program)
                    index = seen[vcpu].setdefault(met, len(seen[vcpu]))
                    windows[vcpu].append(Window(begin, next(moments), index))
        changes = self._next(Inspect())
        assert isinstance(changes, Inspected)
        rings = tuple(self._harvest(vcpu) for vcpu in range(len(race.guests)))
        return Raced(
            tuple(map(tuple, calls)),
            tuple(map(tuple, windows)),
            tuple(tuple(each) for each in seen),
            changes.changes,
            rings=rings if any(map(RingPages().__ne__, rings)) else (),
        )

    def _called(self, operation: HostAction) -> CallOutcome:
        if isinstance(operation, HarvestDirtyRing):
            return self._harvest(operation.vcpu)
        outcome = self._next(operation)
        assert isinstance(outcome, CallOutcome)
        if isinstance(outcome, RingsReset):
            outcome, self._harvested = RingsReset(self._harvested), 0
        return outcome

    def _harvest(self, vcpu: int) -> RingPages:
        """Harvest a ring that reports every write, whether or not the page was protected again."""
        outcome = self._next(HarvestDirtyRing(vcpu))
        assert isinstance(outcome, RingPages)
        pages = tuple(sorted({*outcome.pages, *outcome.perhaps}))
        self._harvested += len(pages)
        return RingPages(pages, entries=len(pages))

    def _accessed(self, op: Touch | Execute | PreFaultMemory, number: int) -> Met:
        outcome = self._next(in_window(op, number))
        assert isinstance(outcome, Met)
        return outcome
