"""The HTML page: in one file, hostile samples stay text, and in a browser a masked word shows when it is clicked."""

import dataclasses
import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.page import find_changes, mask_words, render_page
from eval.results import RESULTS, read_results
from eval.stress import SWEARING
from sft.run_dir import Run
from sft.storage import read_json_lines

EVIL = '<img src=x onerror="document.title=1"> {{ 7 * 7 }} "><script>document.title=2</script> damn & fool'


@pytest.fixture(scope="module")
def page(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with hostile samples of a run."""
    run = Run(mini_run)
    lines = read_json_lines(run.eval / "predictions.jsonl")[:3]
    for line in lines:
        line |= {"toxic": EVIL, "prediction": EVIL.replace("damn ", ""), "base": EVIL, "references": [EVIL]}
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(
        render_page("<b>run</b>", read_results(run.eval / RESULTS), lines, {"damn", "fool"}, run.plots)
    )
    return path


def test_changes_are_told_word_by_word() -> None:
    assert find_changes("you are a damn fool", "You are a fool") == [
        ("out", "you"), ("in", "You"), ("same", "are a"), ("out", "damn"), ("same", "fool"),
    ]  # fmt: skip
    assert find_changes("a", "") == [("out", "a")]
    assert find_changes("", "a b") == [("in", "a b")]


def test_listed_words_are_masked_in_every_spelling_of_the_list() -> None:
    assert mask_words("Damn, you FOOL!", {"damn", "fool"}) == [
        ("Damn", True),
        (", you ", False),
        ("FOOL", True),
        ("!", False),
    ]
    assert mask_words("can 't do", {"cant"}) == [("can 't", True), (" do", False)]
    assert mask_words("", {"x"}) == []


def test_swear_words_of_the_stress_cases_are_masked_in_their_disguise() -> None:
    assert mask_words("this sh1t", set()) == [("this ", False), ("sh1t", True)]
    assert mask_words("what the f*ck", {"f", "what"}) == [("what", True), (" the ", False), ("f*ck", True)]
    assert mask_words("F u c k i n g!", set()) == [("F u c k i n g", True), ("!", False)]
    assert mask_words("hello", set()) == [("hello", False)]


def test_no_marked_word_of_a_stress_case_stands_unmasked_on_the_page(mini_run: Path) -> None:
    text = (mini_run / "eval" / "report.html").read_text(encoding="utf-8")
    shown = html.unescape(
        re.sub(r"<[^>]*>", "", text[text.index("<h2>Stress</h2>") : text.index("<h2>Samples</h2>")])
    )
    assert "f••• is wrong with this printer" in shown
    assert not SWEARING.search(shown)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"num_beams": 4, "max_new_tokens": 25},
            "4 beams, at most 25 new tokens",
        ),
        (
            {"num_beams": 1, "max_new_tokens": 25},
            "1 beam, at most 25 new tokens",
        ),
    ],
)
def test_page_says_how_answers_were_generated(
    mini_run: Path, settings: dict[str, Any], expected: str
) -> None:
    results = read_results(mini_run / "eval" / RESULTS)
    results = dataclasses.replace(results, generation=dataclasses.replace(results.generation, **settings))
    assert f"<li>generation: {expected}</li>" in render_page("run", results, [], set(), mini_run / "plots")


def test_page_of_a_run_needs_nothing_else(mini_run: Path) -> None:
    text = (mini_run / "eval" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "url(" not in text
    assert "@import" not in text
    results = read_results(mini_run / "eval" / RESULTS)
    assert results.adapter.sha256 in text
    for score in results.systems["adapter"].values():
        assert score.signature.split("|")[0] in text
    assert text.count("data:image/png;base64,") == 3
    assert results.ceiling is not None
    rows = results.ceiling.rows
    for label, system in (
        (f"people, on {rows} sentences", "human"),
        (f"this adapter, on these {rows}", "adapter"),
    ):
        (cells,) = re.findall(rf'<tr class="apart"><td>{label}</td><td>(.*?)<small>', text)
        assert cells == f"{results.ceiling.systems[system]['bleu'].value:.1f}"
    for part in ("Slices", "Stress", "disguised swearing", "people", "few-shot base", "By listed words"):
        assert part in text


def test_hostile_samples_stay_text(page: Path) -> None:
    text = page.read_text()
    assert "<img src=x" not in text
    assert "<b>run" not in text
    assert text.count("<script>") == 1
    assert "{{ 7 * 7 }}" in text


@pytest.fixture
def browser() -> Iterator["webdriver.Chrome"]:  # noqa: F821
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-sync",
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_a_masked_word_shows_when_it_is_clicked(browser: "webdriver.Chrome", page: Path, width: int) -> None:  # noqa: F821
    browser.set_window_size(width, 900)
    browser.get(page.as_uri())
    assert browser.title == "<b>run</b>", "no hostile sample ran"
    masks = browser.find_elements("css selector", ".sample .mask")
    hidden = [mask for mask in masks if mask.is_displayed()]
    assert hidden[0].text == "d•••"
    hidden[0].click()
    assert hidden[0].text == "damn"
    assert hidden[1].text == "f•••", "the others stay masked"
    browser.find_element("id", "all").click()
    assert all("•" not in mask.text for mask in hidden)
    # The page itself never scrolls sideways: wide tables do.
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
