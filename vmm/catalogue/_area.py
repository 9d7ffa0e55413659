"""Areas of the catalogue: what the scenarios of one subject have in common."""

from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

from vmm.catalogue._build import A, B
from vmm.scenario.operations import SOMEWHERE, AnyOperation, Guest, Mapping, Scenario, Survey


class Own(TypedDict, total=False):
    """What a scenario may have of its own, beyond a name, a reason and operations."""

    source: str
    tags: tuple[str, ...]
    needs: tuple[str, ...]
    mappings: tuple[Mapping, ...]
    survey: Survey
    vcpus: int
    guest: Guest


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Makes the scenarios of one subject.

    ``prefix`` begins every name, and ``before`` every list of operations. A scenario adds its own
    tags and needs to those of the area; its other fields replace the area's.
    """

    tags: tuple[str, ...]
    source: str
    prefix: str = ""
    needs: tuple[str, ...] = ()
    mappings: tuple[Mapping, ...] = (A, B)
    survey: Survey = "write"
    before: tuple[AnyOperation, ...] = ()
    guest: Guest = SOMEWHERE
    vm_type: Literal[0, 1] = 0

    def __call__(
        self, name: str, why: str, *operations: AnyOperation, **own: Unpack[Own]
    ) -> Scenario:
        """Return a scenario of this area."""
        needs = (*self.needs, *own.get("needs", ()))
        return Scenario(
            name=f"{self.prefix}{name}",
            why=why,
            source=own.get("source", self.source),
            tags=(*self.tags, *own.get("tags", ())),
            needs=tuple(dict.fromkeys(needs)),
            mappings=own.get("mappings", self.mappings),
            survey=own.get("survey", self.survey),
            vcpus=own.get("vcpus", 1),
            guest=own.get("guest", self.guest),
            vm_type=self.vm_type,
            operations=(*self.before, *operations),
        )
