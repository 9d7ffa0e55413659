"""The shortcut in C answers as the method in Python does, which it stands before."""

import copy
import gc
import inspect
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from kvm_abi import shortcut
from tests.bench.overhead import Stopwatch
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.vm import IN_PYTHON, Vm

PAGE = 0x1000


def other_vm() -> Vm:
    """Return a VM whose file is none of KVM's."""
    return Vm(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), 4096)


@pytest.fixture
def vm() -> Iterator[Vm]:
    with other_vm() as made:
        yield made


def outcome(method: Any, *args: Any, **named: Any) -> tuple[type, str] | None:
    """Return the kind and the text of what a call raises."""
    try:
        method(*args, **named)
    except Exception as error:
        return type(error), str(error)
    return None


def run_python(code: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran
    return ran.stdout


class Place(HostAddress):
    """A kind of address that the shortcut does not know."""

    __slots__ = ()


MEMORY = HostMapping.anonymous(PAGE)
CLOSED = HostMapping.anonymous(PAGE)
CLOSED.close()

numbers = st.integers(-1, 3) | st.integers((1 << 32) - 2, 1 << 32) | st.integers(-3, 1 << 64)
numbers |= st.sampled_from([(1 << 64) - 1, 1 << 64, True])
offsets = numbers | st.integers(0, PAGE + 1)
addresses = st.builds(HostAddress, st.sampled_from([MEMORY, CLOSED]), offsets)
addresses |= st.builds(Place, st.just(MEMORY), offsets)
values = numbers | addresses | st.sampled_from([None, "0", 1.0, MEMORY])


@given(st.lists(values, min_size=4, max_size=6), st.booleans())
def test_it_refuses_what_the_method_refuses_in_the_same_words(args: list[Any], named: bool) -> None:
    keywords = {"userspace_addr": args.pop()} if named else {}
    with other_vm() as vm:
        wanted = outcome(IN_PYTHON, vm, *args, **keywords)
        assert wanted is not None
        assert outcome(vm.set_user_memory_region, *args, **keywords) == wanted


def test_a_closed_vm_and_an_unfinished_one_are_refused(vm: Vm) -> None:
    vm.close()
    with pytest.raises(ValueError, match="the VM is closed"):
        vm.set_user_memory_region(0, 0, 0, 0, 0)
    with pytest.raises(AttributeError, match="_fd"):
        Vm.__new__(Vm).set_user_memory_region(0, 0, 0, 0, 0)
    with pytest.raises(TypeError, match="doesn't apply to a 'str' object"):
        Vm.set_user_memory_region("vm", 0, 0, 0, 0, 0)  # type: ignore[arg-type]


def test_it_is_described_as_the_method_is() -> None:
    assert inspect.signature(Vm.set_user_memory_region).parameters.keys() == (
        inspect.signature(IN_PYTHON).parameters.keys()
    )
    assert inspect.getdoc(Vm.set_user_memory_region) == inspect.getdoc(IN_PYTHON)


def test_a_module_that_is_loaded_again_keeps_its_method() -> None:
    run_python("import importlib, vmm.kvm.vm; importlib.reload(vmm.kvm.vm).Vm(-1, 0).close()")
    before = Vm.set_user_memory_region
    shortcut.put_before(IN_PYTHON, Vm, HostAddress, HostMapping)
    assert Vm.set_user_memory_region is before


def test_an_address_is_copied_and_pickled() -> None:
    place = HostAddress(MEMORY, 8)
    assert copy.copy(place) == place
    assert copy.copy(place).mapping is MEMORY
    assert type(copy.copy(Place(MEMORY, 8))) is Place
    anywhere = HostAddress(None, 8)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(anywhere)) == anywhere


def test_a_refusal_keeps_no_reference(vm: Vm) -> None:
    slot, place = 1 << 20, HostAddress(MEMORY, 0)
    objects = slot, place, MEMORY, vm

    def counts() -> list[int]:
        gc.collect()
        return [sys.getrefcount(each) for each in objects]

    before = counts()
    for _ in range(10):
        assert outcome(vm.set_user_memory_region, slot, 0, 0, PAGE, place) is not None
        assert outcome(vm.set_user_memory_region, slot, 0, 0, PAGE, slot=3) is not None
    assert counts() == before


def test_a_cycle_of_its_objects_is_collected() -> None:
    memory = HostMapping.anonymous(PAGE)
    place = HostAddress(memory, 0)
    memory.address = place  # type: ignore[assignment]
    gone = weakref.ref(memory)
    del memory, place
    gc.collect()
    assert gone() is None


def test_a_benchmark_can_time_it(vm: Vm) -> None:
    watch = Stopwatch()
    watch.measure(lambda: outcome(vm.set_user_memory_region, 0, 0, 0, 0, 0))
    assert watch.seconds > 0
    assert Vm.set_user_memory_region is not IN_PYTHON


_SLOW_IOCTL = """
#include <errno.h>
#include <stdint.h>
#include <unistd.h>
int ioctl(int fd, unsigned long request, void *arg)
{
    usleep(200000);
    errno = EDOM; /* The structure is not at the end of a page. */
    return ((uintptr_t)arg + 32) % 4096 ? -1 : 0;
}
"""

_ON_THE_SIDE = """
import os, threading, time
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.vm import Vm
vm = Vm(os.open("/dev/null", os.O_RDWR), 4096)
def begin(number, function, *args):
    threads = [threading.Thread(target=function, args=args) for _ in range(number)]
    for each in threads:
        each.start()
    return threads
"""

_COUNTING = """
beats, ended = 0, False
def beat():
    global beats
    while not ended:
        beats += 1
        time.sleep(0.001)
begin(1, beat)
before = beats
vm.set_user_memory_region(0, 0, 0, 0, 0)
assert beats - before > 2, beats - before
ended = True
"""

_REPLACING = """
place = HostAddress(HostMapping.anonymous(4096), 0)
def replace():
    time.sleep(0.05)
    vm._pinned = {}
begin(1, replace)
vm.set_user_memory_region(7, 0, 0, 4096, place)
assert vm._pinned == {7: place.mapping}, vm._pinned
"""

_DELETING = """
def delete():
    time.sleep(0.05)
    del vm._pinned
begin(1, delete)
try:
    vm.set_user_memory_region(7, 0, 0, 0, 0)
except AttributeError:
    vm._pinned = {}
assert vm._pinned == {}
"""

_FORKING = """
threads = begin(16, vm.set_user_memory_region, 0, 0, 0, 0, 0)
time.sleep(0.05)
child = os.fork()
if not child:
    try:
        vm.set_user_memory_region(0, 0, 0, 0, 0)
    except BaseException as error:
        print(error, flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def slow_ioctl(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("slow")
    source, library = folder / "slow.c", folder / "slow.so"
    source.write_text(_SLOW_IOCTL)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


@pytest.mark.parametrize("code", [_COUNTING, _REPLACING, _DELETING, _FORKING])
def test_other_threads_go_on_while_the_kernel_works(slow_ioctl: str, code: str) -> None:
    run_python(_ON_THE_SIDE + code, LD_PRELOAD=slow_ioctl)
