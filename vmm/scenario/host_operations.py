"""Host memory, and what the host does to it, as data."""

from typing import Literal

import msgspec

from vmm.scenario.operation import Hex, Operation

MappingKind = Literal[
    "anonymous",
    "shared",
    "memfd",
    "private_file",
    "pfnmap",
    "hugetlb",
    "hugetlb_memfd",
    "thp",
    "zero",
    "unmapped",
    "guest_memfd",
]


HUGE_KINDS: tuple[MappingKind, ...] = ("hugetlb", "hugetlb_memfd")
"""Memory made of reserved huge pages (vm.nr_hugepages), mapped and dropped in whole ones."""

HUGE_PAGE_PAGES = 512

FILE_KINDS: tuple[MappingKind, ...] = ("memfd", "private_file", "pfnmap")
"""Memory that shows a file, which another mapping may have been created with."""


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Host memory that a scenario declares.

    ``anonymous``, ``shared`` and ``memfd`` are 4 KiB pages; ``private_file`` maps a memfd with
    MAP_PRIVATE: writes do not reach the file; ``pfnmap`` maps page frames of a memfd as a driver
    maps those of a device (VM_PFNMAP), through /dev/udmabuf; ``hugetlb``, ``hugetlb_memfd`` (a
    memfd of huge pages, MFD_HUGETLB) and ``thp`` are 2 MiB aligned; ``zero`` is anonymous memory
    fixed at virtual address 0; ``unmapped`` is a reserved address range without access; so is
    ``guest_memfd`` until ``MapGuestMemfd`` maps a file there.

    ``of`` names an earlier mapping of kind ``memfd``: a ``memfd`` or ``private_file`` then shows
    the first pages of that file instead of a file of its own. A ``pfnmap`` always has one, which
    keeps all its pages.

        >>> from vmm import Mapping
        >>> Mapping("a", pages=3).kind
        'anonymous'
    """

    name: str
    pages: int
    kind: MappingKind = "anonymous"
    of: str = ""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An hva by name: a byte offset into a declared mapping.

    >>> from vmm import Place
    >>> Place("a", 0x1000)
    Place(mapping='a', offset=4096)
    """

    mapping: str
    offset: Hex = 0


Hva = Place | Hex
"""A userspace address: a place in a mapping, 0, or an address outside the user range."""


class HostWrite(Operation, frozen=True, tag="host_write", gc=False):
    """The host writes four bytes through its own mapping.

    >>> from vmm import Place, operations
    >>> operations.HostWrite(Place("a", 0x10), value=7).place.offset
    16
    """

    place: Place
    value: Hex


HostChangeKind = Literal[
    "drop",
    "punch",
    "unmap",
    "map",
    "forbid",
    "allow",
    "write_protect",
    "map_fresh",
    "map_file",
    "truncate",
    "extend",
    "page_out",
    "collapse",
    "merge",
    "move_away",
    "move_back",
    "fork",
    "reap",
    "fetch_later",
    "guard",
    "settle",
]


class ChangeHostMemory(Operation, frozen=True, tag="change_host_memory", gc=False):
    """The host changes ``pages`` pages of a mapping from ``place`` on.

    ``drop`` is MADV_DONTNEED, ``punch`` MADV_REMOVE; ``unmap`` leaves the addresses reserved with
    nothing mapped there until ``map`` maps them again (the same pages of a file, else zeros);
    ``forbid``, ``allow`` and ``write_protect`` are mprotect with PROT_NONE, with PROT_READ and
    PROT_WRITE, and with PROT_READ. ``map_fresh`` maps anonymous memory over them, ``map_file`` the
    pages of another file: ``source`` is the first, in a mapping of kind ``memfd``. ``truncate`` and
    ``extend`` are ftruncate of the file that the mapping was created from: it cuts off the pages,
    which must be the last ones, and brings them back as zeros.

    ``page_out`` and ``collapse`` are MADV_PAGEOUT and MADV_COLLAPSE; ``merge`` is MADV_MERGEABLE,
    and waits until KSM has scanned twice; ``move_away`` moves pages elsewhere (mremap) until
    ``move_back``. ``fork`` makes a child that shares all memory until ``reap``, or until the VM
    ends: written pages are copied, and the outcome of ``reap`` is what the child saw change.

    ``fetch_later`` and ``guard`` use userfaultfd, until ``settle`` of the same pages.
    ``fetch_later`` drops pages and fetches their content at the first access, as in a post-copy
    migration. ``guard`` stops every first write to a page, as for a snapshot; the outcome of
    ``settle`` is what changed without being stopped.

    >>> from vmm import Place, operations
    >>> operations.ChangeHostMemory(Place("a", 0x1000), pages=2, how="drop").pages
    2
    """

    place: Place
    pages: int = 1
    how: HostChangeKind = "drop"
    source: Place | None = None


class Inspect(Operation, frozen=True, tag="inspect", gc=False):
    """The host looks for bytes of its mappings that changed since the last look.

    >>> from vmm import operations
    >>> operations.Inspect().expect
    ''
    """


HostOperation = HostWrite | ChangeHostMemory | Inspect
