"""A forked child says what it sees change, and holds nothing of a VM."""

from vmm.execution.forked import ForkedChild
from vmm.execution.leftovers import Leftovers
from vmm.kvm.memory import HostMapping
from vmm.kvm.system import Kvm

PAGE = 4096


def test_a_child_sees_what_is_shared_and_nothing_else(kvm: Kvm) -> None:
    shared, own = HostMapping.shared(2 * PAGE), HostMapping.anonymous(2 * PAGE)
    with shared, own:
        pages = [(name, memory, PAGE) for name, memory in (("shared", shared), ("own", own))]
        child = ForkedChild(pages)
        shared.write(PAGE + 4, b"news")
        own.write(PAGE + 4, b"news")
        (change,) = child.end()
        assert (change.mapping, change.offset, change.data) == ("shared", PAGE + 4, b"news")


def test_a_child_holds_no_vm(kvm: Kvm) -> None:
    leftovers = Leftovers()
    with HostMapping.anonymous(PAGE) as memory:
        with kvm.create_vm() as vm:
            vm.create_vcpu(0)
            child = ForkedChild([("a", memory, 0)])
        assert leftovers.found() == ()
        assert child.end() == ()
