import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.lab.test_kernel import image, module
from vmm.lab import snapshot
from vmm.lab.errors import LabError
from vmm.lab.kernel import from_path
from vmm.lab.machine import Backend, Job, Machine, loadable
from vmm.lab.monitor import Monitor


class Writer(Monitor):
    """Writes a state as QEMU would."""

    def __init__(self, content: bytes = b"state") -> None:
        self.content = content

    def keep(self, path: Path) -> None:
        if not self.content:
            raise LabError("no space left")
        path.write_bytes(self.content)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("kvm", "kvm-amd", "kvm-intel"):
        module(tmp_path / "m" / f"{name}.ko")
    module(tmp_path / "m" / "other.ko")
    return Machine(from_path(image(tmp_path / "bzImage", "6.12.1"), tmp_path / "m"), Backend.SVM)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("1")
    return Job(("command",), tmp_path, {}, (), (code,), (), ("waits",))


def state_path(machine: Machine, job: Job) -> Path | None:
    return snapshot.state_path(machine, job, loadable(machine))


def test_an_equal_machine_has_the_same_state_for_any_command(machine: Machine, job: Job) -> None:
    path = state_path(machine, job)
    other = replace(job, words=("another",), folder=Path("/srv"))
    assert path is not None
    assert state_path(machine, other) == path


def test_what_goes_into_a_machine_tells_its_state_from_others(
    machine: Machine, job: Job, tmp_path: Path
) -> None:
    paths = [
        state_path(each, job)
        for each in (
            machine,
            replace(machine, parameters=("kvm_amd.npt=0",)),
            replace(machine, cpus=2),
            replace(machine, memory_mib=4096),
        )
    ]
    paths.append(state_path(machine, replace(job, preloaded=("another",))))
    paths.append(state_path(machine, replace(job, environment={"A": "b"})))
    (tmp_path / "code" / "a.py").write_text("12")
    paths.append(state_path(machine, job))
    (tmp_path / "code" / "b.py").write_text("")
    paths.append(state_path(machine, job))
    module(tmp_path / "m" / "kvm.ko", "other")
    paths.append(state_path(machine, job))
    image(tmp_path / "bzImage", "6.12.1")
    with (tmp_path / "bzImage").open("ab") as kernel:
        kernel.write(b"more")
    paths.append(state_path(machine, job))
    assert None not in paths
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    "change", [{"backend": Backend.VMX}, {"backend": Backend.KVM}, {"memory_mib": 512}]
)
def test_not_every_machine_can_be_kept(
    machine: Machine, job: Job, change: dict[str, object]
) -> None:
    assert state_path(replace(machine, **change), job) is None  # type: ignore[arg-type]
    assert state_path(machine, replace(job, preloaded=())) is None


def test_the_states_that_were_not_used_for_longest_go(tmp_path: Path) -> None:
    for number in range(snapshot.KEPT + 2):
        path = tmp_path / str(number)
        snapshot.keep(Writer(), path)
        os.utime(path, (number, number))
    snapshot.used(tmp_path / "2")
    snapshot.keep(Writer(), tmp_path / "last")
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == snapshot.KEPT
    assert {"2", "last"} <= names
    assert "3" not in names


def test_half_a_state_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no space left"):
        snapshot.keep(Writer(b""), tmp_path / "state")
    assert list(tmp_path.iterdir()) == []
