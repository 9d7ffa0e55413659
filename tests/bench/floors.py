"""How near to C a Python program can come at all: `vmm bench`'s work as calls without a wrapper.

    scripts/vmm bench --work create --work delete --work run --work nop --slots 1
    .venv/bin/python -m tests.bench.floors

The first command compares the library with C. This one compares it with loops that only call the
compiled module: what is left between those and C, no library in Python can take away. After a guest
has run, the processor has forgotten where Python's code branches, so that few instructions cost
much.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from kvm_abi import raw
from vmm.bench import guest
from vmm.bench.setup import CODE_GPA, PAGE_BYTES, WORK_GPA
from vmm.kvm.memory import HostAddress, HostMapping
from vmm.kvm.system import Kvm

_ROUNDS, _TIMES = 25, 1000
_SLOT, _SIZE_BYTES = 0, 64 * PAGE_BYTES
_Work = Callable[[], object]

_clock = time.perf_counter_ns


def main() -> None:
    """Print the median of each kind of work, through the library and without it."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    gc.disable()
    with ExitStack() as stack:
        memory = stack.enter_context(HostMapping.anonymous(_SIZE_BYTES))
        code = stack.enter_context(HostMapping.anonymous(PAGE_BYTES))
        code.write(0, guest.code_page())
        vm = stack.enter_context(stack.enter_context(Kvm.open()).create_vm())
        vm.set_user_memory_region(1, 0, CODE_GPA, PAGE_BYTES, HostAddress(code, 0))
        vcpu = vm.create_vcpu(0)
        vcpu.enter_big_real_mode(CODE_GPA, guest.OFFSETS["run"])
        vcpu.run()
        hva = HostAddress(memory, 0)
        slot = _SLOT, 0, WORK_GPA, _SIZE_BYTES
        create = partial(vm.set_user_memory_region, *slot, hva)
        delete = partial(vm.set_user_memory_region, _SLOT, 0, 0, 0, 0)
        bare_create = partial(raw.issue_region, vm.fd, *slot, hva.hva)
        bare_delete = partial(raw.issue_region, vm.fd, _SLOT, 0, 0, 0, 0)
        print(f"{'work':8}{'library':>9}{'bare':>8}  us")
        report("create", _between(create, delete), _between(bare_create, bare_delete))
        create()
        report("delete", _between(delete, create), _between(bare_delete, bare_create))
        report("nop", _alone(create), _alone(bare_create))
        run = vcpu.fd, raw.address_of(vcpu.kvm_run)
        report("run", _alone(vcpu.run), _alone(partial(raw.issue_run, *run)))


def report(name: str, library: Callable[[], float], bare: Callable[[], float]) -> None:
    """Measure both in turn, and print their medians."""
    rounds = [(library(), bare()) for _ in range(_ROUNDS)]
    usual, least = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"{name:8}{usual:9.2f}{least:8.2f}")


def _between(work: _Work, undo: _Work) -> Callable[[], float]:
    """Return a function that measures the microseconds of work which has to be undone."""

    def measure() -> float:
        spent = 0
        for _ in range(_TIMES):
            begun = _clock()
            work()
            spent += _clock() - begun
            undo()
        return spent / _TIMES / 1000

    return measure


def _alone(work: _Work) -> Callable[[], float]:
    """Return a function that measures the microseconds of work which can be repeated."""

    def measure() -> float:
        begun = _clock()
        for _ in range(_TIMES):
            work()
        return (_clock() - begun) / _TIMES / 1000

    return measure


if __name__ == "__main__":
    main()
