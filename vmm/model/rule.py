"""Rules: the promises of KVM that the model checks.

``documented`` rules are in the kernel's Documentation/virt/kvm, in api.rst or x86/msr.rst.
``source`` rules are known only from reading virt/kvm/kvm_main.c and arch/x86/kvm: they are weaker,
and a verdict says so. A rule is a constant in the module that applies it; files refer to it by
name.
"""

from dataclasses import dataclass
from typing import Literal

Basis = Literal["documented", "source"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One promise: a name, which never changes, a sentence, and its source.

    >>> from vmm import Rule
    >>> Rule("hole", "a gpa without a slot is MMIO", "documented", "api.rst 5").basis
    'documented'
    """

    name: str
    promise: str
    basis: Basis
    cite: str


def documented(name: str, promise: str, cite: str = "api.rst 4.35") -> Rule:
    """Return a promise that is in the kernel's api.rst, or in the document that it cites."""
    return Rule(name, promise, "documented", cite)


def source(name: str, promise: str, cite: str) -> Rule:
    """Return a promise that is known only from the kernel's source."""
    return Rule(name, promise, "source", cite)
