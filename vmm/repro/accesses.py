"""C statements for what the guest does, and for what is expected of it."""

from collections.abc import Iterator, Sequence

from vmm.repro.account import Account
from vmm.repro.cnames import data, unsigned
from vmm.repro.expectations import Expectation
from vmm.scenario.history import AnyOutcome, Mmio, Ran, Stopped, Swept, Touched
from vmm.scenario.instruction_effects import ARITHMETIC, descriptor_table
from vmm.scenario.instructions import INSTRUCTIONS, bp_begin, operands
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    REAL_MODE_END,
    SMBASE,
    AnyOperation,
    Execute,
    Instruction,
    Start,
    Sweep,
    Touch,
    access_end,
)

_Ended = Touched | Swept | Ran
_UNKNOWN = -1
_REAL_MODE_BITS = 0xFFFF_FFFF
_REASONS = {"internal-error": "exit reason 17"}
"""The C program's name for a reason why a vCPU stopped, where histories have another name."""


def instruction(account: Account, op: Instruction, step: Expectation) -> list[str]:
    """Return the statements of one instruction."""
    is_long = op.mode == "long"
    account.use("farinstruction" if is_long else "instruction")
    row = INSTRUCTIONS[op.name]
    registers = [f".{name} = {value}" for name, value in _registers(op)]
    flags = 0x402 if op.down else 2
    code = row.before + row.code(op) + row.after
    values = ", ".join([*registers, f".rflags = {flags:#x}"])
    function = "guest_runs_far" if is_long else "guest_runs"
    tables: list[str] = []
    if row.port:
        account.use("ports")
        tables.append(f"port_gives({unsigned(op.value & (1 << 8 * op.width) - 1)}, {op.width});")
    if row.stores_table:
        account.use("tables")
        base, limit = descriptor_table(op)
        tables.append(f"set_tables({unsigned(base)}, {limit:#x});")
    return [
        *_mode(account, op.vcpu, op.as_id, step),
        *tables,
        f"{function}({op.vcpu}, {data(code)}, {len(code)}, (struct kvm_regs){{{values}}});",
        *_accessed(account, step),
    ]


def _registers(op: Instruction) -> Iterator[tuple[str, str]]:
    """Yield the registers that are not 0.

    In 64-bit mode all addresses are in the window of the operand's own gpa, wherever a pointer into
    it begins: a window that begins at the pointer would not reach addresses below it.
    """
    row = INSTRUCTIONS[op.name]
    places = {"rdi": op.source if row.is_stack and row.copies else op.gpa}
    if row.is_stack:
        places["rsp"] = op.gpa
        if row.frame == "leaves":
            places["rbp"] = op.gpa
    elif row.copies:
        places["rsi"] = op.source
    elif row.loads:
        places["rsi"] = op.gpa
    for name, offset in operands(op, 0, 0).items():
        if name in places and op.mode == "long":
            address = f"address_of({unsigned(places[name])})"
            yield name, f"{address} + {offset:#x}" if offset else address
        elif value := _sum(places.get(name, 0), offset, op):
            yield name, unsigned(value)


def _sum(place: int, offset: int, op: Instruction) -> int:
    """Return an address in real mode, where addresses have 32 bits; other registers as they are."""
    return place + offset & _REAL_MODE_BITS if place and op.mode == "real" else place + offset


_PAGING = {"pae": "PAE_TABLES", "two-level": "TABLES_OF_TWO_LEVELS"}


def start(account: Account, op: Start, step: Expectation) -> list[str]:
    """Return the statements of a start."""
    tables = []
    if op.interrupts is not None:
        account.use("tables", "starttables")
        tables.append(f"set_tables({unsigned(op.interrupts)}, {PAGE_SIZE_BYTES - 1:#x});")
    if op.tables is None and op.interrupts is None:
        account.use("startreal")
        call = f"guest_starts_real({op.vcpu}, {unsigned(op.address)});"
    elif op.tables is None:
        account.use("startflat")
        call = f"guest_starts_flat({op.vcpu}, {unsigned(op.address)}, {unsigned(op.stack)});"
    else:
        account.use("start")
        fields = (("rip", op.address), ("rdi", op.data), ("rcx", op.value), ("rsp", op.stack))
        registers = ", ".join(f".{name} = {unsigned(value)}" for name, value in fields if value)
        cr3 = unsigned(op.tables)
        call = f"guest_starts({op.vcpu}, {cr3}, (struct kvm_regs){{{registers or '0'}}});"
        if op.paging != "long":
            account.use("start32bit")
            call = call.replace(f"({op.vcpu}, ", f"_with({op.vcpu}, {_PAGING[op.paging]}, ", 1)
    lines = [*_mode(account, op.vcpu, op.as_id, step), *tables]
    if op.smi:
        account.use("smi")
        lines.append(f"send_smi({op.vcpu});")
    lines.append(call)
    if op.smbase != SMBASE:
        account.use("smbase")
        lines.insert(-2, f"set_smbase({op.vcpu}, {op.smbase:#x});")
        lines.append(f"set_smbase({op.vcpu}, {SMBASE:#x});")
    if op.interrupts is not None:
        lines.append("set_tables(0, 0);")
    return [*lines, *_accessed(account, step)]


def access(account: Account, op: Touch | Sweep | Execute, step: Expectation) -> list[str]:
    """Return the statements of an access, in 64-bit mode if real mode does not reach the gpa."""
    is_far = access_end(op) > REAL_MODE_END
    part, function, arguments = _form(op)
    account.use(f"far{part}" if is_far else part)
    name = f"{function}_far" if is_far else function
    call = f"{name}({op.vcpu}, {unsigned(op.gpa)}{arguments});"
    return [*_mode(account, op.vcpu, op.as_id, step), call, *_accessed(account, step)]


def _mode(account: Account, vcpu: int, as_id: int, step: Expectation) -> list[str]:
    """Return the switch to the address space of an access, if the vCPU is in another one."""
    known = account.as_ids.get(vcpu, 0)
    # A vCPU that stops may leave system management mode by itself.
    may_stop = any(isinstance(each.outcome, Stopped) for each in step.allowed)
    account.as_ids[vcpu] = _UNKNOWN if as_id and may_stop else as_id
    if known == as_id:
        return []
    account.use("smm")
    return [f"set_smm({vcpu}, {'true' if as_id else 'false'});"]


def is_plain_write(step: Expectation) -> bool:
    """Whether a step is a write in real mode that must reach memory."""
    op = step.operation
    return (
        isinstance(op, Touch)
        and op.access == "write"
        and op.as_id == 0
        and access_end(op) <= REAL_MODE_END
        and [each.outcome for each in step.allowed] == [Touched(0)]
    )


def writes(account: Account, group: Sequence[Expectation]) -> list[str]:
    """Return the statements of plain writes by one vCPU in one KVM_RUN."""
    account.use("writes", "value")
    ops = [step.operation for step in group if isinstance(step.operation, Touch)]
    return [
        *_mode(account, ops[0].vcpu, ops[0].as_id, group[0]),
        f"guest_writes_all({ops[0].vcpu}, {len(ops)}, (struct write[]){{",
        *(f"\t{{{unsigned(op.gpa)}, {op.width}, {unsigned(op.value)}}}," for op in ops),
        "});",
        "expect_value(0);",
    ]


def _form(op: Touch | Sweep | Execute) -> tuple[str, str, str]:
    """Return the part of the runtime, its function, and the arguments after vCPU and gpa."""
    match op:
        case Touch(access="read"):
            return "read", "guest_reads", f", {op.width}"
        case Touch():
            value = op.value & (1 << 8 * op.width) - 1
            return "write", "guest_writes", f", {op.width}, {unsigned(value)}"
        case Sweep(access="read"):
            return "copies", "guest_copies", f", {op.count}, {op.width}"
        case Sweep():
            return "fills", "guest_fills", f", {op.count}, {op.width}, {unsigned(op.value)}"
        case Execute():
            return "execute", "guest_executes", ""


def _accessed(account: Account, step: Expectation) -> list[str]:
    """Return the checks of an access; hardware and emulators may stop for different reasons."""
    outcomes = [each.outcome for each in step.allowed]
    stops = [each.reason for each in outcomes if isinstance(each, Stopped)]
    usual = [each for each in outcomes if isinstance(each, _Ended)]
    apart = _apart(step)
    if not outcomes:
        return []
    if any(stop.startswith("private") for stop in stops):
        account.use("privatefault")
    if not usual and isinstance(step.operation, Touch):
        account.use("onlystopped")
        return [f'expect_stopped("{stops[0]}");']
    if not usual:
        account.use("cannotfetch")
        return ["expect_no_fetch();"]
    lines = _one_of(account, step, usual)
    if not stops:
        return lines
    account.use("stopped")
    inner = [f"\t{line}" for line in lines]
    if any(each in apart for each in usual):
        account.use("otherend")
        inner.append("\tleave_at_other_end();")
    whether = " && ".join(f"!stopped({_why(stop)})" for stop in stops)
    ends = [each.reason for each in apart if isinstance(each, Stopped)]
    if ends:
        account.use("otherstop")
    leaves = [f"leave_if_stopped({_why(stop)});" for stop in ends]
    return [*leaves, f"if ({whether}) {{", *inner, "}"]


def _why(stop: str) -> str:
    return f'"{_REASONS.get(stop, stop)}"'


def _apart(step: Expectation) -> list[AnyOutcome]:
    """Return the allowed outcomes after which memory differs from what the later steps assume."""
    chosen = next((each for each in step.allowed if each.outcome == step.chosen), None)
    if chosen is None:
        return []
    return [
        each.outcome
        for each in step.allowed
        if each is not chosen and (each.is_apart or chosen.is_apart)
    ]


def _one_of(account: Account, step: Expectation, outcomes: list[_Ended]) -> list[str]:
    """Return the checks where kernels may differ: later steps assume one of the outcomes."""
    chosen = next((each for each in outcomes if each == step.chosen), outcomes[0])
    others = {len(each.mmio) for each in outcomes} - {len(chosen.mmio)}
    if others:
        account.use("otherexits")
    leaves = [f"leave_at_exits({exits});" for exits in sorted(others)]
    return [*leaves, *_usual(account, step, chosen)]


def _usual(account: Account, step: Expectation, outcome: _Ended) -> list[str]:
    if isinstance(outcome, Ran):
        return _ran(account, step, outcome)
    account.use("value", *(("mmio",) if outcome.mmio else ()))
    lines = [_mmio(each) for each in outcome.mmio]
    if isinstance(outcome, Touched) and outcome.unknown:
        return lines  # The value that a device returns is unknown.
    if isinstance(outcome, Touched):
        return [*lines, f"expect_value({unsigned(outcome.value)});"]
    lines.append("expect_value(0);")
    assert isinstance(step.operation, Sweep)
    first = 0
    for value, times in outcome.runs:
        width = step.operation.width
        lines.append(f"expect_elements({first}, {times}, {width}, {unsigned(value)});")
        first += times
    return lines


def _ran(account: Account, step: Expectation, ran: Ran) -> list[str]:
    account.use("registers", *(("mmio",) if ran.mmio else ()))
    mask = ARITHMETIC & ~ran.undefined
    ways = ", ".join(map(str, (ran.sp, ran.si, ran.di)))
    held = ", ".join(map(unsigned, (ran.ax, ran.bx, ran.cx, ran.dx)))
    rest = f"{_bp(step.operation, ran)}, {ran.flags & mask:#x}, {mask:#x}"
    lines = [*(_mmio(each) for each in ran.mmio), f"expect_registers({held}, {ways}, {rest});"]
    if isinstance(step.operation, Instruction) and INSTRUCTIONS[step.operation.name].port:
        lines.append(f"expect_port({len(ran.sent)}, {data(ran.sent)}, {ran.taken});")
    return lines


def _bp(op: AnyOperation, ran: Ran) -> str:
    """Return the expected BP as a C expression; BP as it is, where it is unknown."""
    assert isinstance(op, Instruction)
    if ran.unknown_bp:
        return "after_.rbp"
    match INSTRUCTIONS[op.name].frame:
        case "makes":
            return f"before_.rsp + {ran.bp}"
        case "leaves":
            kept = (1 << 64) - (1 << 8 * op.width)
            return f"(before_.rbp & {unsigned(kept)}) + {ran.bp}"
        case "":
            return unsigned(bp_begin(op, 0, 0) + ran.bp & (1 << 64) - 1)


def _mmio(each: Mmio) -> str:
    write = "true" if each.write else "false"
    return f"expect_mmio({write}, {unsigned(each.gpa)}, {len(each.data)}, {data(each.data)});"
