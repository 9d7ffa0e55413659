"""Results side by side, in a real browser."""

from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.browser import chromium, complaints, opened, phone, violations
from tests.played import vmm
from tests.results import EVERY_KIND, HOSTILE, LEFT, differs, passed, run_of
from vmm.report.json import run_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "results"
    made.mkdir()
    (made / "a.json").write_text(run_text(run_of(*EVERY_KIND, not_run=LEFT)))
    other = (passed("create-one", "create"), passed("move-wrong", "move"), differs("only-here"))
    (made / "b.json").write_text(run_text(run_of(*other)))
    return made


@pytest.mark.parametrize(
    ("second", "title"),
    [
        (None, "2 scenarios on 1 kernel<"),
        (("a", "b"), "2 scenarios on 2 kernels: all are alike<"),
        (("a",), "2 scenarios on 2 kernels: all are alike, but 1 did not run on two of them<"),
        (("c",), "3 scenarios on 2 kernels: none ran on two of them<"),
    ],
)
def test_what_ran_on_one_kernel_alone_is_not_called_alike(
    second: tuple[str, ...] | None, title: str, tmp_path: Path
) -> None:
    columns = [("a", "b"), second] if second else [("a", "b")]
    files = []
    for number, names in enumerate(columns):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(run_text(run_of(*(passed(name, "create") for name in names))))
    page = tmp_path / "matrix.html"
    assert vmm("matrix", *files, "--html", page).exit_code == 0
    assert title in page.read_text()


def test_kernels_stand_beside_each_other(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "matrix.html"
    assert vmm("matrix", folder, "--html", page).exit_code == 0
    with chromium() as browser:
        opened(browser, page)
        heads = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "thead th")]
        assert heads == ["scenario", "Linux 6.99\nkvm_amd · a.json", "Linux 6.99\nkvm_amd · b.json"]
        rows = {
            row.find_element(By.TAG_NAME, "th").text: [
                cell.text for cell in row.find_elements(By.TAG_NAME, "td")
            ]
            for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr")
        }
        assert rows["create-one"] == ["✓ passed", "✓ passed"]
        assert rows["move-wrong"] == ["≠ differs", "✓ passed"]
        assert rows["warned"] == ["⚠ unhealthy", "not run"]
        assert rows["only-here"] == ["not run", "≠ differs"]
        browser.find_element(By.ID, "unlike").click()
        assert browser.find_element(By.ID, "shown").text == "1 of 12 scenarios"
        assert complaints(browser) == []
        phone(browser)
        opened(browser, page)
        assert violations(browser) == []
    assert HOSTILE.partition("\n")[0] not in page.read_text()


@pytest.mark.parametrize("what", ["empty", "broken", "unwritable"])
def test_what_cannot_be_used_is_one_line(folder: Path, tmp_path: Path, what: str) -> None:
    page = tmp_path / "out.html"
    place = folder
    if what == "empty":
        place = tmp_path / "empty"
        place.mkdir()
    elif what == "broken":
        place = folder / "c.json"
        place.write_text("{")
    else:
        page = place = tmp_path / "absent" / "out.html"
    result = vmm("matrix", folder if what != "empty" else place, "--html", page)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vmm: {place}: ")
    assert result.stderr.count("\n") == 1
    assert not page.exists()
