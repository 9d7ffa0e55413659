"""`vmm record` and `vmm replay` with real VMMs, where they are installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

VMM = Path(__file__).parents[2] / "scripts" / "vmm"

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
    ),
]


UNTIL_NO_MORE = """
"$@" & now=0
until [ $now -ge 5 ] && [ $now = $last ]; do
    last=$now
    sleep 1
    now=$(grep -c "$CALL" "$TRACE")
done
kill $!
"""
"""Ends a command when a second goes by without another call in its trace."""


def qemu(*arguments: str) -> list[str]:
    fixed = ["-accel", "kvm", "-m", "64", "-display", "none", "-nodefaults", "-monitor", "none"]
    return ["qemu-system-x86_64", *fixed, *arguments]


def settled(trace: Path, call: str, *command: str) -> list[str]:
    """Return a command that goes on until it makes no more of these calls, as its trace says."""
    watched = ["timeout", "60", "sh", "-c", UNTIL_NO_MORE, "sh", *command]
    return ["env", f"CALL={call}", f"TRACE={trace}", *watched]


def vmm_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(VMM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def record(file: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return vmm_command("record", "--judge-only", "-o", str(file), "--", *command)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_qemu_with_seabios_is_judged_without_a_difference(machine: str, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    result = record(file, *settled(file, "REGION, {", *qemu("-M", machine)))
    assert result.returncode == 0, result.stdout
    assert "PASSED       as traced" in result.stdout
    lines = file.read_text().splitlines()
    calls = [at for at, line in enumerate(lines) if "REGION, {" in line and line.endswith(" = 0")]
    assert len(calls) >= 5
    at = calls[len(calls) // 2]
    lines[at] = re.sub(r"= 0$", "= -1 EINVAL (Invalid argument)", lines[at])
    file.write_text("\n".join(lines))
    altered = vmm_command("replay", "--judge-only", str(file))
    assert altered.returncode == 1, altered.stdout
    assert f"{file}:{at + 1}: " in altered.stdout


@pytest.mark.long
@pytest.mark.skipif(not CODE.exists() or not VARS.exists(), reason="ovmf is not installed")
def test_qemu_with_ovmf_is_judged_without_a_difference(tmp_path: Path) -> None:
    variables = tmp_path / "vars.fd"
    shutil.copy(VARS, variables)
    flash = "if=pflash,format=raw,unit="
    result = record(
        tmp_path / "trace",
        *("timeout", "8", *qemu("-M", "q35")),
        *("-drive", f"{flash}0,readonly=on,file={CODE}"),
        *("-drive", f"{flash}1,file={variables}"),
    )
    assert result.returncode == 0, result.stdout
    assert "PASSED       as traced" in result.stdout


def test_what_qemu_traces_itself_is_judged_and_made_here(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    command = qemu("-M", "q35", "-trace", "kvm_set_user_memory", "-D", str(file))
    command = settled(file, "kvm_set_user_memory", *command)
    subprocess.run(command, capture_output=True, check=False)
    result = vmm_command("replay", str(file))
    assert result.returncode == 0, result.stdout
    assert "PASSED       as traced" in result.stdout
    assert "PASSED       VM 1, run here" in result.stdout
