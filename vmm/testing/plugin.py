"""The pytest plugin: fixtures for VMs, curated scenarios as tests, and details on failures.

It is loaded in every pytest run where this package is installed, and imports almost nothing until a
fixture is used. Where /dev/kvm cannot be used its tests are skipped with the reason; with
``VMM_REQUIRE_KVM`` set in the environment they fail.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from vmm.testing.needs import for_kvm
from vmm.testing.scenarios import MARKER, PARAMETER, names_for

if TYPE_CHECKING:
    from vmm.host.health import KernelWatch
    from vmm.kvm.memory import HostMapping
    from vmm.kvm.system import Kvm
    from vmm.kvm.vcpu import Vcpu
    from vmm.kvm.vm import Vm
    from vmm.testing.recorded import RecordedKvm

GuestMemory = Callable[..., "HostMapping"]
"""(gpa, size_bytes, *, slot=None, flags=0, content=b"") -> the memory of a new slot."""

_CAPABILITY = "kvm_capability"
_PAGE_BYTES = 4096
_devices = pytest.StashKey["RecordedKvm"]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line(
        "markers",
        f"{_CAPABILITY}(name, at_least=1): skip unless KVM_CHECK_EXTENSION says so much of "
        "KVM_CAP_NAME",
    )
    config.addinivalue_line("markers", f"{MARKER}(*patterns): made by vmm.testing.{MARKER}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each scenario."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is not None and PARAMETER in metafunc.fixturenames:
        metafunc.parametrize(PARAMETER, names_for(marker.args))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose capability this kernel lacks, and scenarios if there is no KVM."""
    markers = list(item.iter_markers(_CAPABILITY))
    if not markers and item.get_closest_marker(MARKER) is None:
        return
    with for_kvm(), _opened() as device:
        for marker in markers:
            _require(device, *_wanted(*marker.args, **marker.kwargs))


def _wanted(*args: object, **kwargs: object) -> tuple[str, int]:
    """Return the name and the least answer that a marker asks for; fail if it says neither."""
    from kvm_abi.uapi import Cap

    name, *rest = args or (None,)
    at_least = kwargs.pop("at_least", rest.pop(0) if rest else 1)
    if isinstance(name, Cap):
        name = name.name
    if kwargs or rest or not isinstance(name, str) or not isinstance(at_least, int):
        pytest.fail(f'write {_CAPABILITY}("NAME", at_least=NUMBER)', pytrace=False)
    return name, at_least


def _require(device: "Kvm", name: str, at_least: int) -> None:
    import difflib

    from kvm_abi.uapi import Cap

    name = name.removeprefix("KVM_CAP_")
    if name not in Cap.__members__:
        close = difflib.get_close_matches(name.upper(), Cap.__members__)
        others = f"; the closest: {', '.join(close)}" if close else ""
        pytest.fail(f"{_CAPABILITY}: no capability is named {name!r}{others}", pytrace=False)
    with device.create_vm() as machine:
        found = machine.check_extension(Cap[name])
    if found < at_least:
        what = f"KVM_CAP_{name}" + (f" of {at_least}" if at_least > 1 else "")
        pytest.skip(f"needs {what}: this kernel says {found}")


def _opened() -> "RecordedKvm":
    """Open the device, or else skip the test, or fail it."""
    with for_kvm():
        from vmm.testing.recorded import RecordedKvm

        return RecordedKvm.open()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the slot map and the last exits of the test's VMs to a failure."""
    report = yield
    if report.when != "teardown" and report.failed and _devices in item.stash:
        from vmm.testing.recorded import state_lines

        for number, machine in enumerate(item.stash[_devices].machines):
            report.sections.append((f"KVM machine {number}", "\n".join(state_lines(machine))))
    return report


@pytest.fixture
def kvm(request: pytest.FixtureRequest) -> Iterator["Kvm"]:
    """The KVM of this host. If the test fails, the memslots of its VMs are shown."""
    device = _opened()
    request.node.stash[_devices] = device
    yield device
    with for_kvm():
        device.close()


@pytest.fixture
def _mappings() -> Iterator[ExitStack]:
    """Memory that is closed after the VM that uses it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def vm(_mappings: ExitStack, kvm: "Kvm") -> Iterator["Vm"]:
    """A VM without memory or vCPUs."""
    with for_kvm():
        machine = kvm.create_vm()
    yield machine
    with for_kvm():
        machine.close()


@pytest.fixture
def vcpu(vm: "Vm") -> "Vcpu":
    """The VM's vCPU 0, in its reset state; closed with the VM."""
    with for_kvm():
        return vm.create_vcpu(0)


@pytest.fixture
def guest_memory(vm: "Vm", _mappings: ExitStack) -> GuestMemory:
    """A function that gives the VM memory.

    ``guest_memory(gpa, size_bytes, slot=None, flags=0, content=b"")`` creates a memslot (by default
    the lowest free slot id) over new anonymous memory that begins with ``content``, and returns
    that memory, a `HostMapping`. It is closed after the VM.
    """
    from vmm.kvm.memory import HostAddress, HostMapping
    from vmm.kvm.vm import Vm
    from vmm.testing.recorded import used_slots

    if not isinstance(vm, Vm):  # A fixture of the project, which means another thing by the name.
        what = f"the fixture vm, which is {vm!r} here, has to be a vmm.Vm"
        pytest.fail(f"guest_memory: {what}", pytrace=False)

    def add(
        gpa: int,
        size_bytes: int = _PAGE_BYTES,
        *,
        slot: int | None = None,
        flags: int = 0,
        content: bytes = b"",
    ) -> "HostMapping":
        if slot is None:
            used = used_slots(vm)
            slot = next(number for number in range(1 << 15) if number not in used)
        memory = _mappings.enter_context(HostMapping.anonymous(size_bytes))
        memory.write(0, content)
        vm.set_user_memory_region(slot, flags, gpa, size_bytes, HostAddress(memory, 0))
        return memory

    return add


@pytest.fixture
def kernel_health() -> Iterator["KernelWatch"]:
    """Fail the test if the kernel warned, or worse, while it ran."""
    from vmm.host.health import KernelWatch

    with KernelWatch() as watch:
        yield watch
        complaints = watch.news()
    if complaints:
        lines = [line for each in complaints for line in (each.what, *each.excerpt)]
        pytest.fail("\n".join(["the kernel complained:", *lines]), pytrace=False)
