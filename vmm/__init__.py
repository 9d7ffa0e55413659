'''A userspace VMM that proves, on real kernels, that KVM's memslots behave; and its library.

Everything that is meant for programs is imported from here. What is not used is not loaded.

A real-mode guest of one's own:

    >>> from vmm import HostAddress, HostMapping, Kvm, assemble, exits
    >>> code = assemble("""
    ...     mov $0x1234, %ax
    ...     mov %ax, 0x2000        # A gpa without a memslot: the access comes to us.
    ...     hlt
    ... """)
    >>> with HostMapping.anonymous(0x1000) as memory, Kvm.open() as kvm, kvm.create_vm() as vm:
    ...     memory.write(0, code)
    ...     vm.set_user_memory_region(
    ...         slot=0, flags=0, guest_phys_addr=0x1000, memory_size=0x1000,
    ...         userspace_addr=HostAddress(memory, 0),
    ...     )
    ...     vcpu = vm.create_vcpu(0)
    ...     vcpu.enter_big_real_mode(base=0x1000, rip=0)
    ...     while not isinstance(reason := vcpu.run(), exits.Hlt):
    ...         print(reason)
    Mmio(gpa=0x2000, data=b'4\\x12', is_write=True)

A scenario, which the kernel's answers are judged by:

    >>> from vmm import run_scenario, Scenario, operations
    >>> scenario = Scenario("a-hole", (operations.Touch(gpa=0x5000),), why="Nobody is there.")
    >>> run_scenario(scenario).verdict.status.value
    'passed'

What the kernel refuses raises `KvmError`, an `OSError` that says which ioctl, with which
arguments. Sizes, offsets and guest addresses are bytes throughout.
'''

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import a public name, or a module that is one, when it is first asked for."""
    from vmm.public import PLACES

    if name == "__all__":
        return [*PLACES]
    place = PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'vmm' has no attribute {name!r}")
    module = import_module(place)
    try:
        found = getattr(module, name)
    except AttributeError:
        found = import_module(f"{place}.{name}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    from vmm.public import PLACES

    return sorted({*globals(), *PLACES})
