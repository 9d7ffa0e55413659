"""Checks of the guest_memfds that a scenario creates, and of the mappings that show them."""

from vmm.scenario.limits import A_NAME, NAME_LENGTH, unsigned_problem
from vmm.scenario.operations import PAGE_SIZE_BYTES, CreateGuestMemfd, MapGuestMemfd, Scenario
from vmm.scenario.shown import is_plain


class MemfdNames:
    """Checks one operation on a guest_memfd at a time."""

    def __init__(self, scenario: Scenario) -> None:
        self._mappings = {mapping.name: mapping for mapping in scenario.mappings}
        self._memfds = {
            op.name: op for op in scenario.operations if isinstance(op, CreateGuestMemfd)
        }
        self._created: set[str] = set()
        self._shown: dict[str, str] = {}

    def created(self, op: CreateGuestMemfd) -> str:
        """Check that each file has its own name, so that leaving operations out changes no name."""
        if not is_plain(op.name, NAME_LENGTH):
            return f".name: {A_NAME}"
        if op.name in self._created or op.name in self._mappings:
            return f".name: {op.name!r} is taken"
        self._created.add(op.name)
        return unsigned_problem(op, "size", "flags")

    def known(self, name: str) -> str:
        return "" if name in self._memfds else f".name: no operation creates {name!r}"

    def shown(self, op: MapGuestMemfd) -> str:
        """Check that a mapping shows one file only, and ends within it: beyond is SIGBUS."""
        mapping = self._mappings.get(op.mapping)
        if mapping is None or mapping.kind != "guest_memfd":
            return f".mapping: {op.mapping!r} is no mapping of kind guest_memfd"
        if self._shown.setdefault(op.mapping, op.name) != op.name:
            return f".mapping: {op.mapping!r} shows another guest_memfd"
        if sum(name == op.name for name in self._shown.values()) > 1:
            return f".name: {op.name!r} is shown by another mapping"
        if mapping.pages * PAGE_SIZE_BYTES > self._memfds[op.name].size:
            return f".mapping: {op.mapping!r} is larger than {op.name!r}"
        return ""

    def is_file(self, name: str) -> bool:
        mapping = self._mappings.get(name)
        return name in self._memfds or (mapping is not None and mapping.kind == "memfd")
