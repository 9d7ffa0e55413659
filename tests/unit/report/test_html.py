"""The page: opened in a real browser, looked through, and safe whatever it quotes."""

import dataclasses
import html.parser
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import chromium, complaints, opened, phone, shows, violations
from tests.ideal import FEATURES, ideal_history
from tests.played import with_outcome
from tests.results import EVERY_KIND, LEFT, differs, of_status, passed, run_of
from vmm.report.html import html_text
from vmm.report.json import run_text
from vmm.report.resultfile import parse_result, result_file
from vmm.report.terminal import scenario_report
from vmm.scenario.history import Touched
from vmm.scenario.operations import (
    ChangeHostMemory,
    Mapping,
    Place,
    Scenario,
    SetUserMemoryRegion,
    Touch,
)
from vmm.verdict.judge import Status, Verdict
from vmm.verdict.result import judged

RUN = run_of(*EVERY_KIND, not_run=LEFT)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "result.html"
    file.write_text(html_text(result_file(RUN)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as driven:
        yield driven


def one(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def shown_names(browser: Chrome) -> list[str]:
    links = browser.find_elements(By.CSS_SELECTOR, "#list a")
    return [str(link.get_attribute("data-name")) for link in links if link.is_displayed()]


def test_it_opens_with_the_verdict_and_the_weightiest_scenario(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert one(browser, ".verdict").text == "This kernel differs from the model"
    assert "6.99" in one(browser, ".host").text
    assert one(browser, "#scenario h2").text == "move-wrong"
    assert "EEXIST" in one(browser, "#scenario .box.bad").text
    assert "slot of the test guest itself" in one(browser, "figcaption").text
    assert complaints(browser) == []


def test_a_scenario_is_chosen_and_stepped_with_mouse_and_keyboard(
    browser: Chrome, page: Path
) -> None:
    opened(browser, page)
    slots = ".step [aria-label=Memslots]"
    one(browser, "#list a[data-name='create-one']").click()
    shows(browser, "#scenario h2", "create-one")
    shows(browser, "output", "Operation 0")
    shows(browser, slots, "slot 1 new")
    one(browser, ".picture").send_keys(Keys.ARROW_RIGHT)
    shows(browser, "output", "Operation 1")
    shows(browser, slots, "0x10000..0x11000")
    one(browser, "button[aria-label='Next step']").click()
    shows(browser, "output", "Operation 2")
    shows(browser, slots, "slot 1 gone")
    browser.find_elements(By.CSS_SELECTOR, ".picture .row")[0].click()
    shows(browser, "output", "Before the first operation")
    numbers = browser.find_elements(By.CSS_SELECTOR, ".picture .number")
    assert [each.text for each in numbers] == ["-", "0", "1", "2", "end"]
    assert "slot 1" not in shows(browser, slots, "slot 400")
    assert browser.current_url.endswith("#s/create-one/0")
    assert complaints(browser) == []


def test_the_tree_of_a_kernel_that_has_one_is_drawn(
    browser: Chrome, page: Path, tmp_path: Path
) -> None:
    opened(browser, page, "#s/create-one/1")
    tree = one(browser, ".tree svg")
    assert tree.get_attribute("aria-label") == (
        "slot 400: black, root; slot 1: red, below slot 400"
    )
    assert len(tree.find_elements(By.CSS_SELECTOR, "ellipse")) == 2
    older = tmp_path / "older.html"
    host = dataclasses.replace(RUN.host, memslots="array")
    older.write_text(html_text(result_file(dataclasses.replace(RUN, host=host))), "utf-8")
    opened(browser, older, "#s/create-one/1")
    assert browser.find_elements(By.CSS_SELECTOR, ".tree") == []
    assert "slot 1" in one(browser, ".step [aria-label=Memslots]").text


def test_a_known_issue_is_no_promise_kept() -> None:
    kept = run_of(passed("create-one"))
    assert "1 scenario ran: no difference</p>" in html_text(result_file(kept))
    known = [of_status(differs(name), Status.KNOWN) for name in ("one", "another")]
    text = html_text(result_file(run_of(passed("create-one"), *known)))
    assert 'verdict known">3 scenarios ran: no difference, but for 1 known issue</p>' in text


def test_what_the_guest_met_and_the_rule_are_told(browser: Chrome, page: Path) -> None:
    opened(browser, page, "#s/create-one/1")
    assert "page 0 of a" in one(browser, ".step [aria-label=Touches]").text
    one(browser, ".step a[href='#rule-create']").click()
    rule = one(browser, "#rule-create + dd")
    assert "an absent slot is created" in rule.text
    assert rule.find_element(By.TAG_NAME, "a").get_attribute("href") == (
        "https://docs.kernel.org/virt/kvm/api.html"
    )


def test_the_difference_is_emphasised_in_the_picture(browser: Chrome, page: Path) -> None:
    opened(browser, page, "#s/move-wrong")
    assert one(browser, ".picture .row.now .bad").text == "≠0"
    assert len(browser.find_elements(By.CSS_SELECTOR, ".picture .wrong")) == 1
    opened(browser, page, "#s/create-one")
    assert browser.find_elements(By.CSS_SELECTOR, ".picture .wrong") == []


def test_a_difference_in_smm_is_framed_in_the_addresses_of_smm(
    browser: Chrome, tmp_path: Path
) -> None:
    slots = [SetUserMemoryRegion(slot, 0x10000, 0x1000, Place("a")) for slot in (1, 0x10001)]
    touches = Touch(0x10000), Touch(0x10000, as_id=1)
    scenario = Scenario(
        "smm", (*slots, *touches), (Mapping("a", 1),), survey="none", needs=("smm",)
    )
    spaces = msgspec.structs.replace(FEATURES, smm=True, address_spaces=2)
    run = run_of(judged(with_outcome(ideal_history(scenario, spaces), 3, Touched(1))))
    page = tmp_path / "smm.html"
    page.write_text(html_text(result_file(run)), encoding="utf-8")
    opened(browser, page)
    script = """
        const left = (each) => each.getBoundingClientRect().left;
        const label = [...document.querySelectorAll(".picture .head text")].find((each) =>
            each.textContent.startsWith("SMM"));
        return left(label) - left(document.querySelector(".picture .wrong"));
    """
    assert abs(browser.execute_script(script)) < 10


def test_a_scenario_of_any_name_is_reached_from_the_list(browser: Chrome, tmp_path: Path) -> None:
    names = ("a/b", "a%2Fb", "é #?&'\"<b>", "..", "s/1")
    page = tmp_path / "names.html"
    page.write_text(html_text(result_file(run_of(*map(passed, names)))), encoding="utf-8")
    for number, name in enumerate(names):
        opened(browser, page)
        browser.find_elements(By.CSS_SELECTOR, "#list a")[number].click()
        shows(browser, "output", "Operation 0")
        assert one(browser, "#scenario h2").text == name
        address = browser.current_url
        browser.get("about:blank")
        browser.get(address)
        assert one(browser, "#scenario h2").text == name
    assert complaints(browser) == []


def test_a_known_issue_has_its_evidence(browser: Chrome, page: Path) -> None:
    opened(browser, page, "#s/known-one")
    assert "Evidence: " in one(browser, "#scenario").text


def test_a_difference_far_to_the_right_comes_into_view(browser: Chrome, tmp_path: Path) -> None:
    slots = [
        SetUserMemoryRegion(slot, (slot + 1) * 0x100_000, 0x1000, Place("a")) for slot in range(12)
    ]
    scenario = Scenario("wide", (*slots, Touch(0x800_000)), (Mapping("a", 1),), survey="none")
    run = run_of(judged(with_outcome(ideal_history(scenario), 12, Touched(1))))
    page = tmp_path / "wide.html"
    page.write_text(html_text(result_file(run)), encoding="utf-8")
    phone(browser, 390)
    opened(browser, page)
    script = """
        const shown = document.querySelector(".picture").getBoundingClientRect();
        const wrong = document.querySelector(".picture .wrong").getBoundingClientRect();
        return shown.left <= wrong.left && wrong.right <= shown.right;
    """
    in_view = browser.execute_script(script)
    phone(browser, 0)
    assert in_view


def test_addresses_and_numbers_stay_where_a_picture_is_scrolled(
    browser: Chrome, tmp_path: Path
) -> None:
    slots = [
        SetUserMemoryRegion(slot, (slot + 1) * 0x100_000, 0x1000, Place("a")) for slot in range(40)
    ]
    scenario = Scenario("many", tuple(slots), (Mapping("a", 1),), survey="none")
    page = tmp_path / "many.html"
    page.write_text(html_text(result_file(run_of(judged(ideal_history(scenario))))), "utf-8")
    opened(browser, page, "#s/many/40")
    browser.execute_script("document.querySelector('.picture').scrollLeft = 500")
    script = """
        const shown = document.querySelector(".picture").getBoundingClientRect();
        const moved = (each) => each.getBoundingClientRect();
        const head = moved(document.querySelector(".picture .head"));
        const at = moved(document.querySelector(".picture .row.now .number"));
        return document.querySelector(".picture").scrollTop > 100
            && Math.abs(head.top - shown.top) < 3 && shown.left <= at.left
            && at.right < shown.left + 60 && at.bottom <= shown.bottom;
    """
    WebDriverWait(browser, 10).until(lambda each: each.execute_script(script))


def test_the_arrows_scroll_a_table_that_is_wider_than_its_place(
    browser: Chrome, page: Path
) -> None:
    phone(browser, 300)
    opened(browser, page, "#s/create-one/1")
    table = one(browser, "#scenario .step .scroll")
    table.send_keys(Keys.ARROW_RIGHT)
    script = "return arguments[0].scrollLeft"
    WebDriverWait(browser, 10).until(lambda each: each.execute_script(script, table) > 0)
    phone(browser, 0)
    assert browser.current_url.endswith("#s/create-one/1")


def test_the_focus_stays_where_steps_are_taken(browser: Chrome, page: Path) -> None:
    opened(browser, page, "#s/create-one/3")
    before = one(browser, "button[aria-label='Step before']")
    for place in ("Operation 1", "Operation 0", "Before the first operation"):
        before.send_keys(Keys.ENTER)
        shows(browser, "output", place)
    assert browser.switch_to.active_element == before
    assert before.get_attribute("aria-disabled") == "true"
    before.send_keys(Keys.ENTER)
    shows(browser, "output", "Before the first operation")
    table = one(browser, "#scenario .step .scroll")
    label = table.get_attribute("aria-label")
    table.send_keys(Keys.ARROW_RIGHT)
    shows(browser, "output", "Operation 0")
    assert browser.switch_to.active_element.get_attribute("aria-label") == label


def test_a_link_to_what_is_not_in_this_result_says_so(browser: Chrome, page: Path) -> None:
    for name in ("create-three", "100%"):
        opened(browser, page, f"#s/{name}/2")
        assert one(browser, "#scenario").text == (
            f"{name}\nNo scenario of this name is in this result."
        )
    assert browser.title == "100%: not in this result"
    one(browser, "#list a[data-name='create-one']").click()
    shows(browser, "#scenario h2", "create-one")
    browser.execute_script("location.hash = '#s/gone'")
    shows(browser, "#scenario", "No scenario of this name is in this result.")
    assert browser.find_elements(By.CSS_SELECTOR, "#list [aria-current]") == []
    assert complaints(browser) == []


def test_the_box_says_what_the_text_report_says_of_the_step(
    browser: Chrome, tmp_path: Path
) -> None:
    scenario = Scenario(
        "follow",
        (
            SetUserMemoryRegion(1, 0x10000, 0x1000, Place("a")),
            ChangeHostMemory(Place("a"), 1, "drop"),
            Touch(0x10000),
        ),
        (Mapping("a", 1),),
        survey="none",
    )
    checked = judged(with_outcome(ideal_history(scenario), 2, Touched(1)))
    lines = [line.plain.strip() for line in scenario_report(checked, "vmm check follow", None)]
    assert any(line.startswith("after operation 1: ") for line in lines)
    page = tmp_path / "follow.html"
    page.write_text(html_text(result_file(run_of(checked))), encoding="utf-8")
    opened(browser, page)
    box = one(browser, "#scenario [aria-label=Difference] dd").text.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("step "))
    assert box == [lines[at].removeprefix("step").strip(), *lines[at + 1 : at + len(box)]]
    assert len(box) == 2


def test_on_a_phone_an_address_leads_to_its_scenario(browser: Chrome, page: Path) -> None:
    top = "return document.getElementById('scenario').getBoundingClientRect().top"
    phone(browser, 390)
    opened(browser, page)
    assert browser.execute_script(top) > 100
    opened(browser, page, "#s/create-one/1")
    WebDriverWait(browser, 10).until(lambda each: abs(each.execute_script(top)) < 100)
    phone(browser, 0)


def test_a_skip_says_why_and_no_more(browser: Chrome, page: Path) -> None:
    opened(browser, page, "#s/create-huge")
    text = one(browser, "#scenario").text
    assert "needs a huge page" in text
    assert "No steps" not in text
    assert "events" not in text
    opened(browser, page, "#s/move-wrong")
    assert "What comes after this step is not judged." in one(browser, "#scenario").text


def test_filters_by_text_subject_and_outcome(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    assert len(shown_names(browser)) == len(EVERY_KIND)
    one(browser, "#text").send_keys("create tw")
    assert shown_names(browser) == ["create-two"]
    one(browser, "#text").send_keys(Keys.CONTROL + "a", Keys.BACKSPACE)
    Select(one(browser, "#subject")).select_by_visible_text("dirty")
    assert shown_names(browser) == ["known-one", "known-gone"]
    one(browser, ".outcomes input[value=known]").send_keys(" ")
    assert shown_names(browser) == ["known-gone"]
    assert one(browser, "#shown").text == "1 of 11 scenarios"


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Chrome, page: Path, colours: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": colours}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    opened(browser, page)
    for selector in ("body", ".verdict", "#shown", ".source", "#list .skipped"):
        assert contrast(browser, selector) >= 4.5, selector
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(browser: Chrome, selector: str) -> float:
    """Return the contrast of an element's text, as WCAG 2 counts it."""
    script = """
        const element = document.querySelector(arguments[0]);
        const light = (text) => {
            const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => {
                const value = part / 255;
                return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        let back = element;
        const clear = (each) => getComputedStyle(each).backgroundColor === "rgba(0, 0, 0, 0)";
        while (clear(back)) back = back.parentElement;
        const found = [light(getComputedStyle(element).color),
                       light(getComputedStyle(back).backgroundColor)].sort((a, b) => b - a);
        return (found[0] + 0.05) / (found[1] + 0.05);
    """
    return float(browser.execute_script(script, selector))


def test_a_phone_scrolls_in_one_direction_only(browser: Chrome, page: Path) -> None:
    phone(browser, 390)
    opened(browser, page)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    phone(browser, 0)
    assert width <= 390


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [0, 390])
def test_axe_finds_nothing_that_keeps_people_out(
    browser: Chrome, page: Path, colours: str, width: int
) -> None:
    feature = {"name": "prefers-color-scheme", "value": colours}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    phone(browser, width)
    found = []
    for fragment in ("", "#s/create-one/1", "#s/move-wrong"):
        opened(browser, page, fragment)
        found += violations(browser)
    phone(browser, 0)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert found == []


def test_controls_have_names_for_a_screen_reader(browser: Chrome, page: Path) -> None:
    opened(browser, page)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "slider", "searchbox", "combobox", "checkbox", "link"}
    controls = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(controls) > 20
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    landmarks = {node["role"]["value"] for node in tree if "role" in node}
    assert {"banner", "navigation", "main", "search"} <= landmarks


def test_every_verdict_and_every_outcome_has_its_words() -> None:
    for status in Status:
        each = dataclasses.replace(passed("a"), verdict=Verdict("a", status, "why"))
        text = html_text(result_file(run_of(each)))
        assert f'<span class="sr">, {status.value}</span>' in text
    stopped = dataclasses.replace(run_of(), obstacle="no device", early="it was late", error="E: x")
    text = html_text(result_file(stopped))
    for part in ("no device", "it was late", "E: x", "This program failed"):
        assert part in text


def test_nothing_quoted_is_markup_or_ends_the_script() -> None:
    text = html_text(result_file(RUN))
    assert "<b>" not in text
    assert "\u202e" not in text
    seen: list[str] = []

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)

    Tags().feed(text)
    assert seen.count("script") == 2
    assert "b" not in seen


def test_the_page_of_a_kept_result_is_the_same() -> None:
    kept = parse_result(run_text(RUN).encode(), "r.json")
    again = html_text(kept)
    assert again.count("create-one") == html_text(result_file(RUN)).count("create-one") > 3
