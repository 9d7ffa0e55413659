"""Dirty rings: each vCPU reports a page that it wrote, once until the page is reset."""

import errno
from dataclasses import dataclass, field
from functools import partial

from vmm.model.allowed import Allowed
from vmm.model.rule import Rule, documented, source
from vmm.scenario.features import Features
from vmm.scenario.history import Done, Refused, RingPages, RingsReset
from vmm.scenario.operations import FIRST_RING_PAGE, RING_ENTRY_BYTES, MapVcpuPages

RING_SIZE = documented(
    "ring-size",
    "a dirty ring's size is a power of two, at least a page and the reserved entries, else EINVAL",
    "api.rst KVM_CAP_DIRTY_LOG_RING",
)
RING_TOO_LARGE = source(
    "ring-too-large",
    "a dirty ring larger than KVM_CHECK_EXTENSION says is E2BIG",
    "kvm_vm_ioctl_enable_dirty_log_ring",
)
RING_EXACT = documented(
    "ring-exact",
    "a vCPU's dirty ring names the pages that it wrote since they were reset, and no other; when "
    "it is nearly full, the vCPU stops",
    "api.rst KVM_CAP_DIRTY_LOG_RING",
)
RING_RESET = documented(
    "ring-reset",
    "KVM_RESET_DIRTY_RINGS resets what was harvested, and says how many entries",
    "api.rst KVM_CAP_DIRTY_LOG_RING",
)
RING_ABSENT = source(
    "ring-absent",
    "KVM_RESET_DIRTY_RINGS without rings is EINVAL, or ENOTTY on kernels that have no dirty rings",
    "kvm_vm_ioctl_reset_dirty_pages; fb04a1eddb1a added it in Linux 5.11",
)

RING_MAPPED = source(
    "ring-mapped",
    "a mapping of a vCPU's file that begins or ends with a page of its dirty ring is MAP_SHARED, "
    "and not executable, else EINVAL; other pages may be mapped in any way",
    "kvm_vcpu_mmap",
)

LEAST_BYTES = 4096
_RESERVED_ENTRIES = 64
_MOST_RESERVED_ENTRIES = _RESERVED_ENTRIES + 512
"""With PML, the processor's own log must also fit above the soft limit."""

SlotPage = tuple[int, int]


def ring_refusal(size_bytes: int, features: Features) -> tuple[int, Rule] | None:
    """Return errno and rule if a ring cannot have this size."""
    if size_bytes & (size_bytes - 1) or size_bytes < features.dirty_ring_bytes:
        return errno.EINVAL, RING_SIZE
    if size_bytes > features.dirty_ring_max_bytes:
        return errno.E2BIG, RING_TOO_LARGE
    return None


def mapped(op: MapVcpuPages, ring_bytes: int) -> tuple[Allowed, ...]:
    """Return the outcomes of mapping pages of a vCPU's file, which has a ring of this size."""
    ring = range(FIRST_RING_PAGE, FIRST_RING_PAGE + ring_bytes // LEAST_BYTES)
    last = op.first_page + op.pages - 1
    done = Allowed(Done(), RING_MAPPED)
    refused = Allowed(Refused(errno.EINVAL), RING_MAPPED)
    denied = Allowed(Refused(errno.EPERM), RING_MAPPED)  # Newer kernels execute no such file.
    is_unfit = op.executable or op.sharing == "private"
    if is_unfit and (op.first_page in ring or last in ring):
        return (refused, denied) if op.executable else (refused,)
    if is_unfit and op.first_page < ring.start and last >= ring.stop > ring.start:
        return (done, refused, denied) if op.executable else (done, refused)
    return (done, denied) if op.executable else (done,)


@dataclass(slots=True)
class _Ring:
    """What one vCPU's ring holds for certain, and perhaps.

    ``known`` are pages that it read before any other vCPU reached them: its next write is reported
    unless the read was. Once another vCPU has reached them, its ring may hold them instead.

    ``fresh`` is how many entries there may be since the last harvest, ``used`` since the reset.
    ``stopped`` says that the vCPU may have stopped between the harvest and the reset.
    ``rested`` is how many entries there certainly were when the vCPU was last known to be out of
    the guest, and ``has_stopped`` says that it then entered again with too many of them.
    ``clocked`` says that KVM itself adds an unknown number of entries.
    """

    pages: set[SlotPage] = field(default_factory=set)
    perhaps: set[SlotPage] = field(default_factory=set)
    known: set[SlotPage] = field(default_factory=set)
    fresh: int = 0
    used: int = 0
    stopped: bool = False
    rested: int = 0
    has_stopped: bool = False
    clocked: bool = False


@dataclass(slots=True)
class RingState:
    """The rings of a VM.

    ``untracked`` are pages that were reported and not reset since: they are mapped writable, and
    further writes to them, by any vCPU, need not be reported. ``unprotected`` are pages that were
    mapped writable before logging began, and may still be.
    """

    size_bytes: int
    features: Features
    untracked: set[SlotPage] = field(default_factory=set)
    unprotected: set[SlotPage] = field(default_factory=set)
    _rings: dict[int, _Ring] = field(default_factory=dict)

    def wrote(self, vcpu: int, page: SlotPage, times: int) -> None:
        """Note a write by a vCPU."""
        ring = self._entered(vcpu)
        is_tracked = page not in self.untracked and page not in self.unprotected
        if is_tracked or page in ring.known:
            ring.pages.add(page)
        else:
            ring.perhaps.add(page)
        self._reached(page, ring)
        ring.fresh += times
        ring.used += times

    def read(self, vcpu: int, page: SlotPage) -> None:
        """Note a read that may be reported like a write."""
        ring = self._entered(vcpu)
        ring.perhaps.add(page)
        if page not in self.untracked and page not in self.unprotected:
            ring.known.add(page)
        self._reached(page, ring)
        ring.fresh += 1
        ring.used += 1

    def _reached(self, page: SlotPage, by: _Ring) -> None:
        self.untracked.add(page)
        for ring in self._rings.values():
            if ring is not by:
                ring.known.discard(page)

    def rest(self) -> None:
        """Note that no vCPU is in the guest."""
        for ring in self._rings.values():
            ring.rested = len(ring.pages)

    def kernel_wrote(self, vcpu: int, page: SlotPage, *, surely: bool) -> None:
        """Note that KVM itself wrote a page, which it reports whether it is tracked or not."""
        ring = self._ring(vcpu)
        (ring.pages if surely else ring.perhaps).add(page)
        ring.clocked = True

    def protect_slot(self, number: int) -> None:
        """Note that a slot's pages are unmapped, or write-protected again."""
        self.untracked = {page for page in self.untracked if page[0] != number}
        self.unprotected = {page for page in self.unprotected if page[0] != number}

    def leave_unprotected(self, number: int, npages: int) -> None:
        """Note that logging of a slot begins while its pages stay mapped as they were."""
        self.unprotected.update((number, page) for page in range(npages))

    @property
    def soft_limit(self) -> int:
        """The fewest entries at which a vCPU may stop."""
        plain = self.features.dirty_ring_bytes <= LEAST_BYTES
        reserved = _RESERVED_ENTRIES if plain else _MOST_RESERVED_ENTRIES
        return self.size_bytes // RING_ENTRY_BYTES - reserved

    def waiting(self, vcpu: int) -> tuple[set[SlotPage], set[SlotPage]]:
        """Return what a ring holds for certain, and what it may hold."""
        ring = self._rings.get(vcpu, _Ring())
        return set(ring.pages), set(ring.perhaps)

    def settle(self, used: dict[int, int], untracked: set[SlotPage]) -> None:
        """Note that the rings of these vCPUs are empty, with ``used`` entries not yet reset."""
        for vcpu, entries in used.items():
            self._rings[vcpu] = _Ring(used=entries)
        self.untracked = untracked
        for ring in self._rings.values():
            self.untracked |= ring.pages | ring.perhaps

    def harvest(self, vcpu: int) -> Allowed:
        """Return what the ring holds; harvesting empties it."""
        ring = self._rings.get(vcpu, _Ring())
        entries = self.size_bytes // RING_ENTRY_BYTES
        outcome = RingPages(
            tuple(sorted(ring.pages)),
            full=int(ring.has_stopped or len(ring.pages) > entries),
            perhaps=tuple(sorted(ring.perhaps - ring.pages)),
            may_be_full=ring.stopped or ring.clocked or ring.used >= self.soft_limit,
        )
        return Allowed(outcome, RING_EXACT, partial(self._harvested, ring))

    def reset(self) -> Allowed:
        """Return the outcome of KVM_RESET_DIRTY_RINGS."""
        return Allowed(RingsReset(), RING_RESET, self._reset)

    def _ring(self, vcpu: int) -> _Ring:
        return self._rings.setdefault(vcpu, _Ring())

    def _entered(self, vcpu: int) -> _Ring:
        """Return the ring of a vCPU that enters the guest; note a stop if too few entries are free.

        On every processor 64 are reserved for what one exit may log (kvm_dirty_ring_soft_full).
        """
        ring = self._ring(vcpu)
        if ring.rested >= self.size_bytes // RING_ENTRY_BYTES - _RESERVED_ENTRIES:
            ring.has_stopped = True
        return ring

    def _harvested(self, ring: _Ring) -> None:
        ring.pages, ring.perhaps, ring.known = set(), set(), set()
        ring.fresh = ring.rested = 0
        ring.stopped = ring.has_stopped = False

    def _reset(self) -> None:
        self.untracked = set()
        for ring in self._rings.values():
            ring.stopped = ring.stopped or ring.used >= self.soft_limit
            ring.used = ring.fresh
            self.untracked |= ring.pages | ring.perhaps


def no_ring_to_reset(features: Features) -> tuple[Allowed, ...]:
    """Return the allowed outcomes of KVM_RESET_DIRTY_RINGS in a VM without rings.

    A kernel from before dirty rings does not know the ioctl; a later kernel built without rings
    does. Both have a capability of 0, so both answers are allowed.
    """
    numbers = (errno.EINVAL,) if features.dirty_ring_bytes else (errno.EINVAL, errno.ENOTTY)
    return tuple(Allowed(Refused(number), RING_ABSENT) for number in numbers)
