import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_abi import raw
from kvm_abi.raw import KvmError, WrongAnswerError
from kvm_abi.uapi import Ioctl
from tests.bench.overhead import WAYS_IN

ROOT = Path(__file__).parents[3]


@pytest.fixture
def null() -> Iterator[int]:
    """A file that knows no ioctl of KVM: it answers ENOTTY."""
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_error_says_what_was_asked(null: int) -> None:
    region = raw.new(
        "struct kvm_userspace_memory_region *", (1, 2, 0x10000, 0x1000, 0x7F0000000000)
    )
    with pytest.raises(KvmError) as caught:
        raw.ioctl(null, Ioctl.SET_USER_MEMORY_REGION, region)
    region.slot = 7  # The error tells of the call, not of what became of the structure.
    assert caught.value.errno == errno.ENOTTY
    assert caught.value.request is Ioctl.SET_USER_MEMORY_REGION
    assert str(caught.value) == (
        "KVM_SET_USER_MEMORY_REGION(slot=0x1, flags=0x2, guest_phys_addr=0x10000, "
        "memory_size=0x1000, userspace_addr=0x7f0000000000): "
        "ENOTTY Inappropriate ioctl for device"
    )


@pytest.mark.parametrize(
    ("request_", "structure", "text"),
    [
        (Ioctl.RUN, None, "KVM_RUN()"),
        (Ioctl.CREATE_VCPU, 3, "KVM_CREATE_VCPU(0x3)"),
        (
            Ioctl.GET_DIRTY_LOG,
            ("struct kvm_dirty_log *", {"slot": 2, "padding2": 0x5000}),
            "KVM_GET_DIRTY_LOG(slot=0x2, dirty_bitmap=0x5000)",
        ),
        (
            Ioctl.ENABLE_CAP,
            ("struct kvm_enable_cap *", {"cap": 0xC0, "args": [0x11]}),
            f"KVM_ENABLE_CAP(cap=0xc0, flags=0x0, args=0x11{'00' * 31})",
        ),
        (Ioctl.SET_IDENTITY_MAP_ADDR, ("uint64_t *", 0x9000), "KVM_SET_IDENTITY_MAP_ADDR(0x9000)"),
        (
            Ioctl.SET_CPUID2,
            ("struct kvm_cpuid2 *", {"nent": 1, "entries": [{"function": 4}]}),
            "KVM_SET_CPUID2(nent=0x1, entries=[...])",
        ),
    ],
)
def test_error_renders_every_kind_of_argument(
    null: int,
    request_: Ioctl,
    structure: tuple[str, object] | int | None,
    text: str,
) -> None:
    argument = raw.new(*structure) if isinstance(structure, tuple) else structure or 0
    with pytest.raises(KvmError) as caught:
        raw.ioctl(null, request_, argument)
    assert str(caught.value).startswith(text + ": ENOTTY")


def test_error_renders_nested_structures(null: int) -> None:
    sregs = raw.new("struct kvm_sregs *")
    sregs.cs.base = 0xFFFF0000
    with pytest.raises(KvmError, match=r"cs=\{base=0xffff0000, limit=0x0, .*\}, ds=\{base=0x0"):
        raw.ioctl(null, Ioctl.SET_SREGS, sregs)


def test_refuses_a_structure_of_another_size(null: int) -> None:
    region = raw.new("struct kvm_userspace_memory_region2 *")
    with pytest.raises(TypeError, match=r"takes 32 bytes, struct .*region2 has 160"):
        raw.ioctl(null, Ioctl.SET_USER_MEMORY_REGION, region)


def test_refuses_a_wrong_structure_after_a_right_one(null: int) -> None:
    for declaration in ("struct kvm_regs *", "struct kvm_sregs *"):
        with pytest.raises(KvmError if declaration == "struct kvm_regs *" else TypeError):
            raw.ioctl(null, Ioctl.SET_REGS, raw.new(declaration))


def test_refuses_an_array(null: int) -> None:
    with pytest.raises(TypeError, match="takes a pointer"):
        raw.ioctl(null, Ioctl.SET_IDENTITY_MAP_ADDR, raw.new("uint8_t[8]"))


def test_interrupted_calls_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([-errno.EINTR, -errno.EINTR, 5])
    monkeypatch.setattr(raw, "_ioctl_value", lambda *_: next(answers))
    assert raw.ioctl(0, Ioctl.CREATE_VM) == 5


def test_a_call_that_is_interrupted_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_ioctl_value", lambda *_: -errno.EINTR)
    with pytest.raises(KvmError, match=r"KVM_CREATE_VM\(0x7\): EINTR"):
        raw.ioctl(0, Ioctl.CREATE_VM, 7)


def test_a_close_that_is_refused_names_the_file() -> None:
    with pytest.raises(KvmError, match=r"close\(a VM\): EBADF"):
        raw.close_kvm_file("a VM", 1 << 20)


def test_a_call_that_no_signal_interrupts_is_refused_by_one_eintr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([-errno.EINTR, 5])
    monkeypatch.setattr(raw, "_ioctl_value", lambda *_: next(answers))
    with pytest.raises(KvmError, match=r"KVM_CREATE_VCPU\(0x7\): EINTR"):
        raw.ioctl(0, Ioctl.CREATE_VCPU, 7)


def test_a_number_is_no_answer_where_there_is_none_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_ioctl_struct", lambda *_: 7)
    regs = raw.new("struct kvm_regs *", {"rip": 0x10})
    with pytest.raises(WrongAnswerError, match=r"KVM_SET_REGS\(.*rip=0x10, .* 7, and not 0"):
        raw.ioctl(0, Ioctl.SET_REGS, regs)
    with pytest.raises(WrongAnswerError, match=r"\(slot=0x3, .* answers 1, and not 0"):
        raise raw.region_error(1, 3, 0, 0, 0, 0)
    with pytest.raises(WrongAnswerError, match=r"KVM_RUN\(\) answers 1, and not 0"):
        raise raw.run_error(1)


def test_an_interrupted_run_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_ioctl_value", lambda *_: -errno.EINTR)
    with pytest.raises(KvmError) as caught:
        raw.ioctl(0, Ioctl.RUN)
    assert caught.value.errno == errno.EINTR


def test_a_benchmark_can_time_every_ioctl() -> None:
    """It puts a stopwatch in the place of each name, which nothing may have fetched before."""
    sources = ("ioctls.c", "calls.c", "frequent.c")
    source = "".join((ROOT / "kvm_abi" / name).read_text() for name in sources)
    functions = r"^static [\w ()]+ \*?(abi_\w+)\([^)]*\)\n\{(.*?)^\}"
    bodies = dict(re.findall(functions, source, re.M | re.S))
    bodies.pop("abi_next_shared_mapping")  # It asks /proc, not KVM.
    bodies.pop("abi_memory_buffer")  # It asks /dev/udmabuf.
    issuing = {name for name, body in bodies.items() if re.search(r"\bioctl\(", body)}
    issuing |= {name for name, body in bodies.items() if any(f"{x}(" in body for x in issuing)}
    issuing -= {"abi_ioctl_copied", "abi_issue_struct"}  # Parts of the others.
    assert "abi_run_past_mmio" in issuing
    assert {getattr(raw, name).__name__ for name in WAYS_IN} == issuing
    fetching = re.compile(rf"from kvm_abi\.raw import [^)]*\b({'|'.join(WAYS_IN)})\b")
    for folder in ("kvm_abi", "guests", "vmm"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not fetching.search(file.read_text()), file


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])
def test_a_file_that_the_host_does_not_let_be_looked_at_is_no_wrong_answer(
    null: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def deny(_: int) -> bool:
        raise OSError(number, "not here")

    monkeypatch.setattr(raw, "ioctl", lambda *_: 1 << 20)
    with pytest.raises(WrongAnswerError, match="1048576, which is no new file"):
        raw.new_file(null, Ioctl.CREATE_VM)
    monkeypatch.setattr("os.get_inheritable", deny)
    with pytest.raises(PermissionError):
        raw.new_file(null, Ioctl.CREATE_VM)
