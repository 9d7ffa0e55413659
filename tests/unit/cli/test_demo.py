"""`vmm demo` where nothing can run: a recorded run is shown, and said to be one."""

import dataclasses

import pytest

from tests.played import INFO, vmm
from vmm.cli import demo
from vmm.cli.running.host import Host

NO_KVM = dataclasses.replace(INFO, obstacle="/dev/kvm: No such file", remedy="load kvm")


def test_a_recorded_run_is_shown_where_there_is_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "look_at_host", lambda: Host(NO_KVM))
    result = vmm("demo")
    assert result.exit_code == 0
    kernel = demo.recorded().header.host["kernel"]
    said = f"A recorded run, of Linux {kernel}, kvm_pvm: nothing can run here (/dev/kvm: No such"
    assert said in " ".join(result.stdout.split())
    for term in ("gpa ", "gfn ", "hva ", "MMIO "):
        assert f"\n  {term}" in result.stdout
    assert result.stdout.count("━━ ") == demo.CHAPTERS
    assert "All of this is what the model expects." in result.stdout
    assert "SET_USER_MEMORY_REGION slot=2 gpa=0x5000 size=0x1000 hva=0 → ok" in result.stdout
