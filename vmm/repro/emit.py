"""From steps to a C program: each step is a call and a comment that says what is expected."""

import re
from collections.abc import Iterable, Iterator

from vmm.repro import expectations, runtime
from vmm.repro.accesses import is_plain_write
from vmm.repro.account import Account
from vmm.repro.answers import InexpressibleError
from vmm.repro.cnames import CNames, create_vm
from vmm.repro.expectations import Expectation
from vmm.repro.hostchanges import declaration
from vmm.repro.requirements import gpa_bits, reach, requirements
from vmm.repro.statements import Statements
from vmm.repro.tracking import RING_CAPS
from vmm.scenario import outcomewords, words
from vmm.scenario.features import Features
from vmm.scenario.history import History
from vmm.scenario.operations import EnableCap, Mapping, Race, Scenario, Touch
from vmm.scenario.plan import MAX_BATCH, guest_mapping, mappings_of
from vmm.scenario.shown import shown

_STEPS_IN_A_FUNCTION = 300
_ROUNDS = 20
"""How many rounds a program with a race plays unless its argument says otherwise."""

_MOST = 400
_MOST_OF_A_LINE = 4000
"""The most characters of a file's own texts, and of a comment's line, that are quoted."""

_MOST_OF_A_PROGRAM = 64 << 20

_Numbered = tuple[int, Expectation]

__all__ = ["InexpressibleError", "program", "program_of"]


def program(history: History) -> str:
    """Return the program of a history, with what was observed. Raises InexpressibleError."""
    header = history.header
    return _program(header.scenario, header.features, expectations.of_history(history))


def program_of(scenario: Scenario, features: Features) -> str:
    """Return the program of a scenario that was not run. Raises InexpressibleError."""
    return _program(scenario, features, expectations.of_scenario(scenario, features))


def _program(scenario: Scenario, features: Features, steps: Iterable[Expectation]) -> str:
    names = CNames(mappings_of(scenario))
    statements = Statements(names, scenario.vm_type)
    account = statements.account
    declarations = [declaration(mapping, account) for mapping in scenario.mappings]
    known = list(steps)
    blocks = list(_few(_block(group, names, statements) for group in _groups(known)))
    bits = gpa_bits(scenario, features)
    if bits:
        account.use("cpuid")
    setup = _setup(scenario, features, account, declarations)
    defines = f"#define GUEST_GPA {scenario.guest.gpa:#x}u\n"
    defines += f"#define GUEST_PAGES {guest_mapping(scenario).pages}\n"
    if bits:
        defines += f"#define GPA_BITS {bits}\n"
    if "dirty" in account.used:
        defines += f"#define DIRTY_WORDS {statements.dirty_words(scenario)}\n"
    has_races = "race" in account.used
    if has_races:
        account.use("rounds")
        status = "NOT_KNOWN" if known[-1].is_unknown else "RIGHT"
        defines += f"#define LAST_STATUS {status}\t/* of a round in which nothing is wrong */\n"
    parts = runtime.select((*account.used, "guest"))
    functions, calls = _functions(blocks)
    return (
        _head(scenario)
        + parts.replace("enum { RIGHT", defines + "\nenum { RIGHT", 1)
        + "\n"
        + names.declarations()
        + statements.declarations()
        + functions
        + (_rounds(setup + calls) if has_races else f"int main(void)\n{{\n{setup}{calls}")
        + _end(known)
    )


def _few(blocks: Iterable[str]) -> Iterator[str]:
    """Yield blocks. Raises InexpressibleError if there is too much for a compiler."""
    size = 0
    for block in blocks:
        size += len(block)
        if size > _MOST_OF_A_PROGRAM:
            raise InexpressibleError(f"a program of more than {_MOST_OF_A_PROGRAM >> 20} MiB")
        yield block


def _rounds(statements: str) -> str:
    """Return a function that plays all statements once, and the head of a main() that loops."""
    return (
        f"static void play(void)\n{{\n{statements}}}\n\n"
        "int main(int count, char **arguments)\n{\n"
        f"\tunsigned rounds = count > 1 ? strtoul(arguments[1], NULL, 0) : {_ROUNDS};\n"
        "\tint status = play_rounds(rounds, play);\n"
        "\n\tif (status != LAST_STATUS)\n\t\treturn status;\n"
    )


def _end(steps: list[Expectation]) -> str:
    if steps and steps[-1].is_unknown:
        text = f"right before step {len(steps)}; what may come from there on is not known"
        return f'\n\tputs("{text}");\n\treturn NOT_KNOWN;\n}}\n'
    return '\n\tputs("right");\n\treturn RIGHT;\n}\n'


def _groups(steps: Iterable[Expectation]) -> Iterator[list[_Numbered]]:
    """Yield the steps, in groups that have to be in one KVM_RUN.

    That matters for a dirty ring: the kernel checks before each KVM_RUN whether the ring is full.
    """
    group: list[_Numbered] = []
    has_rings = False
    for number, step in enumerate(steps, 1):
        op = step.operation
        has_rings |= isinstance(op, EnableCap) and op.cap in RING_CAPS
        plain = has_rings and is_plain_write(step)
        if group and not (plain and _vcpu(group[0][1]) == _vcpu(step) and len(group) < MAX_BATCH):
            yield group
            group = []
        group.append((number, step))
        if not plain:
            yield group
            group = []
    if group:
        yield group


def _vcpu(step: Expectation) -> int:
    return step.operation.vcpu if isinstance(step.operation, Touch) else -1


def _block(group: list[_Numbered], names: CNames, statements: Statements) -> str:
    """Return the comment and the statements of steps that are carried out together."""
    (first, step), (last, _) = group[0], group[-1]
    if first == last:
        return _comment(first, step, names.mappings) + f"\tstep = {first};\n" + statements.of(step)
    text = f"{first} to {last}. vCPU {_vcpu(step)} writes to memory, in one KVM_RUN"
    steps = [each for _, each in group]
    return f"\t/* {text} */\n\tstep = {first};\n" + statements.of_writes(steps)


def _functions(blocks: list[str]) -> tuple[str, str]:
    """Return the functions that a long program is split into, and the calls of them in main()."""
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
    why, source = shown(scenario.why, _MOST), shown(scenario.source, _MOST)
    lines = [scenario.name]
    if told := [each for each in (why, f"Source: {source}" if source else "") if each]:
        lines += ["", *told]
    if any(isinstance(op, Race) for op in scenario.operations):
        lines += [
            "",
            "Its threads meet by chance: it plays all steps as many times as its argument says",
            f"({_ROUNDS} without one), and prints how often they failed.",
        ]
    lines += [
        "",
        "Build: cc -pthread -o repro repro.c",
        "Exit status: 0 right, 1 wrong, 3 not known from some step on, 4 cannot run here.",
    ]
    text = "\n".join(f" * {_safe(line)}".rstrip() for line in lines)
    return f"/* SPDX-License-Identifier: MIT */\n/*\n{text}\n */\n"


def _comment(number: int, step: Expectation, mappings: tuple[Mapping, ...]) -> str:
    what = f"{number}. {words.operation(step.operation)}"
    either = " or ".join(
        dict.fromkeys(outcomewords.outcome(each.outcome, mappings) for each in step.allowed)
    )
    lines = [what, f"expected: {either or 'not known'}"]
    if step.observed is not None:
        lines.append(f"observed: {outcomewords.outcome(step.observed, mappings)}")
        if step.chosen is None and step.allowed:
            lines[-1] += "   <- WRONG"
    return "\t/* " + "\n\t *   ".join(_safe(line) for line in lines) + " */\n"


def _safe(text: str) -> str:
    """Return text that can end neither a comment nor its line."""
    plain = re.sub(r"[^\x20-\x7e]", "?", shown(text, _MOST_OF_A_LINE))
    return plain.replace("*/", "* /").replace("/*", "/ *")


def _setup(
    scenario: Scenario, features: Features, account: Account, declarations: Iterable[str]
) -> str:
    lines = [
        'kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");',
        *requirements(scenario, features, account),
        "map(&guest, NULL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);",
        *declarations,
        *reach(scenario, account),
    ]
    if "traces" in account.used:
        lines.append("traces_before = traces();")
    if "unmapinternal" in account.used:
        lines.append("unmap_internal_slots();  /* without a VM: notes those there already */")
    lines.append(create_vm(scenario.vm_type))
    return "".join(f"\t{line}\n" for line in lines)
