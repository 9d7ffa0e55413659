"""A history as an ideal kernel would have made it: the model's first choice, step by step."""

from vmm.memslots.features import Features
from vmm.memslots.history import End, Event, Header, History
from vmm.memslots.model import Model
from vmm.memslots.operations import GUEST_MAPPING, GUEST_SIZE_BYTES, Mapping, Scenario, pages_of
from vmm.memslots.plan import steps

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
    zero_page=True,
    hugetlb_pages=8,
)


def ideal_history(scenario: Scenario, features: Features = FEATURES) -> History:
    """Return the history of a scenario on a kernel that keeps every promise."""
    guest = Mapping(GUEST_MAPPING, pages_of(GUEST_SIZE_BYTES))
    model = Model((*scenario.mappings, guest), features)
    events: list[Event] = []
    for step in steps(scenario, features.touch_limit):
        choice = model.allowed(step.operation)[0]
        choice.adopt()
        events.append(Event(step.origin, step.operation, choice.outcome))
    return History(Header(scenario, features), tuple(events), End(events=len(events)))
