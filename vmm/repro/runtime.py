"""The C code that all programs share, in parts: a program gets those that it uses.

A part begins with a line ``/*@ NAME */``. A line that ends in ``/*+ NAME */`` is included only if
that part is, too.
"""

import re
from collections.abc import Iterable
from importlib.resources import files

_FILES = (
    "base.c", "memory.c", "hostchanges.c", "regions.c", "vcpus.c",
    "guest.c", "accesses.c", "programs.c", "far.c", "dirty.c", "vm.c", "clocks.c",
    "growth.c", "lives.c", "churn.c",
    "race.c", "racethreads.c", "racewords.c", "racelogs.c", "racejudge.c", "raceend.c",
)  # fmt: skip

_NEEDS = {
    "vcpus": ("guest",),
    "makevcpu": ("vcpus",),
    "vcpu": ("makevcpu",),
    "finish": ("vcpu",),
    "run": ("finish",),
    "privatefault": ("run",),
    "ports": ("expectport",),
    "expectport": ("end",),
    "onlystopped": ("stopped",),
    "otherstop": ("stopped",),
    "real": ("vcpus",),
    "code": ("real", "run"),
    "smm": ("vcpu",),
    "smi": ("vcpu",),
    "apicbase": ("vcpu",),
    "setring": ("vcpu", "coalesced"),
    "setapic": ("vcpu",),
    "vapicaddr": ("vcpu",),
    "mapvcpu": ("vcpu",),
    "smbase": ("setclock",),
    "value": ("end",),
    "registers": ("end",),
    "read": ("code",),
    "write": ("code", "putwrite"),
    "writes": ("code", "putwrite"),
    "string": ("code",),
    "fills": ("string",),
    "copies": ("string", "elements"),
    "elements": ("guest",),
    "execute": ("real", "run"),
    "tables": ("vcpu",),
    "oneinstruction": ("run",),
    "instruction": ("real", "oneinstruction", "registers"),
    "farinstruction": ("long", "windows", "oneinstruction", "registers"),
    "guest": ("mapping",),
    "paging": ("guest", "cpuid"),
    "windows": ("paging",),
    "long": ("paging", "run"),
    "longcode": ("long", "windows"),
    "farread": ("longcode",),
    "farwrite": ("longcode",),
    "farstring": ("longcode",),
    "farfills": ("farstring",),
    "farcopies": ("farstring", "elements"),
    "farexecute": ("long", "windows"),
    "start": ("long", "starting", "forget"),
    "start32bit": ("start", "mode32bit"),
    "startreal": ("real", "run", "forget"),
    "startflat": ("real", "run", "tables", "forget"),
    "forget": ("run",),
    "starttables": ("tables",),
    "reach": ("farread", "region"),
    "at": ("mapping",),
    "thp": ("mapping",),
    "frames": ("mapping",),
    "hugememfd": ("mapping",),
    "region": ("atend",),
    "region2": ("atend", "region2abi"),
    "memfd": ("memfdabi",),
    "cleardirty": ("atend",),
    "badpointer": ("nowhere",),
    "mapmemfd": ("mapping",),
    "hostwrite": ("mapping",),
    "hostchange": ("mapping",),
    "advise": ("mapping",),
    "another": ("mapping",),
    "remap": ("mapping",),
    "newadvice": ("advise",),
    "mayadvise": ("mapping",),
    "merge": ("mapping",),
    "movepages": ("mapping",),
    "forks": ("mapping",),
    "reaps": ("forks",),
    "pager": ("mapping",),
    "settles": ("pager",),
    "protect": ("mapping",),
    "change": ("mapping",),
    "look": ("mapping",),
    "getdirty": ("dirty", "atend"),
    "expectdirty": ("dirty",),
    "collect": ("ring", "harvested"),
    "makeroom": ("collect",),
    "enablering": ("cap", "ring"),
    "resetrings": ("ring", "harvested"),
    "harvest": ("collect", "vcpu"),
    "prefault": ("vcpu",),
    "prefaultcall": ("prefault",),
    "newvm": ("vcpus",),
    "coalesced": ("vcpus",),
    "coalescedwrite": ("coalesced",),
    "ioeventfd": ("events",),
    "signals": ("ioeventfd",),
    "switchvm": ("vcpus",),
    "setclock": ("vcpu",),
    "thisnumber": ("setclock",),
    "pauseclock": ("vcpu",),
    "due": ("mapping",),
    "room": ("mapping",),
    "internal": ("probe", "places"),
    "lastgfn": ("probe",),
    "closelife": ("lives",),
    "closed": ("closelife", "inturn"),
    "running": ("lives",),
    "stoprunning": ("running",),
    "byanother": ("closelife", "stoprunning"),
    "whilerunning": ("closelife", "inturn", "stoprunning"),
    "heldbyachild": ("closelife",),
    "killed": ("running",),
    "killedclosing": ("threads", "places"),
    "lives": ("threads", "region2abi", "memfdabi"),
    "churn": ("growth", "region"),
    "twoslots": ("growth", "region"),
    "refuse": ("twoslots",),
    "refusecreations": ("refuse",),
    "refusemoves": ("refuse",),
    "race": (
        "real",
        "finish",
        "racethreads",
        "raceguests",
        "raceruns",
        "racewindows",
        "racewords",
        "racedirty",
        "racejudge",
        "racejudgeaccesses",
        "racejudgesteps",
        "racejudgepages",
    ),
    "racering": ("race", "ring", "harvested", "collect", "harvest", "racerings"),
    "racelog": ("race", "racejudgelogs", "atend"),
    "raceclear": ("race", "atend"),
    "raceleft": ("racelog", "dirty"),
    "raceprefault": ("race", "prefault"),
    "racesmm": ("race", "smm"),
    "raceclock": ("race",),
    "raceshows": ("race",),
    "raceprivate": ("race", "racefaults"),
    "raceprivatebegins": ("raceprivate",),
    "raceprivateholds": ("raceprivate",),
    "refusebindings": ("twoslots", "region2", "memfd"),
    "refuseeventfds": ("twoslots", "events"),
    "failchanges": ("twoslots", "failnth", "events"),
}
"""The parts that a part needs."""

_JOINTS = {
    "mapring": {"ring", "makevcpu"},
    "makeroom": {"ring", "run"},
    "setcpuid": {"cpuid", "makevcpu"},
    "mappedring": {"ring", "mapvcpu"},
}
"""Parts that are included if all of these are."""

_ONLY_WITH = re.compile(r"[ \t]*/\*\+ (\w+) \*/$")


def parts() -> dict[str, str]:
    """Return the parts of the C files by name, in order."""
    folder = files("vmm.repro").joinpath("c")
    found = {}
    for name in _FILES:
        for chunk in folder.joinpath(name).read_text().split("/*@ ")[1:]:
            part, _, body = chunk.partition(" */\n")
            found[part] = body
    return found


def select(used: Iterable[str]) -> str:
    """Return the parts that are used and those that they need, as one text."""
    wanted: set[str] = {"base"}
    todo = list(used)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo += _NEEDS.get(name, ())
            todo += (part for part, needs in _JOINTS.items() if needs <= wanted)
    return "".join(_of(body, wanted) for name, body in parts().items() if name in wanted)


def _of(body: str, wanted: set[str]) -> str:
    """Return a part without the lines of parts that are not included."""
    lines = []
    for line in body.splitlines(keepends=True):
        mark = _ONLY_WITH.search(line)
        if mark is None:
            lines.append(line)
        elif mark[1] in wanted:
            lines.append(line[: mark.start()] + "\n")
    return "".join(lines)
