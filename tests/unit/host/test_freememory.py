"""What may be taken of the host's memory, and what a scenario would take."""

from pathlib import Path

import msgspec
import pytest

from tests.played import Kernel, make, named, played, vmm
from vmm.host.freememory import FreeMemory
from vmm.scenario.demand import memory_bytes, short_of_memory
from vmm.scenario.operations import Mapping, Scenario, SetUserMemoryRegion
from vmm.scenario.reached import SPARSE_PAGES

MIB = 1 << 20


class Host:
    """A host with 1000 MiB, and control groups."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.write(self.proc / "meminfo", f"MemTotal: 1 kB\nMemAvailable: {1000 << 10} kB\n")

    def write(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def belongs(self, *lines: str) -> None:
        self.write(self.proc / "self/cgroup", "\n".join(lines))

    def group(self, path: str, **files: object) -> None:
        for name, text in files.items():
            self.write(self.cgroups / path / name.replace("_", ".", 1), f"{text}\n")

    def free_mib(self) -> int:
        return FreeMemory(self.proc, self.cgroups).size_bytes() // MIB


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_host_without_control_groups_has_what_is_available(host: Host) -> None:
    assert host.free_mib() == 1000


def test_a_host_of_which_nothing_can_be_read_limits_nothing(tmp_path: Path) -> None:
    assert FreeMemory(tmp_path, tmp_path).size_bytes() > 1 << 50


def test_a_group_limits_and_gives_back_its_files(host: Host) -> None:
    host.belongs("0::/a/b")
    stat = f"anon 5\ninactive_file {10 * MIB}"
    host.group("a/b", memory_max=512 * MIB, memory_current=500 * MIB, memory_stat=stat)
    assert host.free_mib() == 22


def test_a_group_further_up_limits_too(host: Host) -> None:
    host.belongs("0::/a/b")
    host.group("a/b", memory_max="max", memory_current=MIB)
    host.group("a", memory_max=100 * MIB, memory_current=70 * MIB)
    assert host.free_mib() == 30


def test_a_group_of_version_1_limits(host: Host) -> None:
    host.belongs("9:name=systemd:/x", "4:cpu,memory:/a")
    host.group("memory", memory_limit_in_bytes=(1 << 63) - 4096, memory_usage_in_bytes=1)
    host.group("memory/a", memory_limit_in_bytes=64 * MIB, memory_usage_in_bytes=60 * MIB)
    assert host.free_mib() == 4


def test_a_group_seen_from_within_its_container_is_at_the_root(host: Host) -> None:
    host.belongs("0::/../host/path")
    host.group("", memory_max=64 * MIB, memory_current=70 * MIB)
    assert host.free_mib() == 0


def test_what_a_scenario_takes_grows_with_what_it_maps_and_what_it_makes() -> None:
    nothing = memory_bytes(Scenario("s", ()))
    assert memory_bytes(Scenario("s", (), (Mapping("a", 1000),))) > nothing + 2 * 1000 * 4096
    assert memory_bytes(Scenario("s", (), (Mapping("a", 1000, "unmapped"),))) == nothing
    slot = SetUserMemoryRegion(1, memory_size=1 << 32)
    assert memory_bytes(Scenario("s", (slot,))) > nothing + 10 * (1 << 20)
    refused = SetUserMemoryRegion(1, memory_size=1 << 62)
    assert memory_bytes(Scenario("s", (refused,))) < nothing + MIB


def test_what_is_short_is_told_in_mib() -> None:
    scenario = make("create-one")
    needed = memory_bytes(scenario)
    assert short_of_memory(scenario, needed) == ""
    assert short_of_memory(scenario, needed - 1).endswith(" MiB are free)")


def test_what_does_not_fit_is_skipped_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Kernel = played(monkeypatch)
    filled = tuple(Mapping(name, SPARSE_PAGES) for name in "abcdefgh")
    large = msgspec.structs.replace(named("move-up"), mappings=filled)
    monkeypatch.setattr(
        "vmm.catalogue.catalogue", lambda features, with_large=True: (named("create-one"), large)
    )
    monkeypatch.setattr(FreeMemory, "size_bytes", lambda memory: 1024 * MIB)
    result = vmm("check")
    assert result.exit_code == 0
    assert kernel.ran == ["create-one"]
    assert "SKIPPED      move-up: needs 1571 MiB of free memory (here 1024 MiB" in result.stdout
