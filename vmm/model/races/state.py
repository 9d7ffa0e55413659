"""The state that a race begins with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmm.model.allowed import Allowed
from vmm.model.array import MemslotArray
from vmm.model.backing import Backing
from vmm.model.contents import Contents
from vmm.model.dirty import Tracking
from vmm.model.regions import Memslot
from vmm.scenario.operations import AnyOperation


@dataclass(frozen=True, slots=True)
class RaceState:
    """The parts of the model that a race is played on; ``allowed`` answers as the model does."""

    spaces: Sequence[MemslotArray[Memslot]]
    backing: Backing
    contents: Contents
    tracking: Tracking
    allowed: Callable[[AnyOperation], tuple[Allowed, ...]]
