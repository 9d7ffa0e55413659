"""C statements for the mappings of a scenario, and for the host's changes to them."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import assert_never

from vmm.repro.account import Account
from vmm.repro.answers import InexpressibleError
from vmm.repro.cnames import CNames
from vmm.scenario.hostpages import CHANGES, HostPages, PageKey, file_of, keeper_of
from vmm.scenario.operations import PAGE_SIZE_BYTES, ChangeHostMemory, Mapping
from vmm.scenario.reached import is_sparse

_PRIVATE = "MAP_PRIVATE | MAP_ANONYMOUS"
_BOTH = "PROT_READ | PROT_WRITE"
_ACCESS = {"forbid": "PROT_NONE", "allow": _BOTH, "write_protect": "PROT_READ"}


def changes(account: Account, host: HostPages, op: ChangeHostMemory) -> list[str]:
    """Return the statements of a change, and apply it to ``host``."""
    call = change_call(account, host, op)
    if op.how in ("truncate", "extend"):
        return [call, *follow(account, host, [op])]
    if CHANGES[op.how].access is None:
        host.change(op)
        return [call]
    name, first = op.place.mapping, op.place.offset // PAGE_SIZE_BYTES
    pages = range(first, first + op.pages)
    before = {(name, page) for page in host.absent(name, pages)}
    host.change(op)
    after = {(name, page) for page in host.absent(name, pages)}
    return [call, *_marks(account, before, after)]


def change_call(account: Account, host: HostPages, op: ChangeHostMemory) -> str:
    """Return the call that makes a change."""
    names = account.names
    where = f"{names.variable(op.place.mapping)}, {op.place.offset:#x}, {op.pages}"
    mapping = next(each for each in names.mappings if each.name == op.place.mapping)
    match op.how:
        case "drop" | "punch":
            account.use("advise")
            advice = "MADV_DONTNEED" if op.how == "drop" else "MADV_REMOVE"
            return f"host_advises({where}, {advice});"
        case "unmap" | "map" | "map_fresh" | "map_file":
            account.use("remap")
            return f"host_maps({where}, {_mapped(names, mapping, op)});"
        case "forbid" | "allow" | "write_protect":
            account.use("protect")
            return f"host_protects({where}, {_ACCESS[op.how]});"
        case "truncate" | "extend":
            pages = op.pages if op.how == "extend" else 0
            size = op.place.offset + pages * PAGE_SIZE_BYTES
            return f'must(ftruncate({names.file(mapping.name)}, {size:#x}), "ftruncate");'
        case "page_out" | "collapse":
            account.use("newadvice" if op.how == "page_out" else "mayadvise")
            if op.how == "collapse":
                return f"host_may_advise({where}, MADV_COLLAPSE);"
            return f"host_advises({where}, MADV_PAGEOUT);"
        case "merge":
            account.use("merge")
            return f"host_merges({where});"
        case "move_away" | "move_back":
            account.use("movepages")
            return f"host_moves({where}, {'true' if op.how == 'move_away' else 'false'});"
        case "fork":
            account.use("forks")
            watched = [m for m in names.mappings[:-1] if host.can_be_copied(m.name)]
            pointers = ", ".join(names.variable(m.name) for m in watched) or "NULL"
            return f"host_forks({len(watched)}, (struct mapping *[]){{{pointers}}});"
        case "reap":
            account.use("reaps")
            return "host_reaps();"
        case "fetch_later" | "guard":
            account.use("pager")
            return f"host_pages({where}, {'true' if op.how == 'guard' else 'false'});"
        case "settle":
            account.use("settles")
            return f"host_settles({names.variable(op.place.mapping)});"
        case _:
            assert_never(op.how)


def _mapped(names: CNames, mapping: Mapping, op: ChangeHostMemory) -> str:
    """Return what is mapped over the pages of a mapping, as mmap's last four arguments."""
    if op.how == "unmap":
        return f"PROT_NONE, {_PRIVATE} | MAP_NORESERVE, -1, 0"
    if op.how == "map_file":
        assert op.source is not None, "validated"
        return f"{_BOTH}, MAP_SHARED, {names.file(op.source.mapping)}, {op.source.offset:#x}"
    if op.how == "map" and file_of(mapping):
        file = names.file(mapping.name if mapping.kind == "pfnmap" else file_of(mapping))
        return f"{_BOTH}, {_sharing(mapping)}, {file}, {op.place.offset:#x}"
    return f"{_BOTH}, {_PRIVATE}, -1, 0"


def _sharing(mapping: Mapping) -> str:
    return "MAP_PRIVATE" if mapping.kind == "private_file" else "MAP_SHARED"


def follow(account: Account, host: HostPages, made: Iterable[ChangeHostMemory]) -> list[str]:
    """Apply changes that were made elsewhere; return the marks of pages that they affect."""
    before = _absent(account, host)
    for op in made:
        host.change(op)
    return list(_marks(account, before, _absent(account, host)))


def _absent(account: Account, host: HostPages) -> set[PageKey]:
    return {
        (mapping.name, page)
        for mapping in account.names.mappings
        for page in host.absent(mapping.name, range(mapping.pages))
    }


def _marks(account: Account, before: set[PageKey], after: set[PageKey]) -> Iterator[str]:
    """Yield the marks of pages that can no longer be read, and of those that can be again."""
    for pages, absent in ((after - before, "true"), (before - after, "false")):
        keys = enumerate(sorted(pages))
        for _, run in groupby(keys, lambda item: (item[1][0], item[1][1] - item[0])):
            stretch = [key for _, key in run]
            account.use("hostchange")
            name, first = stretch[0]
            where = f"{account.names.variable(name)}, {first * PAGE_SIZE_BYTES:#x}"
            yield f"mark_absent({where}, {len(stretch)}, {absent});"


def declaration(mapping: Mapping, account: Account) -> str:
    """Return the statements that create a mapping. Raises InexpressibleError."""
    if is_sparse(mapping):
        raise InexpressibleError(f"memory of {mapping.pages} pages, filled where it is touched")
    name = account.names.variable(mapping.name)
    match mapping.kind:
        case "anonymous":
            return f"map({name}, NULL, {_BOTH}, {_PRIVATE}, -1);"
        case "shared":
            return f"map({name}, NULL, {_BOTH}, MAP_SHARED | MAP_ANONYMOUS, -1);"
        case "memfd" | "private_file":
            return _file(mapping, account)
        case "pfnmap":
            return _frames(mapping, account)
        case "hugetlb":
            return f"map({name}, NULL, {_BOTH}, {_PRIVATE} | MAP_HUGETLB, -1);"
        case "hugetlb_memfd":
            return _huge_file(mapping, account)
        case "thp":
            account.use("thp")
            return f"map_huge({name});"
        case "zero":
            return f"map({name}, NULL, {_BOTH}, {_PRIVATE} | MAP_FIXED_NOREPLACE, -1);"
        case "unmapped" | "guest_memfd":
            return f"map({name}, NULL, PROT_NONE, {_PRIVATE} | MAP_NORESERVE, -1);"


def _huge_file(mapping: Mapping, account: Account) -> str:
    """Map a file of huge pages, which no other mapping shares."""
    account.use("hugememfd")
    return f"map_huge_file({account.names.variable(mapping.name)});"


def _frames(mapping: Mapping, account: Account) -> str:
    """Map page frames of a file that is filled."""
    name, frames = account.names.variable(mapping.name), account.names.file(mapping.name)
    account.files.add(frames)
    account.use("frames")
    account.use("another")
    made = f"{frames} = frames_of({account.names.file(mapping.of)}, {name});\n\t"
    return f"{made}map_another({name}, MAP_SHARED, {frames});"


def _sealing(file: Mapping, account: Account) -> str:
    return "MFD_ALLOW_SEALING" if keeper_of(file, account.names.mappings) else "0"


def _file(mapping: Mapping, account: Account) -> str:
    """Map a file. A private mapping is made once the file is filled."""
    name, file = account.names.variable(mapping.name), account.names.file(file_of(mapping))
    made = ""
    if not mapping.of:
        account.files.add(file)
        flags = _sealing(mapping, account)
        made = (
            f'{file} = must(memfd_create("memslot", {flags}), "memfd_create");\n'
            f'\tmust(ftruncate({file}, {mapping.pages} * PAGE), "ftruncate");\n\t'
        )
    shared = f"map({name}, NULL, {_BOTH}, MAP_SHARED, {file});"
    if mapping.kind == "memfd" and not mapping.of:
        return made + shared
    account.use("another")
    filled = f"{shared}\n\t" if not mapping.of else ""
    return f"{made}{filled}map_another({name}, {_sharing(mapping)}, {file});"
