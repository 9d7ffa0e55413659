"""What the machine is told, and what it answers: an order in a file, and lines of output."""

import msgspec


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bug to look for, with scenarios in this order, and then the fuzzer; 0 is no bug.

    After ``check_s`` seconds no other scenario is begun.
    """

    number: int
    scenarios: tuple[str, ...]
    fuzz_s: float = 0
    check_s: float = 3600


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one machine is to do; a scenario that takes longer than ``limit_s`` hangs.

    ``white_box`` is a file that describes the kernel's structures, if they are to be looked at.
    """

    tasks: tuple[Task, ...]
    limit_s: float
    patience: float
    white_box: str = ""


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line: ``kind`` is ready, begin, running (a scenario begins), ran (it has passed),
    fuzzing or end.

    At an end, ``how`` is passed, known (an issue of other kernels, too), differs, hung, unsure (no
    verdict, for the model's or the host's sake) or error (of ours). ``control`` says how the
    scenario that noticed a bug ended right after on the same kernel, with no bug at work.
    """

    kind: str
    number: int = 0
    scenario: str = ""
    how: str = ""
    step: str = ""
    rule: str = ""
    seconds: float = 0.0
    control: str = ""
