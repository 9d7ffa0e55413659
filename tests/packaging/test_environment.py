"""What the scripts set up before they start Python."""

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
