"""Results side by side, in a real browser."""

from dataclasses import replace
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

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
        (("a", "b"), "2 scenarios on 2 kernels: all have the same results<"),
        (("a",), "2 scenarios on 2 kernels: all have the same results; 1 ran on fewer than two<"),
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
        run = run_of(*(passed(name, "create") for name in names))
        run = replace(run, host=replace(run.host, kernel=f"6.{number}"))
        files[-1].write_text(run_text(run))
    page = tmp_path / "matrix.html"
    assert vmm("matrix", *files, "--html", page).exit_code == 0
    assert title in page.read_text()


def test_two_results_of_one_kernel_are_not_two_kernels(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "matrix.html"
    assert vmm("matrix", folder, "--html", page).exit_code == 0
    text = page.read_text()
    assert "12 scenarios in 2 results: 1 has different results" in text
    assert "<title>Memslots in 2 results</title>" in text


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


def page_of(kernels: int, tmp_path: Path) -> Path:
    """Write the page of many scenarios on some kernels that a distribution has named."""
    every = [passed(f"create-{number}-next-to-another", "create") for number in range(60)]
    run = run_of(*every)
    files = [tmp_path / f"linux-{number}.json" for number in range(kernels)]
    for number, file in enumerate(files):
        host = replace(run.host, kernel=f"7.{number}.13+deb14-amd64", vendor="kvm_intel")
        file.write_text(run_text(replace(run, host=host)))
    page = tmp_path / "matrix.html"
    assert vmm("matrix", *files, "--html", page).exit_code == 0
    return page


CUT_OFF = """
    const table = document.querySelector(".table").getBoundingClientRect();
    const out = (place) => place.right > table.right + 1 || place.left < table.left - 1;
    return [...document.querySelectorAll("thead th")].filter((head) =>
        head.scrollWidth > head.clientWidth || out(head.getBoundingClientRect())
    ).map((head) => head.textContent);
"""


def test_on_a_phone_two_kernels_stand_beside_each_other_whole(tmp_path: Path) -> None:
    with chromium() as browser:
        phone(browser)
        opened(browser, page_of(2, tmp_path))
        assert browser.execute_script(CUT_OFF) == []
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        frame = browser.find_element(By.CSS_SELECTOR, ".frame")
        assert frame.get_attribute("class") == "frame"


@pytest.mark.parametrize("width", [390, 0])
def test_names_stay_in_sight_where_a_table_is_scrolled(tmp_path: Path, width: int) -> None:
    scrolled = """
        const table = document.querySelector(".table");
        table.scrollTop = 600; table.scrollLeft = 300;
        const place = (selector) => table.querySelector(selector).getBoundingClientRect();
        const box = table.getBoundingClientRect();
        return [table.scrollTop, table.scrollLeft,
            place("thead th:nth-child(9)").top - box.top,
            place("tbody tr:nth-child(40) th").left - box.left].map(Math.round);
    """
    with chromium() as browser:
        phone(browser, width)
        opened(browser, page_of(12, tmp_path))
        frame = browser.find_element(By.CSS_SELECTOR, ".frame")
        assert frame.get_attribute("class") == "frame right"
        assert browser.execute_script(scrolled) == [600, 300, 1, 1]
        shows_both = "return document.querySelector('.frame').className === 'frame right left'"
        WebDriverWait(browser, 5).until(lambda _: browser.execute_script(shows_both))
        assert violations(browser) == []
        assert complaints(browser) == []


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
