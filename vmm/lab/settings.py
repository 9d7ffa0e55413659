"""The settings of a machine's first process, which init/init.c explains, and the initramfs.

A QEMU machine gets them in two parts: until it has its orders, none of the host's files is in use,
and nothing in it depends on the command.
"""

import gzip
import secrets
import time
from collections.abc import Sequence

from vmm.lab import bochs, initramfs
from vmm.lab.bundle import bundled
from vmm.lab.errors import LabError
from vmm.lab.log import SIGN
from vmm.lab.machine import Backend, Job, Machine, module_parameters
from vmm.lab.modules import Module

_ALWAYS = {"kvm": ("force_emulation_prefix=1",)}
"""Default module parameters, which let guests ask for KVM's emulator."""

_ON_BOCHS = {**_ALWAYS, "kvm_intel": ("pml=0",)}
"""Bochs logs addresses with their low bits (PML), about which KVM warns."""

_ROOT = "/host"
"""Where the host's files are mounted."""

_MAX_ORDERS = 1 << 16
"""Bytes that a pipe holds even if the machine does not read them."""


def first_settings(
    machine: Machine, job: Job, loaded: Sequence[Module], nonce: str
) -> list[initramfs.Setting]:
    """Return the first settings: modules to load, and, on bochs, everything else."""
    steps = [("nonce", nonce), *_modules(machine, loaded)]
    if machine.backend is Backend.VMX:
        steps += [("out", "/dev/ttyS1"), ("err", "/dev/ttyS2")]
        return steps + _command(machine, job, nonce, bochs.packing(job.words[0], nonce, job.words))
    steps += [("out", "/dev/vport0p1"), ("err", "/dev/vport0p2"), ("orders", "/dev/vport0p3")]
    if preloads(machine, job):
        steps += _variables(job) + [("preloaded", word) for word in job.preloaded]
    return steps


def preloads(machine: Machine, job: Job) -> bool:
    """Return whether the machine loads the job's program before it gets orders."""
    return bool(job.preloaded) and machine.backend is not Backend.VMX and machine.memory_mib >= 1024


def orders(machine: Machine, job: Job, nonce: str, *, is_restored: bool) -> bytes:
    """Return the orders. Raises LabError if they are too long."""
    steps = [("nonce", nonce)] if is_restored else []
    steps += [("clock", str(int(time.time()))), ("random", secrets.token_hex(32)), ("root", _ROOT)]
    steps += [*_shares(job), *_command(machine, job, nonce, job.words), ("end", "")]
    text = initramfs.settings_text(steps)
    if len(text) > _MAX_ORDERS:
        raise LabError(f"the command and its environment have more than {_MAX_ORDERS} bytes")
    return text


def _modules(machine: Machine, loaded: Sequence[Module]) -> list[initramfs.Setting]:
    own = module_parameters(machine)
    usual = _ON_BOCHS if machine.backend is Backend.VMX else _ALWAYS
    steps = []
    for module in loaded:
        words = [module.name, *usual.get(module.name, ())]
        for name, value in own.items():
            owner, _, parameter = name.partition(".")
            words += [f"{parameter}={value}"] * (owner == module.name)
        steps.append(("module", " ".join(words)))
    return steps


def _command(
    machine: Machine, job: Job, nonce: str, words: tuple[str, ...]
) -> list[initramfs.Setting]:
    steps = [("parameter", name) for name in module_parameters(machine)]
    steps += [("kvm", "yes"), *_variables(job), ("variable", f"{SIGN}=memslot-lab {nonce}")]
    return [*steps, ("folder", str(job.folder)), *(("word", word) for word in words)]


def _variables(job: Job) -> list[initramfs.Setting]:
    return [("variable", f"{name}={value}") for name, value in job.environment.items()]


def _shares(job: Job) -> list[initramfs.Setting]:
    kept = [str(path) for path in job.kept if path.is_relative_to(job.folder)]
    return [
        ("readonly", "host /"),
        *(("keep", path) for path in kept),
        ("writable", f"share {job.folder}"),
        *(("again", path) for path in kept),
    ]


def first_files(machine: Machine, job: Job, loaded: Sequence[Module], nonce: str) -> bytes:
    """Return the initramfs."""
    folders = ("dev", "proc", "sys", "root", "modules", _ROOT.lstrip("/"))
    files = [initramfs.folder(path) for path in folders]
    files.append(initramfs.program("init", initramfs.compiled_init()))
    text = initramfs.settings_text(first_settings(machine, job, loaded, nonce))
    files.append(initramfs.program("lab.conf", text))
    files += [initramfs.program(f"modules/{module.name}.ko", module.content) for module in loaded]
    archive = initramfs.archive(files)
    if machine.backend is Backend.VMX:
        return _packed(_everything(job)) + archive
    if preloads(machine, job):
        return initramfs.archive(bundled(job.code, ())) + archive
    return archive


def _everything(job: Job) -> bytes:
    entries = bundled(job.code, job.inputs)
    places = {str(place) for place in (job.folder, *job.folder.parents)} - {"/"}
    known = {path for path, _, _ in entries}
    missing = sorted(place.lstrip("/") for place in places if place.lstrip("/") not in known)
    # The kernel unpacks in this order, so folders that lie in a bundled one come after it.
    return initramfs.archive([*entries, *map(initramfs.folder, missing)])


def _packed(archive: bytes) -> bytes:
    packed = gzip.compress(archive, 1)
    return packed + bytes(-len(packed) % 4)
