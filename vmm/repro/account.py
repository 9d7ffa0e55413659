"""What the statements of a program use, and expressions that several kinds of them share."""

from vmm.repro.answers import errno_of
from vmm.repro.cnames import CNames, error
from vmm.repro.expectations import Expectation
from vmm.scenario.slots import as_id_of, id_of

_FEW_SLOTS = 509
"""Every kernel has at least this many user slots."""


class Account:
    """Records the parts, files and functions that statements use.

    ``shared`` are the guest_memfds that the host may write; ``as_ids`` says which address space
    each vCPU is in.
    """

    def __init__(self, names: CNames) -> None:
        self.names = names
        self.used: set[str] = {"mapping"}
        self.files: set[str] = set()
        self.shared: set[str] = set()
        self.as_ids: dict[int, int] = {}
        self.names_many_slots = False
        self.names_spaces = False
        self.functions: list[str] = []
        self.left_logs: set[int] = set()
        """The slots whose logs are as a race has left them."""

    def use(self, *parts: str) -> None:
        """Note that the program needs these parts of the runtime."""
        self.used.update(parts)

    def name_slot(self, slot: int) -> None:
        """Note a slot number: the outcome of a call may depend on how many slots a kernel has."""
        self.names_many_slots |= id_of(slot) >= _FEW_SLOTS - 1
        self.names_spaces |= as_id_of(slot) > 0

    def memfd(self, name: str) -> str:
        """Return the variable of a guest_memfd."""
        self.use("memfd")
        file = self.names.file(name)
        self.files.add(file)
        return file

    def function(self, call: str) -> str:
        """Add a function that makes a call; return its name."""
        name = f"call_{len(self.functions) + 1}"
        self.functions.append(f"static int {name}(void)\n{{\n\treturn {call};\n}}\n\n")
        return name

    def checked(self, call: str, step: Expectation) -> str:
        """Return a call, checked against the errnos that it may return."""
        numbers = list(dict.fromkeys(errno_of(each.outcome) for each in step.allowed))
        if not numbers:
            return f"{call};"
        if len(numbers) == 1:
            return f"expect({call}, {error(numbers[0])});"
        chosen = numbers[0] if step.chosen is None else errno_of(step.chosen)
        (other, *_) = (number for number in numbers if number != chosen)
        part, function = ("either", "expect_either")
        if not (chosen and other):
            part, function = ("thisone", "expect_this_one")
        self.use(part)
        return f"{function}({call}, {error(chosen)}, {error(other)});"
