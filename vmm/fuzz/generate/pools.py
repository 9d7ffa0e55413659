"""The few values that a random scenario is made of: few, so that its operations collide."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kvm_abi.uapi import APIC_GPA, IDENTITY_MAP_GPA, TSS_PAGES, USUAL_TSS_GPA
from vmm.fuzz.generate.dice import Dice
from vmm.scenario.features import Features
from vmm.scenario.limits import MAX_ZERO_PAGES
from vmm.scenario.operations import (
    GUEST_SIZE_BYTES,
    HUGE_KINDS,
    HUGE_PAGE_PAGES,
    LOG_DIRTY_PAGES,
    PAGE_SIZE_BYTES,
    READONLY,
    RING_ENTRY_BYTES,
    SMM,
    AsId,
    Guest,
    Mapping,
    MappingKind,
)
from vmm.scenario.programs import SMM_HANDLER, SMM_STATE

GUEST = Guest()
"""Where the guest itself lives in every random scenario."""

REACH = 1 << 32
"""Most random scenarios touch gpas below this, which guests reach in every mode."""

SHOWN = "shown"
"""The mapping of the guest_memfd that is shared with the host."""

TABLES = "tables"
"""The mapping that holds a guest's own page tables, and code."""

INTERRUPT_GFNS = tuple(range(0xA, 0x16))
"""Where interrupts find tables, code and stacks: in real mode stacks end with the first 64 KiB."""

INTERNAL_PLACES = tuple(
    (gpa, gpa + pages * PAGE_SIZE_BYTES)
    for gpa, pages in ((APIC_GPA, 1), (USUAL_TSS_GPA, TSS_PAGES), (IDENTITY_MAP_GPA, 1))
)
"""Where a kernel may have slots of its own: from, to."""

INTERNAL_GFNS = tuple(
    gfn
    for start, end in INTERNAL_PLACES
    for gfn in range(start // PAGE_SIZE_BYTES - 1, end // PAGE_SIZE_BYTES + 1)
)
"""The same pages, and those beside them."""

RING_FILLER = "filler"
"""The mapping with more pages than a dirty ring has entries."""

LARGE = "large"
"""The mapping of large slots, of which little is touched."""

SMRAM_GFNS = tuple(range(SMM_HANDLER // PAGE_SIZE_BYTES, SMM_STATE // PAGE_SIZE_BYTES + 1))
"""In as_id 1: from the handler of an SMI to the state that a vCPU saves."""

CODE_GFNS, WORD_GFNS = tuple(range(0x100, 0x104)), (0x110, 0x111)
"""What an SMI interrupts, and where a handler writes."""

_SHOWN_PAGES = 4
_TABLE_PAGES = 8
_INTERRUPT_TABLE_PAGES = 4
_HIGH_SHARE = 0.12
_SUBJECT_SHARE = 0.3
_HIGH_GFNS = (1 << 20, 0x12_3400, (1 << 24) - 4, (1 << 28) - 4, 1 << 32)
_ALIASED_BITS = (20, 24, 28, 32)
"""Gfns that differ only in one of these bits are confused by a kernel that loses it."""

_SMM_SHARE = 0.3
"""The share of scenarios that look at both address spaces, if there are two."""

_OLD_LIMIT = 509
"""The number of user slots of kernels before 5.11: the ids around it are borders."""

_USUAL_WINDOWS = (0x100, 0x100, 0x1000, 0x10)
_BORDER_WINDOWS = (0, 0x9C, 0x1FA, 0x3FC, 0x7FFFC, GUEST.gpa // PAGE_SIZE_BYTES - 8)
_WINDOW_PAGES = (6, 8, 12, 24)
_SIZES = ((1,), (1, 1, 2), (1, 2, 3), (2, 3, 4), (1, 2, 63, 64, 65), (127, 128, 129))
_MOST_ENTRIES = 1024
_FILLS_RINGS = 0.3
_LARGE_SIZES = ((1 << 15) + 1, 1 << 17, (1 << 17) + HUGE_PAGE_PAGES, 1 << 18)
_LARGE_GFNS = (1 << 16, 1 << 18)
_SPARE_HUGE_PAGES = 8
"""A host has this many reserved huge pages, or none is used: several processes may run."""
_SMALL = 4
_KINDS: tuple[MappingKind, ...] = ("anonymous", "anonymous", "anonymous", "shared", "memfd")


@dataclass(frozen=True, slots=True)
class Pools:
    """What a scenario may name. ``gfns`` are within the guest's reach, ``far_gfns`` are not.

    ``manual_log`` says whether the dirty log is cleared by hand, ``spaces`` which address spaces
    the guest looks at, ``subjects`` what else the scenario is about; touched gpas are below
    ``reach``. ``has_long`` says whether there are guests in 64-bit mode, ``starts_32_bit`` whether
    those with page tables run in 32-bit mode, too, ``forces`` whether KVM can be made to emulate
    instructions, ``has_ports`` whether ranges of ports can be coalesced.
    """

    slots: tuple[int, ...]
    far_slots: tuple[int, ...]
    gfns: tuple[int, ...]
    far_gfns: tuple[int, ...]
    sizes: tuple[int, ...]
    mappings: tuple[Mapping, ...]
    flags: tuple[int, ...]
    vcpus: int = 1
    manual_log: bool = False
    spaces: tuple[AsId, ...] = (0,)
    subjects: frozenset[str] = frozenset()
    reach: int = REACH
    has_long: bool = False
    forces: bool = False
    has_ports: bool = False
    starts_32_bit: bool = False


def draw(dice: Dice, features: Features) -> Pools:
    """Return the pools of one scenario."""
    spaces: tuple[AsId, ...] = (0, SMM) if features.smm and dice.chance(_SMM_SHARE) else (0,)
    subjects = _subjects(dice, features)
    is_high = dice.chance(_HIGH_SHARE) and "internal" not in subjects
    reach = features.touch_limit if is_high else REACH
    flags = _flags(dice, features)
    sizes = dice.pick(_SIZES)
    mappings = _mappings(dice, features, subjects, max(sizes))
    is_huge = any(mapping.kind in ("thp", *HUGE_KINDS) for mapping in mappings)
    slots, gfns = _slots(dice, features, spaces), _gfns(dice, reach)
    if "internal" in subjects:
        gfns += INTERNAL_GFNS
    return Pools(
        slots,
        _far_slots(features),
        gfns + _huge_pages_on(gfns, reach) if is_huge else gfns,
        _far_gfns(features),
        (*sizes, HUGE_PAGE_PAGES, HUGE_PAGE_PAGES + 65) if is_huge else sizes,
        mappings,
        flags + _flags_of(subjects, features),
        dice.pick((1, 1, 1, 1, 2, 2, 3)),
        features.manual_dirty_log and "rings" not in subjects and dice.chance(0.2),
        spaces,
        subjects,
        reach,
        features.touch_limit > REACH,
        features.forced_emulation,
        features.coalesced_pio,
        features.starts_32_bit,
    )


def _subjects(dice: Dice, features: Features) -> frozenset[str]:
    """Return what a scenario is about besides slots: usually nothing, or one subject."""
    known = {
        "rings": features.dirty_ring_bytes > 0,
        "memfds": features.guest_memfd and features.user_memory2,
        "host": features.sync_mmu,
        "internal": features.irqchip,
        "ahead": features.pre_fault,
        "vms": True,
        "starts": features.touch_limit > REACH and features.sync_mmu,
    }
    usable = [subject for subject, is_there in known.items() if is_there]
    if not usable or not dice.chance(_SUBJECT_SHARE):
        return frozenset()
    return frozenset((dice.pick(usable),))


def odd_subjects(features: Features) -> tuple[str, ...]:
    """Return the subjects that are drawn now and then for a scenario without another."""
    known = {
        "clocks": features.kvmclock and features.kvmclock_ctrl and features.steal_time,
        "devices": features.coalesced_mmio and features.ioeventfd,
        "interrupts": True,
        "smis": features.smm,
    }
    return tuple(subject for subject, is_there in known.items() if is_there)


def with_odd_subject(drawn: Pools, subject: str, features: Features) -> Pools:
    """Return pools for one of these subjects."""
    chosen = replace(drawn, subjects=frozenset((subject,)))
    if subject == "smis":
        return _with_smram(chosen)
    if subject == "vapics":  # With a local APIC all vCPUs but the first would wait.
        return replace(chosen, vcpus=1)
    if subject != "interrupts":
        return chosen
    mappings = drawn.mappings
    if features.touch_limit > REACH and features.sync_mmu:
        mappings += (Mapping(TABLES, _INTERRUPT_TABLE_PAGES),)
    return replace(
        chosen, gfns=INTERRUPT_GFNS, mappings=mappings, spaces=(0,), reach=REACH, manual_log=False
    )


def with_large_slots(dice: Dice, drawn: Pools) -> Pools:
    """Return pools that have a large mapping, too, and room for slots of its size."""
    pages = dice.pick(_LARGE_SIZES)
    return replace(
        drawn,
        gfns=(*drawn.gfns, *_LARGE_GFNS),
        sizes=(*drawn.sizes, pages, pages // 2 + 1),
        mappings=(*drawn.mappings, Mapping(LARGE, pages)),
    )


def _with_smram(drawn: Pools) -> Pools:
    """Return pools in which slots are where an SMI leads, in both address spaces."""
    prepared = (Mapping("a", len(SMRAM_GFNS)), Mapping("b", len(SMRAM_GFNS)))
    others = (each for each in drawn.mappings if each.name not in ("a", "b") and not each.of)
    ids = [slot & 0xFFFF for slot in drawn.slots]
    return replace(
        drawn,
        gfns=(*SMRAM_GFNS, *CODE_GFNS, *WORD_GFNS),
        slots=tuple(dict.fromkeys((*ids, *(SMM << 16 | each for each in ids)))),
        sizes=(1, 2, len(SMRAM_GFNS)),
        mappings=(*prepared, *others),
        spaces=(0, SMM),
        reach=REACH,
        manual_log=False,
    )


def is_free(slot: int) -> bool:
    """Return whether a scenario may use this slot number: one id is the guest's own."""
    return slot & 0xFFFF != GUEST.slot


def _slots(dice: Dice, features: Features, spaces: tuple[AsId, ...]) -> tuple[int, ...]:
    last = features.nr_memslots - 1
    borders = [0, _OLD_LIMIT - 1, _OLD_LIMIT, _OLD_LIMIT + 1, last - 1, last]
    borders += [1 << bit for bit in (10, 13) if 1 << bit < last]
    if features.address_spaces > 1:
        borders += [1 << 16, 1 << 16 | 1]
    first = dice.pick((0, 1, 1, 2, 6))
    slots = list(range(first, first + dice.pick((2, 3, 4, 8))))
    if dice.chance(0.3):
        slots += [slot for slot in borders if dice.chance(0.5)]
    if SMM in spaces:
        slots += [SMM << 16 | slot & 0xFFFF for slot in slots if dice.chance(0.7)]
    return tuple(dict.fromkeys(slot for slot in slots if is_free(slot) and slot & 0xFFFF <= last))


def _far_slots(features: Features) -> tuple[int, ...]:
    """Return slot numbers that no kernel with these features has."""
    beyond = features.nr_memslots
    space = features.address_spaces << 16
    return tuple(slot for slot in (beyond, 0xFFFF, space, space | 1, 0xFFFF << 16) if slot > 0)


def _gfns(dice: Dice, reach: int) -> tuple[int, ...]:
    gfns: list[int] = []
    if reach > REACH:
        first = dice.pick((*_HIGH_GFNS, reach // PAGE_SIZE_BYTES - 8))
        first = min(first, reach // PAGE_SIZE_BYTES - 8)
        gfns += range(first, first + 8)
        if dice.chance(0.5):
            alias = 1 << dice.pick(_ALIASED_BITS)
            low = dice.pick(_USUAL_WINDOWS)
            far = (low | alias) if low + alias < reach // PAGE_SIZE_BYTES else low | 1 << 20
            gfns += (*range(low, low + 4), *range(far, far + 4))
            return tuple(dict.fromkeys(gfns))
    for _ in range(dice.pick((1, 1, 2))):
        first = dice.pick(_BORDER_WINDOWS if dice.chance(0.4) else _USUAL_WINDOWS)
        gfns += range(first, first + dice.pick(_WINDOW_PAGES))
    return tuple(dict.fromkeys(gfns))


def _huge_pages_on(gfns: tuple[int, ...], reach: int) -> tuple[int, ...]:
    """Return gfns that a slot moves to by whole huge pages, so that its alignment stays."""
    ways = (gfns[0] + number * HUGE_PAGE_PAGES for number in (1, 2, 4))
    end = GUEST.gpa if reach == REACH else reach
    return tuple(gfn for gfn in ways if (gfn + HUGE_PAGE_PAGES) * PAGE_SIZE_BYTES <= end)


def _far_gfns(features: Features) -> tuple[int, ...]:
    """Return gfns out of reach: the guest's own, above 4 GiB, at the last gfn, beyond it."""
    guest = GUEST.gpa // PAGE_SIZE_BYTES
    last = features.last_gfn
    reach = REACH // PAGE_SIZE_BYTES
    return (
        guest, guest + GUEST_SIZE_BYTES // PAGE_SIZE_BYTES - 1, reach, reach + 0x100,
        last - 1, last, last + 1, (1 << 52) - 1,
    )  # fmt: skip


def _mappings(
    dice: Dice, features: Features, subjects: frozenset[str], size: int
) -> tuple[Mapping, ...]:
    """Return mappings, one with room for slots of ``size`` pages and few more: all are compared."""
    pages = dice.pick((4, 4, 8)) if size <= _SMALL else size + _SMALL
    mappings = [Mapping("a", pages, dice.pick(_KINDS)), Mapping("b", 4, dice.pick(_KINDS))]
    if dice.chance(0.25):
        mappings.append(Mapping("nowhere", 4, "unmapped"))
    if features.zero_page and dice.chance(0.25):
        mappings.append(Mapping("zero", MAX_ZERO_PAGES // 4, "zero"))
    if dice.chance(0.3 if "host" in subjects else 0.04):
        mappings.append(Mapping("huge", 1024, "thp"))
    elif features.hugetlb_pages >= _SPARE_HUGE_PAGES and not subjects and dice.chance(0.04):
        kind = dice.pick(HUGE_KINDS)
        mappings.append(Mapping("reserved", HUGE_PAGE_PAGES, kind))
    if "host" in subjects:
        mappings += _host_mappings(dice, features, mappings)
    if "starts" in subjects:
        mappings.append(Mapping(TABLES, _TABLE_PAGES))
    entries = features.dirty_ring_bytes // RING_ENTRY_BYTES
    if "rings" in subjects and entries <= _MOST_ENTRIES and dice.chance(_FILLS_RINGS):
        mappings.append(Mapping(RING_FILLER, entries + entries // 8))
    if "memfds" in subjects and features.guest_memfd_shared and dice.chance(0.7):
        mappings.append(Mapping(SHOWN, _SHOWN_PAGES, "guest_memfd"))
    return tuple(mappings)


def _host_mappings(
    dice: Dice, features: Features, mappings: Sequence[Mapping]
) -> Iterator[Mapping]:
    """Yield a private mapping of a file, and further mappings of an existing file."""
    if dice.chance(0.5):
        yield Mapping("copy", 4, "private_file")
    files = [mapping for mapping in mappings if mapping.kind == "memfd"]
    if not files and dice.chance(0.7):
        files = [Mapping("file", 4, "memfd")]
        yield files[0]
    if files and dice.chance(0.7):
        file = dice.pick(files)
        kind: MappingKind = "private_file" if dice.chance(0.5) else "memfd"
        yield Mapping("again", file.pages, kind, of=file.name)
    if files and features.pfnmap and dice.chance(0.4):
        yield Mapping("frames", files[0].pages, "pfnmap", of=files[0].name)


def _flags_of(subjects: frozenset[str], features: Features) -> tuple[int, ...]:
    """Return further flags of slots: rings need a log, and the host changes what it likes."""
    if "rings" in subjects:
        return (LOG_DIRTY_PAGES,) * 4
    return (READONLY,) if "host" in subjects and features.readonly_mem else ()


def _flags(dice: Dice, features: Features) -> tuple[int, ...]:
    flags = [0, 0, 0]
    if dice.chance(0.6):
        flags += [LOG_DIRTY_PAGES] * dice.pick((1, 4))
    if features.readonly_mem and dice.chance(0.5):
        flags += [READONLY, READONLY | LOG_DIRTY_PAGES]
    return tuple(flags)
