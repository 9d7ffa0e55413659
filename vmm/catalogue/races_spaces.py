"""Races of both address spaces: SMRAM is opened, closed and moved while vCPUs run in SMM.

QEMU does that with its TSEG: once the firmware has closed it, as_id 0 no longer has that memory,
but vCPUs in system management mode still use it.
"""

from dataclasses import replace

from vmm.catalogue._build import API_DIRTY, Slot, at, creates, read, write
from vmm.catalogue._races import host, race
from vmm.scenario.operations import LOG_DIRTY_PAGES, SMM, AsId, GuestThread, Scenario, Touch

_SMM = SMM << 16
_GFN = 0x100
_VALUES = 0x4000_0000
_OPEN = Slot(1, _GFN, at("a"), pages=2)
_TSEG = Slot(_SMM | 1, _GFN, at("a"), pages=2)
_OTHER = Slot(_SMM | 1, _GFN, at("b"), pages=2)
_LOGGED = replace(_OPEN, flags=LOG_DIRTY_PAGES)
_LOGGED_TSEG = replace(_TSEG, flags=LOG_DIRTY_PAGES)


def _inside_and_outside(vcpu: int, *gfns: int) -> GuestThread:
    """Return a vCPU that reads and writes its own word in each page, in SMM and outside of it."""
    program: list[Touch] = []
    spaces: tuple[AsId, ...] = (SMM, 0)
    for as_id in spaces:
        for number, gfn in enumerate(gfns):
            offset = 0x200 + 0x20 * vcpu + 4 * as_id
            value = _VALUES + (vcpu << 24) + (as_id << 23) + (number << 20)
            program.append(write(gfn, value, offset, vcpu, as_id))
            program += (read(gfn, at, vcpu, as_id) for at in (offset, 0x40))
    return GuestThread(tuple(program), windows=4000)


SCENARIOS: tuple[Scenario, ...] = (
    race(
        "smram-opened-and-closed",
        "While SMRAM is opened and closed in as_id 0, a vCPU in SMM always reaches it, whatever "
        "it has accessed outside SMM.",
        creates(_OPEN, _TSEG),
        (host(_OPEN.delete(), _OPEN.create(), rounds=15),),
        (_inside_and_outside(0, _GFN), _inside_and_outside(1, _GFN + 1)),
        source="as_id 1: api.rst 4.35; hw/i386: TSEG; kvm_vcpu_gfn_to_memslot",
        needs=("smm",),
    ),
    race(
        "smram-replaced",
        "When SMRAM is deleted, moved, or created with other memory, vCPUs see that only in SMM.",
        creates(_OPEN, _TSEG),
        (
            host(_TSEG.delete(), _OTHER.create(), _OTHER.move(_GFN + 1), _OTHER.delete(),
                 _TSEG.create(), rounds=10),
            host(_OPEN.move(_GFN + 4), _OPEN.create(), rounds=20, pause=0),
        ),
        (_inside_and_outside(0, _GFN, _GFN + 2), _inside_and_outside(1, _GFN + 1)),
        source="as_id 1: api.rst 4.35; kvm_swap_active_memslots",
        needs=("smm",),
    ),
    race(
        "logs-of-both-spaces",
        "If both address spaces show one memory, each slot's log names the writes through it.",
        creates(_LOGGED, _LOGGED_TSEG),
        (
            host(_LOGGED.log(), rounds=15),
            host(_LOGGED_TSEG.log(), _LOGGED_TSEG.move(_GFN + 4), _LOGGED_TSEG.log(),
                 _LOGGED_TSEG.create(), rounds=8),
        ),
        (_inside_and_outside(0, _GFN), _inside_and_outside(1, _GFN + 1, _GFN + 4)),
        _LOGGED.log(),
        _LOGGED_TSEG.log(),
        source=API_DIRTY,
        needs=("smm",),
    ),
)  # fmt: skip
"""All races of two address spaces."""
