"""What is handed out: the sdist and the wheel, built from a clean copy and installed elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.packaging.debian import UnavailableError, root_with

ROOT = Path(__file__).parents[2]
OURS = {"kvm_abi", "guests", "vmm"}
MANUAL = "share/man/man1/vmm.1"
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
OLDEST_PYTEST = "pytest==7.0.1"  # docs/pytest.md names the version.
THIS = "python{}.{}".format(*sys.version_info)


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
    data = {name for name in names if ".data/" in name}
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops - {name.partition("/")[0] for name in data} == OURS
    assert {name.partition(".data/data/")[2] for name in data} == {MANUAL}


def test_the_wheel_is_for_every_cpython_from_3_11_on(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        extensions = {name for name in archive.namelist() if name.endswith(".so")}
    assert extensions == {
        "kvm_abi/_frequent.abi3.so",
        "kvm_abi/_kvm.abi3.so",
        "guests/_image.abi3.so",
    }


def test_the_wheel_holds_all_files_and_the_pytest_plugin(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        text = archive.read(entry_points).decode()
    tracked = run("git", "-C", ROOT, "ls-files", "vmm", "kvm_abi", "guests").split()
    assert {name for name in tracked if (ROOT / name).exists()} - names == set()
    assert "[pytest11]\nmemslots = vmm.testing.plugin\n" in text


def test_the_sdist_holds_all_that_git_does(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "-C", ROOT, "ls-files").split())
    assert {name for name in tracked if (ROOT / name).exists()} - packed == {".gitignore"}


def interpreters(name: str) -> list[Path]:
    """Return where an interpreter may be: on the PATH, and among those of pyenv and uv."""
    found = shutil.which(name)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    asked = (sys.executable, "-m", "uv", "python", "find", "--managed-python", name[6:])
    by_uv = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return [
        *([Path(found)] if found else []),
        *sorted(versions.glob(f"*/bin/{name}")),
        *map(Path, by_uv),
    ]


def interpreter(name: str, folder: Path) -> Path:
    """Return an interpreter of this host, or one that uv fetches; skip where there is none."""
    if not any(map(runs, interpreters(name))):
        fetch = (sys.executable, "-m", "uv", "python", "install", "--install-dir", folder, name[6:])
        fetched = subprocess.run(fetch, capture_output=True, text=True, check=False)
        if fetched.returncode:
            pytest.skip(f"{name} is not here, and uv cannot fetch it: {last_line(fetched.stderr)}")
        return next(folder.glob(f"*/bin/{name}"))
    return next(filter(runs, interpreters(name)))


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].strip()


def runs(interpreter: Path) -> bool:
    """Whether this is an interpreter that can make environments, and no placeholder for one."""
    command = [str(interpreter), "-c", "import venv"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each == THIS else pytest.mark.long) for each in PYTHONS]
)
def test_the_wheel_runs_on_every_python_without_a_compiler(
    dist: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pip of its own would take as long to install as the wheel, and to compile all, of which a
    # part is used, longer.
    run(interpreter(name, tmp_path / "uv"), "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    bare = {"PATH": str(python.parent), "CC": "/nonexistent"}
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-compile", "--only-binary", ":all:", wheel, **bare)
    assert (tmp_path / "venv" / MANUAL).read_text().startswith(".TH VMM 1")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    every_command_is_there([str(python.with_name("vmm"))], bare)


@pytest.mark.long
@pytest.mark.parametrize("name", PYTHONS)
def test_pip_makes_the_same_wheel_of_the_sdist_in_an_environment_of_its_own(
    dist: Path, tmp_path: Path, name: str
) -> None:
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    run(interpreter(name, tmp_path / "uv"), "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    # Isolated: what it is built with comes from the index, whatever is installed here.
    make = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir")
    done = subprocess.run(
        [python, *make, "--wheel-dir", tmp_path / "made", sdist],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("no index of packages is to be had here")
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "made").iterdir()
    assert made.name == wheel.name
    with zipfile.ZipFile(made) as one, zipfile.ZipFile(wheel) as other:
        assert set(one.namelist()) == set(other.namelist())
    run(python, "-m", "pip", "install", "--quiet", made)
    assert run(python.with_name("vmm"), "--version").startswith("vmm ")


SUITES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "sid"}


@pytest.mark.long
@pytest.mark.parametrize(("version", "suite"), SUITES.items())
def test_the_wheel_runs_where_there_is_nothing_but_a_python(
    dist: Path, tmp_path: Path, version: str, suite: str
) -> None:
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("needs root, and Debian's apt-get")
    name = f"python{version}"
    try:
        root = root_with((name, f"{name}-venv"), suite, tmp_path)
    except UnavailableError as error:
        pytest.skip(str(error))
    (wheel,) = dist.glob("*.whl")
    pip = (sys.executable, "-m", "pip")
    chosen = ("--only-binary", ":all:", "--python-version", version)
    run(*pip, "download", "--quiet", *chosen, "--dest", root.path / "wheels", wheel)
    for tool in ("cc", "gcc", "as", "sh"):
        assert not (root.path / "usr/bin" / tool).exists()
    run(*root.command(f"/usr/bin/{name}", "-m", "venv", "/venv"))
    install = ("-m", "pip", "install", "--quiet", "--no-index", "--find-links", "/wheels")
    run(*root.command("/venv/bin/python", *install, "memslot-vmm"))
    every_command_is_there(root.command("/venv/bin/vmm"), {})


def every_command_is_there(vmm: Sequence[str], bare: dict[str, str]) -> None:
    """Use an installed command where its sources are not, the lab's commands included."""
    assert '"create-one-page"' in run(*vmm, "show", "create-one-page", **bare)
    assert '.SS "vmm lab run' in run(*vmm, "man", **bare)
    assert "/nothing: no such file" in said(vmm, "lab", "run", "--kernel", "/nothing", "--", "info")
    assert "a C compiler" in said(vmm, "lab", "doctor", **bare)
    assert "Create a memslot" in said(vmm, "demo", "2", **bare)
    checked = said(vmm, "check", "create-one-page", "--html", "/dev/null", **bare)
    assert "1 scenario: 1 passed" in checked or "nothing could run" in checked
    for command in ("fuzz", "bench", "replay", "coverage", "lab matrix", "lab diff"):
        assert "Usage: vmm" in run(*vmm, *command.split(), "--help", **bare)


def said(vmm: Sequence[str], *arguments: str | Path, **environment: str) -> str:
    """Return what a command says, whatever this host lets it do."""
    done = subprocess.run(
        [*vmm, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 2, 4), done.stderr
    return done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("wanted", ["pytest", pytest.param(OLDEST_PYTEST, marks=pytest.mark.long)])
def test_the_wheel_brings_the_pytest_plugin(dist: Path, tmp_path: Path, wanted: str) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/kvm")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "memslot-vmm", wanted, **found_in(dist))
    project = shutil.copytree(ROOT / "examples/pytest-project", tmp_path / "project")
    alone = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    printed = run(python, "-m", "pytest", "-p", "no:cacheprovider", "-rA", project, **alone)
    assert "9 passed, 1 skipped" in printed
    assert "needs KVM_CAP_NR_MEMSLOTS of 1000000" in printed


@pytest.mark.long
@pytest.mark.parametrize("extra", ["fleet", "plot", "whitebox"])
def test_what_an_extra_needs_can_be_installed(dist: Path, tmp_path: Path, extra: str) -> None:
    (wheel,) = dist.glob("*.whl")
    report = tmp_path / "report.json"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed")
    run(
        *pip,
        "--only-binary",
        ":all:",
        "--report",
        report,
        f"memslot-vmm[{extra}] @ {wheel.as_uri()}",
    )
    installed = {each["metadata"]["name"] for each in json.loads(report.read_text())["install"]}
    assert {"fleet": "distributed", "plot": "matplotlib", "whitebox": "drgn"}[extra] in installed


def found_in(folder: Path) -> dict[str, str]:
    """Have pip find what is in a folder, as the guides have it."""
    return {"PIP_FIND_LINKS": f"{folder} {os.environ.get('PIP_FIND_LINKS', '')}".strip()}


@pytest.mark.long
@pytest.mark.parametrize("what", ["checkout", "wheel"])
def test_pipx_installs_the_command_and_its_manual(
    source: Path, dist: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(source, tmp_path / "checkout"))
    (wheel,) = dist.glob("*.whl")
    folders = {
        "PIPX_HOME": str(tmp_path / "home"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "PIPX_MAN_DIR": str(tmp_path / "man"),
    }
    named = "." if what == "checkout" else wheel
    run(sys.executable, "-m", "pipx", "install", named, **folders)
    assert run(tmp_path / "bin" / "vmm", "--version").startswith("vmm ")
    assert (tmp_path / "man" / "man1" / "vmm.1").exists()


@pytest.mark.long
def test_a_checkout_that_cannot_be_written_to_runs_with_its_environment_elsewhere(
    source: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    elsewhere = {"VMM_VENV": str(tmp_path / "deep" / "venv")}
    # Root may write whatever the mode of a file says.
    sealed = ("unshare", "--mount", "sh", "-c", _SEALED, source) if not os.geteuid() else ()
    shown = run(*sealed, source / "scripts/vmm", "show", "create-one-page", **elsewhere)
    assert '"create-one-page"' in shown
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


_SEALED = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
