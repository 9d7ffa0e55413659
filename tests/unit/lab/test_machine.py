import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.lab.test_kernel import image, module
from vmm.lab import bochs, initramfs, machine as machines, settings
from vmm.lab.errors import LabError, MissingError
from vmm.lab.kernel import from_path
from vmm.lab.machine import Backend, Job, Machine, Wiring


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    module(tmp_path / "m" / "kvm.ko")
    module(tmp_path / "m" / "kvm-amd.ko", "kvm")
    module(tmp_path / "m" / "kvm-intel.ko", "kvm")
    kernel = from_path(image(tmp_path / "bzImage", "6.12.1"), tmp_path / "m")
    return Machine(kernel, Backend.SVM, ("kvm_amd.npt=0", "kvm.tdp_mmu=N", "quiet"))


WIRING = Wiring(Path("i"), Path("l"), 3, 4, 5)
JOB = Job(("/bin/true", "a b\nc"), Path("/srv/here"), {"A": "b c"}, (Path("/srv/here/code"),))


def ordered(machine: Machine) -> list[tuple[str, str]]:
    """Return what a machine is told to do."""
    strings = settings.orders(machine, JOB, "n", is_restored=False).decode().split("\0")[:-1]
    return list(zip(strings[::2], strings[1::2], strict=True))


def test_modules_get_their_own_parameters(machine: Machine) -> None:
    steps = settings.first_settings(machine, JOB, machines.loadable(machine), "n")
    loaded = [value for key, value in steps if key == "module"]
    assert loaded == ["kvm force_emulation_prefix=1 tdp_mmu=N", "kvm_amd npt=0"]
    told = [value for key, value in ordered(machine) if key == "parameter"]
    assert told == ["kvm_amd.npt", "kvm.tdp_mmu"]


def test_bochs_logs_no_modified_pages(machine: Machine) -> None:
    def loaded(backend: Backend, *parameters: str) -> list[str]:
        told = replace(machine, backend=backend, parameters=parameters)
        steps = settings.first_settings(told, JOB, machines.loadable(told), "n")
        return [value for key, value in steps if key == "module" and "intel" in value]

    assert loaded(Backend.VMX) == ["kvm_intel pml=0"]
    assert loaded(Backend.VMX, "kvm_intel.pml=1") == ["kvm_intel pml=0 pml=1"], "the last counts"
    assert loaded(Backend.SVM) == []


def test_only_the_job_s_folder_can_be_written(machine: Machine) -> None:
    steps = ordered(machine)
    assert [value for key, value in steps if key == "writable"] == ["share /srv/here"]
    keys = [key for key, _ in steps]
    assert keys.index("keep") < keys.index("writable") < keys.index("again")
    command = machines.qemu_command(machine, JOB, WIRING)
    shares = [word for word in command if word.startswith("local,")]
    assert [word.endswith("readonly=on") for word in shares] == [True, False]


def test_a_saved_memory_is_mapped_by_each_machine_for_itself(machine: Machine) -> None:
    def words(**wiring: object) -> list[str]:
        return list(machines.qemu_command(machine, JOB, replace(WIRING, **wiring)))  # type: ignore[arg-type]

    assert not [word for word in words() if "memory-backend" in word or word == "-incoming"]
    saves = words(memory=Path("/s/a,b"))
    assert "memory-backend-file,id=memory,size=2048M,share=on,mem-path=/s/a,,b" in saves
    assert "-incoming" not in saves
    starts = words(state=machines.State(Path("/s/memory"), Path("/s/devices")))
    assert "memory-backend-file,id=memory,size=2048M,share=off,mem-path=/s/memory" in starts
    assert starts[-2:] == ["-incoming", "defer"]


def test_a_complaint_ends_the_machine(machine: Machine) -> None:
    words = machines.command_line(machine).split()
    assert {"oops=panic", "panic_on_warn=1", "panic=-1", "kvm_amd.npt=0"} <= set(words)
    assert "-no-reboot" in machines.qemu_command(machine, JOB, WIRING)


def test_a_stall_is_a_complaint_only_where_the_processor_is_real(machine: Machine) -> None:
    def watches(backend: Backend) -> bool:
        words = machines.command_line(replace(machine, backend=backend)).split()
        quiet = {"rcupdate.rcu_cpu_stall_suppress=1", "nosoftlockup"}
        assert quiet <= set(words) or not quiet & set(words)
        return not quiet & set(words)

    assert [watches(each) for each in Backend] == [each is Backend.KVM for each in Backend]


def test_linux_is_told_what_bochs_gets_wrong(machine: Machine, tmp_path: Path) -> None:
    def said(backend: Backend) -> list[str]:
        words = machines.command_line(replace(machine, backend=backend)).split()
        return [word for word in words if word.startswith(("tsc_early_khz=", "noxsave"))]

    log = tmp_path / "kernel.log"
    bochs.command(tmp_path, tmp_path / "cd.iso", 2048, log, 3, 4)
    assert "ips=50000000," in (tmp_path / "bochsrc").read_text()
    assert said(Backend.VMX) == ["tsc_early_khz=50000", "noxsave"]
    assert not said(Backend.SVM)
    assert not said(Backend.KVM)


def test_settings_keep_every_byte_of_a_word(machine: Machine) -> None:
    text = settings.orders(machine, JOB, "n", is_restored=False)
    assert text.endswith(b"word\0/bin/true\0word\0a b\nc\0end\0\0")


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(LabError, match="NUL"):
        initramfs.settings_text([("word", "a\0b")])


def test_a_comma_in_a_folder_s_name_is_refused(machine: Machine) -> None:
    job = Job(("/bin/true",), Path("/a,b"))
    with pytest.raises(LabError, match="comma"):
        machines.qemu_command(machine, job, WIRING)


def test_a_backend_that_is_not_there_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "usable_nesting", lambda: "no nesting here")
    with pytest.raises(MissingError, match="no nesting here"):
        machines.chosen_backend("kvm")
    assert machines.chosen_backend(None) is Backend.SVM
    monkeypatch.setattr(machines, "usable_nesting", lambda: "")
    assert machines.chosen_backend(None) is Backend.KVM


@pytest.mark.skipif(not shutil.which("cpio"), reason="needs cpio")
def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    files = [initramfs.folder("d"), initramfs.program("d/odd", b"12345")]
    done = subprocess.run(
        ["cpio", "-i", "--quiet"], input=initramfs.archive(files), cwd=tmp_path, check=True
    )
    assert done.returncode == 0
    assert (tmp_path / "d" / "odd").read_bytes() == b"12345"


def test_the_init_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert initramfs.compiled_init().startswith(b"\x7fELF")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert initramfs.compiled_init().startswith(b"\x7fELF"), "it is kept"


def test_a_compiler_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(
        MissingError, match="no-such-compiler is missing: apt install gcc libc6-dev"
    ):
        initramfs.compiled_init()


def test_a_folder_is_unpacked_after_the_one_that_it_lies_in(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = [initramfs.folder(path) for path in ("srv", "srv/code", "usr")]
    monkeypatch.setattr(settings, "bundled", lambda *_: bundle)
    monkeypatch.setattr(settings, "_packed", bytes)
    job = replace(JOB, folder=Path("/srv/here/deep"))
    first = settings.first_files(replace(machine, backend=Backend.VMX), job, [], "n")
    entries = re.findall(rb"070701[0-9A-F]{104}([^\0]+)\0", first)
    places = [entry.decode() for entry in entries]
    assert {"srv/here", "srv/here/deep"} <= set(places)
    for place in ("srv/code", "srv/here", "srv/here/deep"):
        assert places.index(str(Path(place).parent)) < places.index(place)
