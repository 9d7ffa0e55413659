"""What became of a bug, as data."""

import msgspec


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one bug.

    ``how`` is differs, complained (the kernel did), hung, survived or error; ``seconds`` count
    from the moment when the bug was put to work, ``booted`` says whether a machine had to be
    booted for it alone. ``white`` is set where the kernel's own structures were looked at.
    """

    name: str
    how: str
    scenario: str = ""
    step: str = ""
    rule: str = ""
    seconds: float = 0.0
    control: str = ""
    white: bool = False

    @property
    def is_noticed(self) -> bool:
        """Whether something differs with the bug that does not without it."""
        return self.how in ("differs", "complained", "hung") and self.control in ("", "passed")
