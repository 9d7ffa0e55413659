"""What is left of files that a process had begun to write when it was lost."""

import errno
import os
import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmm.cli.main import main
from vmm.cli.output.errors import Failure, HostFailed, Unusable, kept, usable
from vmm.cli.output.writing import folder_made, sweep, temporary_folder, unfinished, written
from vmm.lab.log import SIGN

FULL = Path("/dev/full")
VMM = Path(__file__).parents[3] / "vmm"


def lose(first: Path, second: Path) -> None:
    """Let a process be lost while it writes two files."""
    child = os.fork()
    if not child:
        with written(first) as a, written(second):
            a.write("x" * 100_000)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_lost_process_leaves_nothing_beside_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    lose(file, tmp_path / "b.json")
    assert [*tmp_path.iterdir()] == [file]


def test_a_file_replaces_another_and_keeps_its_mode(tmp_path: Path) -> None:
    file, link = tmp_path / "a.json", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    with written(link) as stream:
        stream.write("new")
        assert file.read_text() == "old"
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o640)
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_a_pipe_that_only_a_descriptor_names_is_written(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as pipe:
        (tmp_path / "link").symlink_to(f"/dev/fd/{writing}")
        for name in (Path(f"/dev/fd/{writing}"), tmp_path / "link"):
            with written(name) as stream:
                stream.write("new\n")
            assert pipe.readline() == "new\n"
        os.close(writing)


def test_a_program_goes_to_standard_output_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named, unnamed = (
        CliRunner().invoke(main, ["repro", "move-up", *more]) for more in (["-o", "-"], [])
    )
    assert named.output == unnamed.output != ""
    assert [*tmp_path.iterdir()] == []


def test_what_a_lost_process_had_begun_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    targets = [tmp_path / "a[1].json", tmp_path / "logs" / "b.xml"]
    monkeypatch.setattr("vmm.cli.output.writing._nameless", lambda _: None)
    lose(*targets)
    mine = tmp_path / ".c.json.12345678"
    mine.touch()
    assert len([*tmp_path.rglob(".*")]) == 3
    sweep(("check", "--json=a[1].json", "junit:logs/b.xml", "", "c"), set())
    assert [*tmp_path.rglob(".*")] == [mine]


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    other = tmp_path / ".a.json.12345678"
    other.touch()
    arguments = (f"--json={tmp_path}/a.json",)
    others = unfinished(arguments)
    (tmp_path / ".a.json.87654321").touch()
    sweep(arguments, others)
    assert [*tmp_path.iterdir()] == [other]


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_full_disk_is_told_with_the_name_of_the_file(size: int) -> None:
    with (
        pytest.raises(HostFailed, match="the host: /dev/full: No space left"),
        written(FULL) as stream,
    ):
        stream.write("x" * size)


def test_no_place_for_a_temporary_folder_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(HostFailed, match="the host: No usable temporary directory"):
        temporary_folder()


def test_a_folder_that_stays_empty_is_removed_with_the_parents_that_were_made(
    tmp_path: Path,
) -> None:
    with suppress(ZeroDivisionError), folder_made(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_something_lies_or_that_was_there_stays(tmp_path: Path) -> None:
    with folder_made(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]
    with folder_made(tmp_path / "a"):
        (tmp_path / "a" / "file").unlink()
    assert (tmp_path / "a").is_dir()


def test_parents_of_a_folder_that_cannot_be_made_are_removed(tmp_path: Path) -> None:
    with (
        pytest.raises(Unusable, match="File name too long"),
        folder_made(tmp_path / "a" / ("b" * 300)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, Unusable), (errno.EROFS, Unusable), (errno.EMFILE, HostFailed)],
)
def test_what_cannot_be_begun_is_the_persons_unless_the_host_is_short(
    number: int, kind: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(kind), usable(tmp_path):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("asking", [usable, kept])
def test_in_the_lab_a_file_elsewhere_is_said_to_be_out_of_the_machines_reach(
    asking: Callable[[Path], AbstractContextManager[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = f"elsewhere: {os.strerror(errno.EROFS)}"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Failure, match=f"{said}$"), asking(Path("/elsewhere")):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setenv(SIGN, "memslot-lab 7")
    with (
        pytest.raises(Failure, match=f"{said}: .* writes to the current folder only: {tmp_path}$"),
        asking(Path("/elsewhere")),
    ):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(Failure, match=r"Permission denied$"), asking(Path("/elsewhere")):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("has_unnamed_files", [True, False])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EMFILE, errno.EPERM])
def test_what_cannot_be_ended_is_the_hosts(
    has_unnamed_files: bool, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), "another")

    if not has_unnamed_files:
        monkeypatch.setattr("vmm.cli.output.writing._nameless", lambda _: None)
    monkeypatch.setattr("pathlib.Path.replace", fail)
    file = tmp_path / "file"
    file.write_text("old")
    said = f"the host: {file}: {os.strerror(number)}"
    with pytest.raises(HostFailed, match=said), written(file) as stream:
        stream.write("new")
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(file, "old")]


def test_a_file_system_without_links_gets_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", fail)
    monkeypatch.setattr("os.fchmod", fail)
    file = tmp_path / "file"
    with written(file) as stream:
        stream.write("new" * 10_000)
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(file, "new" * 10_000)]


def test_a_temporary_folder_that_is_busy_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS a folder stays while one of its files is open."""

    def busy(path: object, **_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", path)

    with monkeypatch.context() as patch, temporary_folder() as folder:
        patch.setattr("os.rmdir", busy)
    Path(folder).rmdir()


def test_no_temporary_folder_of_ours_ends_a_command() -> None:
    made = re.compile(r"tempfile\.TemporaryDirectory\(([^)]*)\)")
    given = [each for file in VMM.rglob("*.py") for each in made.findall(file.read_text())]
    assert len(given) > 5
    assert all("ignore_cleanup_errors=True" in each for each in given)
