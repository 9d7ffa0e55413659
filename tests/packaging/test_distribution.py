"""What is handed out: the sdist and the wheel, built from a clean copy and installed elsewhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"kvm_abi", "guests", "vmm"}


def run(*command: str | Path, **environment: str) -> str:
    """Run a command to its end, with more environment; fail with what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git would hand out."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout knows which files belong to the project")
    source = tmp_path_factory.mktemp("source")
    listed = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0"):
        if name and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("distribution")
    copy = shutil.copytree(source, folder / "source")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", copy)
    return folder / "dist"


def test_the_wheel_holds_our_packages_and_no_other_top_level_name(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == OURS


def test_the_wheel_is_for_every_cpython_from_3_11_on(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        extensions = {name for name in archive.namelist() if name.endswith(".so")}
    assert extensions == {"kvm_abi/_kvm.abi3.so", "guests/_image.abi3.so"}


def test_the_wheel_holds_the_pages_the_schema_and_the_pytest_plugin(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        text = archive.read(entry_points).decode()
    pages = {f"vmm/report/page/{path.name}" for path in (ROOT / "vmm/report/page").iterdir()}
    assert pages | {"vmm/report/result.schema.json"} <= names
    assert "[pytest11]\nmemslots = vmm.testing.plugin\n" in text


def test_the_sdist_holds_all_that_git_does(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "-C", ROOT, "ls-files").split())
    assert {name for name in tracked if (ROOT / name).exists()} - packed == {".gitignore"}


def test_the_wheel_runs_where_there_is_no_compiler(dist: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    bare = {"PATH": str(python.parent), "CC": "/nonexistent"}
    run(python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel, **bare)
    shown = run(python.with_name("vmm"), "show", "create-one-page", **bare)
    assert '"create-one-page"' in shown
    assert "check" in run(python.with_name("vmm"), "--help", **bare)


def test_a_checkout_that_cannot_be_written_to_runs_with_its_environment_elsewhere(
    source: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    elsewhere = {"VMM_VENV": str(tmp_path / "deep" / "venv")}
    assert '"create-one-page"' in run(
        source / "scripts/vmm", "show", "create-one-page", **elsewhere
    )
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before
