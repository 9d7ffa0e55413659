"""From steps to a C program: one call for each step, and a comment that says what is expected."""

import re
from collections.abc import Iterable

from vmm.memslots import describe
from vmm.memslots.features import NEEDS, Features
from vmm.memslots.history import History
from vmm.memslots.operations import Mapping, Scenario
from vmm.repro import expectations, runtime
from vmm.repro.expectations import Expectation
from vmm.repro.statements import InexpressibleError, Statements
from vmm.repro.words import Words

_STEPS_IN_A_FUNCTION = 300

_CAPS = {
    "readonly_mem": "KVM_CAP_READONLY_MEM",
    "sync_mmu": "KVM_CAP_SYNC_MMU",
    "irqchip": "KVM_CAP_IRQCHIP",
    "smm": "KVM_CAP_X86_SMM",
}
_NUMBERED_CAPS = {
    "user_memory2": 231,
    "guest_memfd": 234,
    "guest_memfd_mmap": 244,
    "guest_memfd_shared": 244,
    "pre_fault": 236,
    "manual_dirty_log": 168,
    "dirty_log_initially_set": 168,
    "dirty_ring_bytes": 192,
    "dirty_ring_acq_rel": 223,
}
"""Capabilities that an older <linux/kvm.h> does not name."""

__all__ = ["InexpressibleError", "program", "program_of"]


def program(history: History) -> str:
    """Return the program of a history, which says what came. Raises InexpressibleError."""
    header = history.header
    return _program(header.scenario, header.features, expectations.of_history(history))


def program_of(scenario: Scenario, features: Features) -> str:
    """Return the program of a scenario that was not run. Raises InexpressibleError."""
    return _program(scenario, features, expectations.of_scenario(scenario, features))


def _program(scenario: Scenario, features: Features, steps: Iterable[Expectation]) -> str:
    words = Words(expectations.mappings_of(scenario))
    statements = Statements(words)
    blocks = [
        _comment(number, step, words) + f"\tstep = {number};\n" + statements.of(step)
        for number, step in enumerate(steps, 1)
    ]
    setup = _setup(scenario, features, words, statements)
    defines = f"#define GUEST_GPA {scenario.guest.gpa:#x}u\n"
    if "dirty" in statements.used:
        defines += f"#define DIRTY_WORDS {statements.dirty_words(scenario)}\n"
    parts = runtime.select((*statements.used, "guest"))
    functions, calls = _functions(blocks)
    return (
        _head(scenario)
        + parts.replace("enum { RIGHT", defines + "\nenum { RIGHT", 1)
        + "\n"
        + words.declarations()
        + statements.declarations()
        + functions
        + "int main(void)\n{\n"
        + setup
        + calls
        + '\n\tputs("right");\n\treturn RIGHT;\n}\n'
    )


def _functions(blocks: list[str]) -> tuple[str, str]:
    """Return the functions that a long program is split into, and what main() calls."""
    if len(blocks) <= _STEPS_IN_A_FUNCTION:
        return "", "".join(f"\n{block}" for block in blocks)
    functions, calls = [], []
    for first in range(0, len(blocks), _STEPS_IN_A_FUNCTION):
        name = f"steps_from_{first + 1}"
        part = "\n".join(blocks[first : first + _STEPS_IN_A_FUNCTION])
        functions.append(f"static void {name}(void)\n{{\n{part}}}\n\n")
        calls.append(f"\t{name}();\n")
    return "".join(functions), "\n" + "".join(calls)


def _head(scenario: Scenario) -> str:
    lines = [scenario.name, "", scenario.why, f"Source: {scenario.source}"]
    lines += ["", "Build: cc -o repro repro.c", "Exit status: 0 right, 1 wrong, 4 cannot run here."]
    text = "\n".join(f" * {_safe(line)}".rstrip() for line in lines)
    return f"/* SPDX-License-Identifier: MIT */\n/*\n{text}\n */\n"


def _comment(number: int, step: Expectation, words: Words) -> str:
    mappings = words.mappings
    what = f"{number}. {describe.operation(step.operation)}"
    either = " or ".join(
        dict.fromkeys(describe.outcome(each.outcome, mappings) for each in step.allowed)
    )
    lines = [what, f"expected: {either or 'not known'}"]
    if step.came is not None:
        lines.append(f"came: {describe.outcome(step.came, mappings)}")
        if step.chosen is None and step.allowed:
            lines[-1] += "   <- WRONG"
    return "\t/* " + "\n\t *   ".join(_safe(line) for line in lines) + " */\n"


def _safe(text: str) -> str:
    """Return text that cannot end a comment."""
    return re.sub(r"[^\x20-\x7e]", "?", text).replace("*/", "* /").replace("/*", "/ *")


def _setup(scenario: Scenario, features: Features, words: Words, statements: Statements) -> str:
    lines = [
        'kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");',
        *_requirements(scenario, features, statements),
        "map(&guest, NULL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);",
        *(_map(mapping, words, statements) for mapping in scenario.mappings),
    ]
    if "leftovers" in statements.used:
        lines.append("traces_before = traces();")
    if "internal" in statements.used:
        lines.append("unmap_internal_slots();  /* without a VM it notes what is there */")
    lines.append('vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");')
    return "".join(f"\t{line}\n" for line in lines)


def _requirements(scenario: Scenario, features: Features, statements: Statements) -> Iterable[str]:
    for need in scenario.needs:
        cap = _CAPS.get(need) or str(_NUMBERED_CAPS.get(need, ""))
        if cap:
            statements.used.add("require")
            yield f'require({cap}, 1, "{NEEDS[need]}");'
    if statements.names_many_slots:
        statements.used.add("exactly")
        number = features.nr_memslots
        yield f'require_exactly(KVM_CAP_NR_MEMSLOTS, {number}, "KVM_CAP_NR_MEMSLOTS");'
    if statements.names_spaces:
        statements.used.add("exactly")
        number = features.address_spaces
        name = "KVM_CAP_MULTI_ADDRESS_SPACE"
        yield f'require_exactly({name}, {number}, "{name}");'


def _map(mapping: Mapping, words: Words, statements: Statements) -> str:
    name = words.variable(mapping.name)
    private = "MAP_PRIVATE | MAP_ANONYMOUS"
    both = "PROT_READ | PROT_WRITE"
    match mapping.kind:
        case "anonymous":
            return f"map({name}, NULL, {both}, {private}, -1);"
        case "shared":
            return f"map({name}, NULL, {both}, MAP_SHARED | MAP_ANONYMOUS, -1);"
        case "memfd":
            file = words.file(mapping.name)
            statements.files.add(file)
            return (
                f'{file} = must(memfd_create("memslot", 0), "memfd_create");\n'
                f'\tmust(ftruncate({file}, {mapping.pages} * PAGE), "ftruncate");\n'
                f"\tmap({name}, NULL, {both}, MAP_SHARED, {file});"
            )
        case "hugetlb":
            return f"map({name}, NULL, {both}, {private} | MAP_HUGETLB, -1);"
        case "thp":
            statements.used.add("thp")
            return f"map_huge({name});"
        case "zero":
            return f"map({name}, NULL, {both}, {private} | MAP_FIXED_NOREPLACE, -1);"
        case "unmapped" | "guest_memfd":
            return f"map({name}, NULL, PROT_NONE, {private} | MAP_NORESERVE, -1);"
