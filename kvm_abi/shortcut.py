"""A shortcut in C before `Vm.set_user_memory_region`, for the arguments that it usually has.

When a slot has changed, the processor holds little of the interpreter in its caches and its TLB, so
that a few lines of Python cost a tenth of what the kernel takes (`vmm bench`). The shortcut reads
the objects' fields at their places in memory; the bases here lay these out.
"""

import inspect
from collections.abc import Callable

from kvm_abi import _frequent

VmFields = _frequent.VmFields
"""Has the attributes `_fd` and `_pinned`."""

PagesFields = _frequent.PagesFields
"""Has the attributes `address`, `size_bytes` and `_view`."""

AddressFields = _frequent.AddressFields
"""Has the attributes `mapping` and `offset`."""


def put_before(method: Callable[..., None], vm: type, address: type, mapping: type) -> None:
    """Put the shortcut before a method of ``vm``, of which it takes the name and the docstring.

    It makes the call only if all five arguments are there by position, the last a number or an
    ``address`` inside an open ``mapping``, and all fit; otherwise it calls the method. It does what
    the method does, and calls ``vm``'s ``_refuse`` where the kernel does not answer 0.

    There is one in a process: a class of a module that is loaded again, or in another interpreter,
    keeps the method as it is.
    """
    parameters = ", ".join(inspect.signature(method).parameters).replace("self", "$self", 1)
    described = f"{method.__name__}({parameters})\n--\n\n{inspect.getdoc(method) or ''}"
    _frequent.put_before(method, method.__name__, described, (vm, address, mapping))
