"""``--format`` and the files it writes, with a kernel that is played."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from junitparser import JUnitXml

from tests.played import Kernel, played, vmm
from vmm.cli.output.errors import Unusable
from vmm.cli.output.writing import written


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return played(monkeypatch)


def test_several_formats_at_once(kernel: Kernel, tmp_path: Path) -> None:
    kernel.differ("create-two")
    files = {name: tmp_path / f"result.{name}" for name in ("ktap", "junit", "json", "text")}
    options = [f"--format={name}:{file}" for name, file in files.items()]
    result = vmm("check", *options, "--format", "tap13")
    assert result.exit_code == 1
    assert result.stdout.startswith("TAP version 13\n1..4\n")
    assert result.stderr == ""
    assert files["ktap"].read_text().startswith("KTAP version 1\n1..2\n")
    assert JUnitXml.fromfile(str(files["junit"])).failures == 1
    assert json.loads(files["json"].read_text())["status"] == "differs"
    assert files["text"].read_text().startswith("DIFFERS      create-two\n")
    assert sorted(tmp_path.iterdir()) == sorted(files.values())


def test_a_format_takes_the_place_of_text_and_json_goes_beside_it(
    kernel: Kernel, tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    result = vmm("check", "--format", "ktap", "--json", file)
    assert "4 scenarios" not in result.output
    assert json.loads(file.read_text())["status"] == "passed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "xml"], "'xml' is not a format; there are text, ktap, "),
        (["--format", "ktap:"], "'ktap:': the name of the file is missing"),
        (["--format", "ktap", "--format", "tap13"], "two outputs go to standard output"),
        (["--format", "text", "--json", "-"], "two outputs go to standard output"),
        (["--format", "ktap:a", "--format", "tap13:a"], "two outputs go to a"),
        (["--format", "ktap:a", "--json", "./b/../a"], "two outputs go to ./b/../a"),
        (["--json", "-", "--html", "/dev/stdout"], "two outputs go to /dev/stdout"),
        (["--html", "a", "--histories", "a"], "two outputs go to a"),
    ],
)
def test_formats_that_cannot_be_written(kernel: Kernel, options: list[str], message: str) -> None:
    result = vmm("check", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert kernel.ran == []


def test_two_names_of_one_file_are_one_file(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a.json")
    result = vmm("check", "--json", tmp_path / "a.json", "--html", tmp_path / "link")
    assert (result.exit_code, kernel.ran) == (2, [])
    assert [each.name for each in tmp_path.iterdir()] == ["link"]


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(
    kernel: Kernel, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "absent" / "second"
    result = vmm("check", f"--format=ktap:{first}", f"--format=junit:{second}")
    assert result.exit_code == 2
    assert result.stderr == f"vmm: {second}: No such file or directory\n"
    assert kernel.ran == []
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_a_whole_file_of_what_ran(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "r.ktap"
    file.write_text("what was there")
    kernel.histories["move-up"] = AssertionError
    assert vmm("check", f"--format=ktap:{file}").exit_code == 70
    text = file.read_text()
    assert list(tmp_path.iterdir()) == [file]
    assert "ok 1 create-one\n" in text
    assert "not ok 1 move-up # ERROR did not run\n" in text


def test_no_old_result_is_left_where_the_new_one_cannot_be_written(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(text: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "r.json"
    file.write_text("what was there")
    monkeypatch.setattr("vmm.report.json.run_text", fill)
    result = vmm("check", f"--json={file}")
    assert (result.exit_code, list(tmp_path.iterdir())) == (3, [])
    assert result.stderr == "vmm: the host: No space left on device\n"


def test_kselftest_statuses(kernel: Kernel) -> None:
    assert vmm("check", "--kselftest").exit_code == 0
    kernel.end("create-one", "hung: for ever")
    assert vmm("check").exit_code == 3
    assert vmm("check", "--kselftest").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "usual"),
    [
        ("no-such-name", 2),
        ("--bogus", 2),
        ("--json absent/r.json", 2),
        ("--format ktap:/dev/full", 3),
    ],
)
def test_what_comes_to_no_run_is_no_known_issue_of_a_selftest(
    kernel: Kernel, arguments: str, usual: int
) -> None:
    assert vmm("check", *arguments.split()).exit_code == usual
    result = vmm("check", "--kselftest", *arguments.split())
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("vmm: ")


def test_a_written_file_has_the_usual_permissions_and_keeps_its_own(tmp_path: Path) -> None:
    file = tmp_path / "f"
    for mode in (0o666 & ~_umask(), 0o640):
        with written(file) as stream:
            stream.write("x")
        assert stat.S_IMODE(file.stat().st_mode) == mode
        file.chmod(0o640)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_is_followed_and_a_device_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with written(link) as stream:
        stream.write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    with written(Path("/dev/null")) as stream:
        stream.write("gone")
    assert Path("/dev/null").is_char_device()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="Is a directory"), written(tmp_path):
        pass
    assert list(tmp_path.parent.glob(f".{tmp_path.name}*")) == []


def test_report_draws_a_kept_result(kernel: Kernel, tmp_path: Path) -> None:
    kept, page, direct = tmp_path / "r.json", tmp_path / "r.html", tmp_path / "direct.html"
    assert vmm("check", "--json", kept, "--html", direct).exit_code == 0
    result = vmm("report", kept, "--html", page)
    assert (result.exit_code, result.output) == (0, "")
    assert page.read_text() == direct.read_text()
    assert vmm("report", kept, "--html", "-").output == page.read_text()
    assert "<title>" in vmm("matrix", kept, "--html", "-").output
    assert "ran: no difference" in page.read_text()


@pytest.mark.parametrize(
    "command", [("report",), ("coverage",), ("matrix",), ("bench", "--against")]
)
def test_a_pipe_is_no_result(tmp_path: Path, command: tuple[str, ...]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    page = () if command[0] in ("coverage", "bench") else ("--html", tmp_path / "page.html")
    result = vmm(*command, pipe, *page)
    assert (result.exit_code, result.stderr) == (2, f"vmm: {pipe}: a pipe, not a file\n")


@pytest.mark.parametrize("what", ["newer", "broken", "folder", "absent", "unwritable"])
def test_report_of_what_cannot_be_used_is_one_line(tmp_path: Path, what: str) -> None:
    kept, page = tmp_path / "r.json", tmp_path / "out" / "r.html"
    page.parent.mkdir()
    texts = {"newer": '{"format": 2}', "broken": '{"format": 1', "unwritable": '{"format": 1}'}
    if what == "folder":
        kept.mkdir()
    elif what != "absent":
        kept.write_text(texts[what])
    result = vmm("report", kept, "--html", page)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vmm: {kept}: ")
    assert result.stderr.count("\n") == 1
    assert list(page.parent.iterdir()) == []
