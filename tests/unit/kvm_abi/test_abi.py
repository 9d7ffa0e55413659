"""Compares kvm_abi with the installed <linux/kvm.h>, by one program compiled against it."""

import inspect
import re
import subprocess
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

from kvm_abi import raw, uapi
from kvm_abi._kvm import ffi

PREFIXES: dict[type[IntEnum] | Any, str] = {
    uapi.IoEventFdFlag: "KVM_IOEVENTFD_FLAG_",
    uapi.Ioctl: "KVM_",
    uapi.MemFlag: "KVM_MEM_",
    uapi.Cap: "KVM_CAP_",
    uapi.ClockMsr: "MSR_KVM_",
    uapi.ParavirtualFeature: "KVM_FEATURE_",
    uapi.VmType: "KVM_X86_",
    uapi.Quirk: "KVM_X86_QUIRK_",
    uapi.DirtyLogManual: "KVM_DIRTY_LOG_",
    uapi.GuestMemfdFlag: "GUEST_MEMFD_FLAG_",
    uapi.MemoryAttribute: "KVM_MEMORY_ATTRIBUTE_",
    uapi.MemoryExitFlag: "KVM_MEMORY_EXIT_FLAG_",
    uapi.VcpuEventFlag: "KVM_VCPUEVENT_VALID_",
    uapi.ExitReason: "KVM_EXIT_",
    uapi.IoDirection: "KVM_EXIT_IO_",
    uapi.InternalError: "KVM_INTERNAL_ERROR_",
    uapi.EmulationFlag: "KVM_INTERNAL_ERROR_EMULATION_FLAG_",
    uapi.SystemEvent: "KVM_SYSTEM_EVENT_",
    uapi.Protection: "PROT_",
    uapi.MapFlag: "MAP_",
    uapi.Advice: "MADV_",
}

# What came after Linux 6.1, and the macro that came with it: older headers lack both.
NEWER_STRUCTURES = {
    "struct kvm_userspace_memory_region2": "KVM_SET_USER_MEMORY_REGION2",
    "struct kvm_memory_attributes": "KVM_SET_MEMORY_ATTRIBUTES",
    "struct kvm_create_guest_memfd": "KVM_CREATE_GUEST_MEMFD",
    "struct kvm_pre_fault_memory": "KVM_PRE_FAULT_MEMORY",
}
NEWER_FIELDS = {"memory_fault": "KVM_EXIT_MEMORY_FAULT"}
NEWER_CONSTANTS = {
    *NEWER_STRUCTURES.values(),
    *NEWER_FIELDS.values(),
    "GUEST_MEMFD_FLAG_INIT_SHARED",
    "GUEST_MEMFD_FLAG_MMAP",
    "KVM_CAP_GUEST_MEMFD",
    "KVM_CAP_GUEST_MEMFD_FLAGS",
    "KVM_CAP_MEMORY_ATTRIBUTES",
    "KVM_CAP_MEMORY_FAULT_INFO",
    "KVM_CAP_PRE_FAULT_MEMORY",
    "KVM_CAP_USER_MEMORY2",
    "KVM_CAP_VM_TYPES",
    "KVM_MEMORY_ATTRIBUTE_PRIVATE",
    "KVM_MEMORY_EXIT_FLAG_PRIVATE",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_X86_DEFAULT_VM",
    "MADV_COLLAPSE",
    "KVM_X86_QUIRK_SLOT_ZAP_ALL",
    "KVM_X86_SW_PROTECTED_VM",
}


def test_every_enum_is_compared() -> None:
    enums = {
        value
        for value in vars(uapi).values()
        if inspect.isclass(value) and issubclass(value, int) and value.__module__ == uapi.__name__
    }
    assert set(PREFIXES) == enums


def test_agrees_with_the_installed_header(tmp_path: Path) -> None:
    ours = {**_constants(), **_layouts()}
    theirs = _probe(tmp_path, list(ours))

    assert {name: theirs[name] for name in theirs} == {name: ours[name] for name in theirs}

    lacking = {name for name in ours if name not in theirs}
    print("the installed header lacks:", *sorted(lacking), sep="\n  ")
    unknown = {name for name in lacking if _guard(name) not in NEWER_CONSTANTS}
    if "KVM_CAP_DIRTY_LOG_RING_ACQ_REL" in theirs:  # Linux 6.1 or newer
        assert unknown == set()
    assert len(theirs) > 400


def test_probe_answers_for_each_name(tmp_path: Path) -> None:
    """The comparison is not vacuous: what the probe says of a name is that name's own."""
    ours = _layouts()
    theirs = _probe(tmp_path, ["offsetof(struct kvm_run, mmio.len)", "sizeof(struct kvm_run)"])
    assert theirs == {
        "offsetof(struct kvm_run, mmio.len)": 48,
        "sizeof(struct kvm_run)": ours["sizeof(struct kvm_run)"],
    }


def test_every_ioctl_states_the_size_of_its_structure() -> None:
    sizes = {raw.size_of(name) for name in _structures()} | {raw.size_of("uint64_t"), 0}
    assert {request.size_bytes for request in uapi.Ioctl} <= sizes


def _constants() -> dict[str, int]:
    constants = {
        "KVM_API_VERSION": uapi.API_VERSION,
        "KVM_DIRTY_LOG_PAGE_OFFSET": uapi.DIRTY_LOG_PAGE_OFFSET,
        "KVM_SYNC_X86_REGS": uapi.SYNC_X86_REGS,
        "KVM_SYNC_X86_SREGS": uapi.SYNC_X86_SREGS,
    }
    for enum, prefix in PREFIXES.items():
        for member in enum:
            constants[prefix + member.name] = member.value
    return constants


def _layouts() -> dict[str, int]:
    """Return every size and offset, by the C expression that says it."""
    structures = _structures()
    parts = {type_.cname for whole in structures.values() for type_ in _parts(whole)}
    layouts = {}
    for name, whole in structures.items():
        if name not in parts:
            layouts[f"sizeof({name})"] = raw.size_of(name)
            for path, offset, size in _places(whole):
                layouts[f"offsetof({name}, {path})"] = offset
                if size is not None:
                    layouts[f"sizeof((({name} *)0)->{path})"] = size
    return layouts


def _structures() -> dict[str, Any]:
    """Return cffi's description of every structure, by its C name."""
    kernels = (name for name in ffi.list_types()[1] if not name.startswith("abi_"))
    return {f"struct {name}": ffi.typeof(f"struct {name}") for name in kernels}


def _parts(ctype: Any) -> Iterator[Any]:
    """Yield the types of all members of a structure, at every depth."""
    for _, field in ctype.fields:
        inner = field.type.item if field.type.kind == "array" else field.type
        yield inner
        if inner.kind in ("struct", "union"):
            yield from _parts(inner)


def _places(ctype: Any, prefix: str = "", base: int = 0) -> Iterator[tuple[str, int, int | None]]:
    """Yield path, offset and size (None of a flexible array) of every member with a name."""
    for name, field in ctype.fields:
        path, offset, inner = prefix + name, base + field.offset, field.type
        if name:
            flexible = inner.kind == "array" and inner.length is None
            yield path, offset, None if flexible else raw.size_of(inner)
        if inner.kind == "array":
            path, inner = f"{path}[0]", inner.item
        if inner.kind in ("struct", "union"):
            yield from _places(inner, f"{path}." if name else prefix, offset)


def _guard(expression: str) -> str:
    """Return the macro that a header has when it knows the expression, or '' if all do."""
    if "(" not in expression:
        return expression
    words = re.findall(r"struct \w+|\w+", expression)
    newer = {**NEWER_STRUCTURES, **NEWER_FIELDS}
    return next((newer[word] for word in words if word in newer), "")


def _probe(folder: Path, expressions: list[str]) -> dict[str, int]:
    """Return what the installed header says of each expression that it knows."""
    lines = []
    for expression in expressions:
        show = f'printf("%s=%llu\\n", "{expression}", (unsigned long long)({expression}));'
        guard = _guard(expression)
        lines += [f"#ifdef {guard}", show, "#endif"] if guard else [show]
    source = folder / "probe.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/mman.h>\n"
        "#include <asm/kvm_para.h>\n#include <linux/kvm.h>\nint main(void)\n{\n"
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    program = folder / "probe"
    subprocess.run(["cc", "-D_GNU_SOURCE", "-w", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    pairs = (line.rpartition("=") for line in output.splitlines())
    return {name: int(value) for name, _, value in pairs}
