"""Which scenarios the default tier leaves to ``--all``, to stay within its three seconds.

A scenario that takes long is tagged as slow where it is defined. Those here are quick, but others
of the default tier show nearly as much: all wrong kernels of ``tests/lab/caught.json`` and of
``docs/mutants.md`` that one of these notices, another of the default tier notices, too. In
``ring-overrun-by-one-instruction`` kernels that emulate real mode print a warning, which ends a
machine of the lab, and with it the check.
"""

import msgspec

from vmm.scenario.operations import Scenario
from vmm.scenario.selection import SLOW

_NAMES = """
    after-refusals-a-slot-is-made-anew after-refusals-a-slot-moves clear-across-huge-pages-thp
    clear-grid-of-127-pages clear-grid-of-128-pages clear-grid-of-512-pages
    clear-grid-of-513-pages clear-into-a-huge-page-thp clear-into-a-huge-page-thp-initially-set
    clocks-steal-time-follows-host-memory clocks-steal-time-in-huge-pages
    clocks-system-time-copies-what-is-shared-with-a-child clocks-system-time-in-huge-pages
    close-with-a-moved-and-a-logging-slot create-63-64-65-pages devices-eventfds-of-another-vm
    dirty-logs-of-made-slots execute-on-transparent-huge-pages follow-a-file-over-anonymous
    follow-a-file-over-itself follow-a-private-view-of-a-file
    follow-fresh-memory-in-a-logged-slot follow-pages-that-a-child-shares
    follow-private-file-protected follow-two-mappings-of-a-file high-create-on-huge-pages
    high-execute-then-move-then-execute high-move-from-below-and-back
    high-move-over-the-border-by-one-page high-move-with-two-vcpus high-sweep-over-borders
    high-twins instructions-are-logged-after-a-switch instructions-of-64-bits-over-borders
    interrupt-tables-that-are-readonly interrupt-tables-that-are-readonly-in-64-bits
    interrupt-tables-that-are-readonly-in-64-bits-without-quirk
    interrupt-tables-that-are-readonly-without-quirk interrupt-tables-that-change-in-64-bits
    interrupt-tables-that-change-in-64-bits-without-quirk
    interrupt-tables-that-change-without-quirk memfd-closed-after-its-vm
    memfd-refuse-one-of-another-vm memfd-shared-and-vm-closed
    memfd-shared-parts-in-another-order memfd-two-files move-again-and-again-and-back
    other-vms-closed-by-another-thread other-vms-held-by-a-child other-vms-killed-while-closing
    quirks-move-one-slot refuse-the-place-of-the-guest return-from-an-interrupt-in-64-bits
    ring-overrun-by-one-instruction slot-ids-against-the-order-of-gfns stack-on-a-readonly-slot
    stack-over-two-slots start-after-code-moved-without-quirk
    start-after-kvm-wrote-its-tables-for-the-guest start-after-one-table-of-other-memory-came
    start-after-one-table-of-other-memory-came-without-quirk
    start-after-tables-of-other-memory-came start-and-map-two-addresses-anew-below-another-entry
    start-and-map-two-megabytes-anew-by-a-write-across-entries
    start-with-logged-tables-without-quirk start-with-readonly-tables
    start-with-readonly-tables-without-quirk start-with-tables-logged-in-between
    start-with-tables-that-move start-with-tables-that-move-without-quirk
    start-without-slots-but-page-tables-and-code strings-from-a-slot-into-a-hole
    strings-over-readonly-borders sweep-over-many-pages unmapped-zero-va-move-and-delete
"""

LEFT_TO_ALL = frozenset(_NAMES.split())


def in_its_tier(scenario: Scenario) -> Scenario:
    """Return a scenario, tagged as slow if the default tier leaves it out."""
    if scenario.name not in LEFT_TO_ALL:
        return scenario
    return msgspec.structs.replace(scenario, tags=(*scenario.tags, SLOW))
