"""The page in a headless Chromium: clicks, keys, the address."""

import struct
from pathlib import Path

import pytest

from tests.view.browser import Browser

BLOCK = 1  # specs/blocks/gated_delta.yaml: the second file of the report, after the model itself


@pytest.fixture
def page(browser: Browser, model_report: Path) -> Browser:
    browser.messages.clear()
    browser.open(model_report.as_uri())
    return browser


def lines_on(page: Browser) -> dict[str, list[str]]:
    """The highlighted lines of each pane."""
    lines = "p => [p.id, [...p.querySelectorAll('.on')].map(e => e.textContent)]"
    found: dict[str, list[str]] = page.ask(f"Object.fromEntries([...document.querySelectorAll('.pane')].map({lines}))")
    return found


def address(page: Browser) -> str:
    text: str = page.ask("decodeURIComponent(location.hash)")
    return text


def test_page_reports_no_error_and_asks_for_nothing(page: Browser) -> None:
    assert page.messages == []


def test_click_on_a_box_highlights_yaml_program_and_code(page: Browser) -> None:
    page.click('#collapsed [data-box="h.0.mixed"]')

    lines = lines_on(page)
    assert address(page) == "#node=h.0.mixed"
    assert lines["pane-yaml"] == ["  mixed: x + linear(o, d)"]
    assert any(line.strip().startswith("mixed = add(") for line in lines["pane-program"])
    assert any("mixed = x + o" in line for line in lines["pane-source"])


def test_click_on_generated_code_leads_back_to_yaml_and_box(page: Browser) -> None:
    page.ask("[...document.querySelectorAll('#pane-source [data-at]')].find(e => e.textContent.includes('mixed = ')).id = 'wanted'")
    page.click("#wanted")

    assert lines_on(page)["pane-yaml"] == ["  mixed: x + linear(o, d)"]
    assert page.ask("document.querySelector('#collapsed [data-box=\"h.0.mixed\"]').classList.contains('on')")


def test_line_inside_a_node_leads_to_it(page: Browser) -> None:
    page.click("#y0-19")

    assert page.ask("[...document.querySelectorAll('#nodes li.on')].map(e => e.dataset.node)") == ["weights"]
    assert page.ask("document.querySelector('#collapsed [data-node=weights]').classList.contains('on')")


def test_hover_over_yaml_shows_what_comes_of_it(page: Browser) -> None:
    page.hover(f"#y{BLOCK}-16")

    boxes = page.ask("[...document.querySelectorAll('#collapsed .hover')].map(e => e.dataset.box)")
    assert boxes == ["h.0.mixed", "tensors h.0"]  # the line makes a weight as well
    assert address(page) == ""


def test_search_finds_nodes_and_keys_walk_the_list(page: Browser) -> None:
    page.press("/")
    for key in "conv":
        page.press(key)

    assert page.ask("document.querySelector('#found').textContent").startswith("30 of ")
    page.press("Enter")
    assert address(page) == "#node=h.0.q.conv&find=conv"
    page.press("ArrowDown")
    page.press("ArrowDown")
    assert address(page) == "#node=h.0.k.conv&find=conv"
    page.press("Escape")
    page.press("Escape")
    assert address(page) == ""


def test_address_restores_what_was_seen(page: Browser, model_report: Path) -> None:
    page.open(f"{model_report.as_uri()}#node=h.3.S&view=passes&pass=classify&copies=1&cost=0&find=S&changed=1")

    shown = page.ask("[...document.querySelectorAll('#changes > section')].filter(e => !e.hidden).map(e => e.id)")
    assert shown == ["change-classify"]
    assert page.ask("document.querySelector('#find').value") == "S"
    assert page.ask("document.querySelector('#whole [data-node=\"h.3.S\"]').classList.contains('on')")
    assert page.ask("document.querySelector('#whole [data-node=\"h.3.S\"] .badge').textContent") == "30K"
    assert not page.ask("[...document.querySelectorAll('#passes .same')].some(e => e.checkVisibility())")


def test_bytes_are_shown_as_bytes(page: Browser, model_report: Path) -> None:
    page.open(f"{model_report.as_uri()}#cost=1")

    assert page.ask("document.querySelector('#collapsed [data-node=\"h.0.S\"] .badge').textContent") == "80 KiB"


def test_unknown_address_is_harmless(page: Browser, model_report: Path) -> None:
    page.open(f"{model_report.as_uri()}#node=absent&at=9:9&view=none&pass=x&panes=y&cost=77&more=1")

    assert page.messages == []
    assert page.ask("document.querySelector('#view-code').checkVisibility()")


def test_copies_of_a_block_are_opened_and_closed(page: Browser) -> None:
    page.click("#copies")
    assert page.ask("document.querySelector('#whole [data-box=\"h.4.q\"]').checkVisibility()")

    page.click("#copies")

    assert not page.ask("document.querySelector('#whole').checkVisibility()")
    assert page.ask("document.querySelector('#collapsed [data-box=\"h.0.q\"]').checkVisibility()")


def test_every_control_is_reached_with_tab(page: Browser) -> None:
    seen = set()
    for _ in range(30):
        page.press("Tab")
        seen.add(
            page.ask("document.activeElement.id || document.activeElement.className || document.activeElement.getAttribute('aria-label')")
        )

    assert {"find", "nodes", "cost", "copies", "canvas", "split", "tab-code", "lines"} <= seen


def test_drawing_moves_and_grows_with_keys(page: Browser) -> None:
    size = "document.querySelector('#collapsed svg').getBoundingClientRect().width"
    before = page.ask(size)
    page.ask("document.querySelector('.canvas').focus()")
    page.press("+")
    page.wait()

    assert page.ask(size) == pytest.approx(1.25 * before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshot_shows_a_page(page: Browser, scheme: str) -> None:
    page.emulate(scheme)
    image = page.screenshot()
    page.emulate("light")

    assert struct.unpack(">II", image[16:24]) == (1600, 1000)
    assert len(image) > 50_000
