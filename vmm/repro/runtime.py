"""The C that every emitted program shares, in parts: a program gets those that it uses."""

from collections.abc import Iterable
from importlib.resources import files

_NEEDS = {
    "vcpus": ("guest",),
    "run": ("vcpus",),
    "code": ("run",),
    "smm": ("run",),
    "read": ("code",),
    "write": ("code",),
    "string": ("code",),
    "fills": ("string",),
    "copies": ("string",),
    "execute": ("run",),
    "guest": ("mapping",),
    "at": ("mapping",),
    "thp": ("mapping",),
    "badpointer": ("nowhere",),
    "hostwrite": ("mapping",),
    "change": ("mapping",),
    "look": ("mapping",),
    "getdirty": ("dirty",),
    "expectdirty": ("dirty",),
    "newvcpu": ("vcpus",),
    "prefault": ("run",),
    "newvm": ("vcpus",),
}
"""What a part builds on."""


def parts() -> dict[str, str]:
    """Return the parts of runtime.c by name, in their order."""
    text = files("vmm.repro").joinpath("runtime.c").read_text()
    found = {}
    for chunk in text.split("/*@ ")[1:]:
        name, _, body = chunk.partition(" */\n")
        found[name] = body
    return found


def select(used: Iterable[str]) -> str:
    """Return the parts that are used, and what they build on, as one text."""
    wanted: set[str] = {"base"}
    todo = list(used)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo += _NEEDS.get(name, ())
    return "".join(body for name, body in parts().items() if name in wanted)
