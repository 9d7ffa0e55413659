"""What tests ask of a model."""

from collections.abc import Iterable

from vmm.model.allowed import Allowed
from vmm.model.model import Model
from vmm.scenario.features import Features
from vmm.scenario.history import AnyOutcome, Inspected
from vmm.scenario.operations import (
    PAGE_SIZE_BYTES,
    AnyOperation,
    Inspect,
    Mapping,
    Place,
    SetUserMemoryRegion,
)

PAGES = 4
A, B = Mapping("a", PAGES), Mapping("b", PAGES)


def slot(mapping: str = "a", gpa: int = 0x100000, flags: int = 0, number: int = 1) -> AnyOperation:
    """Return the call that shows a mapping, as long as `A` and `B`, to the guest."""
    return SetUserMemoryRegion(number, gpa, PAGES * PAGE_SIZE_BYTES, Place(mapping), flags)


def after(
    operations: Iterable[AnyOperation],
    features: Features | None = None,
    mappings: tuple[Mapping, ...] = (A, B),
) -> Model:
    """Return a model in which these operations have come to what is preferred."""
    model = Model(mappings, features or Features())
    for operation in operations:
        assert model.prefer(operation), operation
    return model


def look(*operations: AnyOperation, mappings: tuple[Mapping, ...] = (A, B)) -> Inspected:
    """Return what the host may see in its memory after these operations."""
    (choice,) = after(operations, mappings=mappings).allowed(Inspect())
    assert isinstance(choice.outcome, Inspected)
    return choice.outcome


def only(model: Model, operation: AnyOperation) -> Allowed:
    """Return the one outcome of an operation, and come to the state after it."""
    (choice,) = model.allowed(operation)
    choice.adopt()
    return choice


def outcome(model: Model, operation: AnyOperation) -> AnyOutcome:
    """Return what an operation comes to, and come to the state after it."""
    return only(model, operation).outcome
