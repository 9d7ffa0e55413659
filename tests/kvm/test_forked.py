"""A forked child says what it sees change, and holds nothing of a VM."""

import os
import resource
import signal

import pytest

from vmm.execution import forked
from vmm.execution.forked import ForkedChild
from vmm.execution.leftovers import Leftovers
from vmm.host.child import fork
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


def test_what_the_host_has_run_out_of_in_a_child_is_told(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork_short_of_descriptors() -> int:
        pid = fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return pid

    monkeypatch.setattr(forked, "fork", fork_short_of_descriptors)
    with HostMapping.anonymous(PAGE) as memory:
        child = ForkedChild([("a", memory, 0)])
        with pytest.raises(OSError, match="Too many open files"):
            child.end()


def test_a_child_that_is_killed_from_outside_is_the_hosts(kvm: Kvm) -> None:
    with HostMapping.anonymous(PAGE) as memory:
        child = ForkedChild([("a", memory, 0)])
        os.kill(child._pid, signal.SIGKILL)
        with pytest.raises(OSError, match="signal 9 has ended the forked child"):
            child.end()
