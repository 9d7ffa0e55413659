"""What the scripts set up before they start Python."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_PRINT = 'source scripts/_env; echo "${PYTHONDONTWRITEBYTECODE-unset} ${PYTHONPYCACHEPREFIX-unset}"'


@pytest.mark.parametrize(
    ("asked", "done"),
    [
        ({}, "unset unset"),
        ({"PYTHONDONTWRITEBYTECODE": "1"}, f"unset {ROOT}/.venv/bytecode"),
        ({"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/x"}, "unset /x"),
    ],
)
def test_bytecode_is_kept_in_the_environment_where_it_may_not_be_beside_the_sources(
    asked: dict[str, str], done: str
) -> None:
    environment = {"PATH": "/usr/bin:/bin", **asked}
    ran = subprocess.run(
        ["bash", "-c", _PRINT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.stdout.strip() == done, ran.stderr


_MATCHES = "source scripts/_env; ROOT=$PWD stamp=$0/stamp wanted=x VENV=$0; env_matches; echo $?"


def test_what_git_clean_takes_away_is_built_again(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("/bin/true")
    (tmp_path / "stamp").write_text("x")
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/_env", checkout / "scripts")
    names = ("kvm_abi/_kvm", "kvm_abi/_frequent", "guests/_image")
    built = [checkout / f"{name}.abi3.so" for name in names]
    for extension in built:
        extension.parent.mkdir(exist_ok=True)
        extension.touch()

    def matches() -> bool:
        command = ["bash", "-c", _MATCHES, str(tmp_path)]
        environment = {"PATH": "/usr/bin:/bin"}
        ran = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        return ran.stdout.strip() == "0"

    assert matches()
    for extension in built:
        extension.unlink()
        assert not matches()
        extension.touch()
