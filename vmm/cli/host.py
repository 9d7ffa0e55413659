"""Opens this host's KVM for a command, or says why that cannot be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import click

from kvm_abi.uapi import Cap
from vmm.cli.errors import NothingRan, NothingRanAsRequired
from vmm.host.hostinfo import HostInfo, host_facts
from vmm.scenario.features import Features
from vmm.verdict.judge import Status

USUAL = Features()
"""What kernels can usually do, for a host whose kernel cannot be asked."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host, and what its kernel can do."""

    info: HostInfo
    features: Features = USUAL


def require_usable(host: Host, require_run: bool) -> None:
    """Raise NothingRan, with what to do about it, if nothing can run on this host."""
    info = host.info
    if not info.obstacle:
        return
    why = f"{info.obstacle}; {info.remedy}"
    if require_run:
        raise NothingRanAsRequired(f"nothing could run, and --require-run was given: {why}")
    raise NothingRan(f"nothing could run: {why}")


def exit_status(status: Status, require_run: bool) -> int:
    """Return a command's exit status, and say so where --require-run changes it."""
    if status is Status.SKIPPED and require_run:
        click.echo("vmm: nothing could run, and --require-run was given", err=True)
        return NothingRanAsRequired.exit_code
    return status.exit_status


def look_at_host() -> Host:
    """Return this host; its ``info.obstacle`` says why its KVM cannot be used."""
    facts = host_facts()
    if facts.obstacle:
        return Host(facts)
    try:
        from vmm.execution.probe.features import probe_features
        from vmm.kvm.system import Kvm
    except ImportError as error:
        obstacle = f"a compiled module is missing: {error}"
        remedy = "build it: `pip install -e .`, or run ./scripts/vmm, which does"
        return Host(replace(facts, obstacle=obstacle, remedy=remedy))
    try:
        with Kvm.open() as kvm, kvm.create_vm() as vm:
            capabilities = {cap.name: vm.check_extension(cap) for cap in Cap}
            features = probe_features(kvm)
    except (OSError, RuntimeError) as error:
        remedy = (
            "this kernel is too old, or another hypervisor holds the CPU's virtualisation; "
            "see the kernel log"
        )
        return Host(replace(facts, obstacle=str(error), remedy=remedy))
    return Host(replace(facts, capabilities=capabilities), features)


@contextmanager
def reserved_cpus(count: int) -> Iterator[tuple[int, ...]]:
    """Yield CPUs for scenarios to run on, and stay away from them meanwhile, if others are left.

    They are the lowest ones that are allowed, and the first of them over again where they are too
    few. Slot-changing ioctls wait for an SRCU grace period, which takes up to five times longer on
    a small idle host if it is not the first CPU that waits.
    """
    allowed = os.sched_getaffinity(0)
    cpus = sorted(allowed)[:count]
    os.sched_setaffinity(0, allowed.difference(cpus) or allowed.difference(cpus[:1]) or allowed)
    try:
        yield (*cpus, *cpus[:1] * (count - len(cpus)))
    finally:
        os.sched_setaffinity(0, allowed)
