"""What a rule is.

``documented`` rules stand in the kernel's Documentation/virt/kvm, in api.rst or x86/msr.rst.
``source`` rules are known from reading virt/kvm/kvm_main.c and arch/x86/kvm only: they are weaker,
and a verdict says so. A rule is a constant of the module whose check it decides; files know it by
its name.
"""

from dataclasses import dataclass
from typing import Literal

Basis = Literal["documented", "source"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One promise: a name, which is the same in every version, a sentence, and what it rests on.

    >>> from vmm import Rule
    >>> Rule("hole", "a gpa without a slot is MMIO", "documented", "api.rst 5").basis
    'documented'
    """

    name: str
    promise: str
    basis: Basis
    cite: str


def documented(name: str, promise: str, cite: str = "api.rst 4.35") -> Rule:
    """Return a promise that stands in the kernel's api.rst, or where it says."""
    return Rule(name, promise, "documented", cite)


def source(name: str, promise: str, cite: str) -> Rule:
    """Return a promise that is known from reading the kernel's source only."""
    return Rule(name, promise, "source", cite)
