"""The kernel's own types, from /sys/kernel/btf (CONFIG_DEBUG_INFO_BTF_MODULES).

A module's types refer to the kernel's types by number, and to its strings. Only the strings are
needed here, since a structure itself has the offsets of its members. Format:
Documentation/bpf/btf.rst.
"""

from collections.abc import Iterator
from struct import Struct

from vmm.whitebox.layout import Structure

_HEADER = Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_TYPE = Struct("<III")
_MEMBER = Struct("<III")
_STRUCT, _UNION, _ENUM, _FUNC_PROTO, _DATASEC, _ENUM64 = 4, 5, 6, 13, 15, 19
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
"""Bytes for each of the `vlen` items that follow a type, by its kind."""
_ALWAYS = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes that follow an INT, ARRAY, VAR or DECL_TAG."""


class Btf:
    """The types of a module, on top of those of the kernel."""

    def __init__(self, base: bytes, module: bytes = b"") -> None:
        """Raises ValueError."""
        self._base = _Part(base, b"")
        self._parts = (self._base,) if not module else (_Part(module, self._base.own), self._base)

    def structure(self, name: str) -> Structure:
        """Return a structure by its name. Raises LookupError."""
        for part in self._parts:
            for found in part.structures(name):
                return found
        raise LookupError(f"no struct {name}")


class _Part:
    """The types of one file."""

    def __init__(self, data: bytes, before: bytes) -> None:
        if len(data) < _HEADER.size:
            raise ValueError("this is no BTF")
        magic, _, _, length, types, types_size, strings, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("this is no BTF")
        self._types = data[length + types : length + types + types_size]
        self.own = data[length + strings : length + strings + strings_size]
        self._strings = before + self.own

    def structures(self, name: str) -> Iterator[Structure]:
        """Yield the structures with a name."""
        wanted = self._places_of(name)
        at, end = 0, len(self._types) - _TYPE.size
        while at <= end:
            name_at, info, size = _TYPE.unpack_from(self._types, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            at += _TYPE.size
            if kind == _STRUCT and name_at in wanted:
                yield Structure(size, dict(self._members(at, count, bool(info >> 31))))
            at += _EACH.get(kind, 0) * count + _ALWAYS.get(kind, 0)

    def _places_of(self, name: str) -> set[int]:
        """Return the offsets of a string: a module may repeat one of the kernel's."""
        sought, found = b"\0" + name.encode() + b"\0", set()
        at = self._strings.find(sought)
        while at >= 0:
            found.add(at + 1)
            at = self._strings.find(sought, at + 1)
        return found

    def _members(self, at: int, count: int, has_bitfields: bool) -> Iterator[tuple[str, int]]:
        for number in range(count):
            name_at, _, offset = _MEMBER.unpack_from(self._types, at + number * _MEMBER.size)
            bits = offset & 0xFFFFFF if has_bitfields else offset
            # A member without a name still marks the end of the one before it.
            yield self._string(name_at) or f"{number}", bits // 8

    def _string(self, at: int) -> str:
        return self._strings[at : self._strings.find(b"\0", at)].decode(errors="replace")
