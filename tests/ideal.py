"""A history as an ideal kernel would have made it: the model's first choice, step by step."""

from itertools import count, zip_longest

from vmm.memslots.features import Features
from vmm.memslots.history import (
    AnyOutcome,
    Call,
    DirtyPages,
    Done,
    End,
    Event,
    Header,
    History,
    Inspected,
    Raced,
    Refused,
    Seen,
    Stopped,
    Touched,
    Window,
)
from vmm.memslots.model import Model
from vmm.memslots.operations import (
    AnyOperation,
    Execute,
    Inspect,
    Race,
    Scenario,
    Touch,
)
from vmm.memslots.plan import guest_mapping, steps
from vmm.racing.program import in_window

FEATURES = Features(
    user_memory2=True,
    guest_memfd=True,
    guest_memfd_flags=3,
    manual_dirty_log=True,
    dirty_log_initially_set=True,
    dirty_ring_bytes=4096,
    dirty_ring_acq_rel=True,
    internal_tss=True,
    internal_identity=True,
    internal_apic=True,
    quirks=1 << 7,
    zero_page=True,
    hugetlb_pages=8,
)


def ideal_history(scenario: Scenario, features: Features = FEATURES) -> History:
    """Return the history of a scenario on a kernel that keeps every promise."""
    model = Model((*scenario.mappings, guest_mapping(scenario)), features)
    events: list[Event] = []
    for step in steps(scenario, features.touch_limit):
        operation = step.operation
        if isinstance(operation, Race):
            outcome: AnyOutcome = _ideal_race(model, operation)
        else:
            outcome = _next(model, operation)
        events.append(Event(step.origin, operation, outcome))
    return History(Header(scenario, features), tuple(events), End(events=len(events)))


def _next(model: Model, operation: AnyOperation) -> AnyOutcome:
    choice = model.allowed(operation)[0]
    choice.adopt()
    return choice.outcome


def _ideal_race(model: Model, race: Race) -> Raced:
    """Return what comes of a race whose threads take turns: a call, then a window of each vCPU."""
    moments = count()
    calls: list[list[Call]] = [[] for _ in race.hosts]
    windows: list[list[Window]] = [[] for _ in race.guests]
    seen: list[dict[Seen, int]] = [{} for _ in race.guests]
    queues = [[op for _ in range(host.rounds) for op in host.operations] for host in race.hosts]
    for turn in zip_longest(*queues):
        for thread, operation in enumerate(turn):
            if operation is not None:
                begin, outcome = next(moments), _next(model, operation)
                assert isinstance(outcome, Done | Refused | DirtyPages)
                calls[thread].append(Call(begin, next(moments), outcome))
            for vcpu, guest in enumerate(race.guests):
                begin, number = next(moments), len(windows[vcpu])
                met = tuple(_accessed(model, op, number) for op in guest.program)
                index = seen[vcpu].setdefault(met, len(seen[vcpu]))
                windows[vcpu].append(Window(begin, next(moments), index))
    changes = _next(model, Inspect())
    assert isinstance(changes, Inspected)
    return Raced(
        tuple(map(tuple, calls)),
        tuple(map(tuple, windows)),
        tuple(tuple(each) for each in seen),
        changes.changes,
    )


def _accessed(model: Model, op: Touch | Execute, number: int) -> Touched | Stopped:
    outcome = _next(model, in_window(op, number) if isinstance(op, Touch) else op)
    assert isinstance(outcome, Touched | Stopped)
    return outcome
