"""What tests ask of a model."""

from vmm.model.allowed import Allowed
from vmm.model.model import Model
from vmm.scenario.operations import AnyOperation


def only(model: Model, operation: AnyOperation) -> Allowed:
    """Return the one outcome of an operation, and come to the state after it."""
    (choice,) = model.allowed(operation)
    choice.adopt()
    return choice
