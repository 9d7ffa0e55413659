"""Bugs of past kernels, as data: which scenarios would have shown each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShownBy:
    """A scenario that would have shown a bug, and why; ``needs`` are features as in a scenario."""

    scenario: str
    because: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug that kernels really had.

    ``commits`` fixed it, ``where`` says which hosts were affected, and ``gap`` says why no scenario
    can show it (empty if one can).
    """

    commits: tuple[str, ...]
    wrong: str
    shown_by: tuple[ShownBy, ...] = ()
    where: str = "anywhere"
    gap: str = ""
