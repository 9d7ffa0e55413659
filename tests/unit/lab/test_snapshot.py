import os
from collections.abc import Callable
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

    def keep(self, path: Path, while_stopped: Callable[[], None]) -> None:
        if not self.content:
            raise LabError("no space left")
        path.write_bytes(self.content)
        while_stopped()


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


def keep(path: Path, writer: Writer) -> None:
    with snapshot.kept(path, 16) as keeping:
        assert keeping is not None
        with keeping.memory.open("wb") as memory:
            os.pwrite(memory.fileno(), b"low", 0)
            os.pwrite(memory.fileno(), b"high", 8 << 20)
            memory.truncate(16 << 20)
        keeping.keep(writer)


def test_a_state_has_the_memory_without_its_holes(tmp_path: Path) -> None:
    keep(tmp_path / "state", Writer())
    files = snapshot.files_of(tmp_path / "state")
    assert files.devices.read_bytes() == b"state"
    held = files.memory.read_bytes()
    assert (len(held), held[:3], held[8 << 20 :][:4]) == (16 << 20, b"low", b"high")
    assert not held.strip(b"\0lowhig")
    assert files.memory.stat().st_blocks * 512 < 1 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_of_two_equal_states_the_first_one_stays(tmp_path: Path) -> None:
    keep(tmp_path / "state", Writer(b"first"))
    keep(tmp_path / "state", Writer(b"second"))
    assert snapshot.files_of(tmp_path / "state").devices.read_bytes() == b"first"


def test_no_state_is_made_where_there_is_too_little_room(tmp_path: Path) -> None:
    with snapshot.kept(tmp_path / "state", 1 << 40) as keeping:
        assert keeping is None
    with snapshot.kept(None, 16) as keeping:
        assert keeping is None


def test_the_states_that_were_not_used_for_longest_go(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("of an earlier version")
    os.utime(tmp_path / "0", (0, 0))
    for number in range(1, snapshot.KEPT + 2):
        path = tmp_path / str(number)
        keep(path, Writer())
        os.utime(path, (number, number))
    killed, alive = tmp_path / "tmp1", tmp_path / "tmp2"
    killed.mkdir()
    alive.mkdir()
    os.utime(killed, (1, 1))
    snapshot.used(tmp_path / "2")
    keep(tmp_path / "last", Writer())
    names = {path.name for path in tmp_path.iterdir()} - {alive.name}
    assert len(names) == snapshot.KEPT
    assert {"2", "last"} <= names
    assert not {"0", "3"} & names


def test_half_a_state_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no space left"):
        keep(tmp_path / "state", Writer(b""))
    assert list(tmp_path.iterdir()) == []
