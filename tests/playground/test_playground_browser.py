"""The page in a real browser: a click, a key, a result; every script, light, dark and narrow.

With $ADAPTERS_HUB_SCREENSHOTS the pictures of docs/ are written anew into that folder.
"""

import os
import shutil
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.browser import KEYS, Browser, missing
from helpers.playground import served

import adapters_hub as ah
from adapters_hub.data.rows import Row
from adapters_hub.inference.records import collect_records
from adapters_hub.library.paths import bundled_root
from adapters_hub.tasks.language_modeling import LanguageModeling

pytestmark = [pytest.mark.browser, pytest.mark.slow]
IMAGES = ("playground.png", "playground-dark.png", "playground-narrow.png")
WRITTEN = "document.querySelector('#continued')?.dataset.done"
DANISH = "Værelset var rent, men morgenmaden"


@pytest.fixture(scope="module")
def browser():
    if reason := missing():
        pytest.skip(reason)
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    library = tmp_path_factory.mktemp("browser") / "adapters"
    shutil.copytree(bundled_root(), library, ignore=shutil.ignore_patterns(".*"))
    with served(ah.load_backbone("starter", library=library)) as server:
        yield server


@pytest.fixture
def page(browser, starter):
    """The page just opened, light, with its first result there."""
    browser.resize(1360, 860)
    browser.dark(False)
    browser.open(starter.url)
    browser.wait(f"{WRITTEN} > 0")
    browser.wait("document.querySelectorAll('#bars .bar').length === 5")
    yield browser
    assert browser.log() == []


def shot(browser, name, tmp_path):
    """A picture of the window, also among those of docs/ where that was asked for."""
    path = Path(os.environ.get("ADAPTERS_HUB_SCREENSHOTS") or tmp_path) / name
    browser.shot(path)
    assert path.stat().st_size < 300_000


def bits(browser):
    """Blend → bits per byte, as the bars say."""
    return browser.run(
        "return Object.fromEntries([...document.querySelectorAll('#bars .bar')].map(bar =>"
        " [bar.querySelector('.name').innerText, bar.querySelector('.value').innerText]))"
    )


def test_the_first_look(page, starter, tmp_path):
    model, task = starter.model, LanguageModeling()
    examples = task.encode([Row(DANISH)], model.backbone)
    shown = bits(page)
    assert set(shown) == {"bare", "da", "hotel", "da + hotel", "da + 0.5*hotel"}
    for written, value in shown.items():
        blend = model.resolve(None if written == "bare" else written)
        records = collect_records(model, task, examples, lambda row, blend=blend: blend)
        assert float(value) == pytest.approx(task.metrics(records)["bits_per_byte"], abs=6e-4)
    (expected,) = model.generate(
        [DANISH], adapters=["da + hotel"], max_new_tokens=30, no_repeat_ngram_size=3
    )
    cards = page.run(
        "return [...document.querySelectorAll('#continued .tokens')].map(t => t.textContent)"
    )
    assert cards[3].removesuffix("∎") == expected
    assert page.count("#continued span[data-way=more]") > 5
    shot(page, "playground.png", tmp_path)
    resources = page.run(
        "return performance.getEntriesByType('resource').map(r => new URL(r.name).origin)"
    )
    assert set(resources) == {starter.url.rstrip("/")}


def test_by_the_keyboard_alone(page):
    before = bits(page)
    page.run("document.querySelector('#weight-hotel').focus()")
    page.type("#weight-hotel", KEYS["right"] * 2, clear=False)
    page.wait("document.querySelector('#blend').innerText === 'da + 0.6*hotel'")
    page.wait("document.querySelector('#bars .yours').innerText === 'da + 0.6*hotel'")
    after = bits(page)
    assert after["da + 0.6*hotel"] != before["da + 0.5*hotel"]
    assert after["bare"] == before["bare"]
    page.run("document.querySelector('#tab-continue').focus()")
    page.type("#tab-continue", KEYS["right"], clear=False)
    assert page.run("return document.activeElement.id") == "tab-read"
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.wait("document.querySelectorAll('#readings .card').length === 5")
    page.type("#readings .card.mine .tokens", KEYS["right"] * 2, clear=False)
    assert page.count("#readings span.now") == 1
    assert "bits)" in page.text("#readings .card.mine footer")


def test_every_script_is_shown_as_it_was_typed(page):
    page.click("#tab-read")
    style = "return getComputedStyle(document.querySelector(arguments[0])).direction"
    shown = "document.querySelector('#readings .tokens')?.textContent"
    for tag, direction in (
        ("zh", "ltr"),
        ("ja", "ltr"),
        ("ar", "rtl"),
        ("th", "ltr"),
        ("uk", "ltr"),
    ):
        page.click(f"#examples [lang={tag}]")
        page.wait(f"{shown} === document.querySelector('#text').value + '∎'")
        assert page.run(style, "#text") == direction
        assert page.run(style, "#readings .tokens") == direction
        assert page.run("return document.querySelector('#readings .tokens').lang") == tag
    assert page.run("return document.documentElement.dir") == ""


def test_light_dark_and_narrow(page, tmp_path):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(f"return {paper}")
    page.dark()
    assert page.run(f"return {paper}") != light
    shot(page, "playground-dark.png", tmp_path)
    page.click("#theme")  # light, whatever the machine says
    assert page.run(f"return {paper}") == light
    page.click("#theme")
    page.dark(False)
    assert page.run(f"return {paper}") != light
    page.click("#theme")
    assert page.run(f"return {paper}") == light
    for width in (320, 390, 768):
        page.resize(width, 844)
        for tab in ("continue", "read", "nearest", "compare", "train", "export"):
            page.run(f"document.querySelector('#tab-{tab}').click()")
            assert page.run("return document.documentElement.scrollWidth") <= width, (width, tab)
    page.resize(390, 1150)
    page.click("#tab-continue")
    page.run("scrollTo(0, 0)")
    assert not page.run("return document.querySelector('#sliders-box').open")
    shot(page, "playground-narrow.png", tmp_path)
    page.click("#sliders-box summary")
    assert page.run("return document.querySelector('#weight-da').checkVisibility()")


def test_compare_and_export(page):
    page.click("#tab-compare")
    page.wait("document.querySelectorAll('#profile svg').length === 4")
    assert page.count("#profile circle") == 6 * 6
    page.click("#tab-export")
    page.click("#download")
    page.wait(
        "document.querySelector('#panel-export [role=status]').innerText.includes('my-blend.zip')"
    )


def test_train_on_these_rows(page):
    page.click("#tab-train")
    page.run("document.querySelector('#panel-train input[type=number]').value = 2")
    page.click("#train")
    page.wait("!document.querySelector('#stop').hidden")
    page.click("#tab-read")  # the page goes on meanwhile
    page.wait("document.querySelectorAll('#readings .card').length === 5")
    page.click("#tab-train")
    page.wait("document.querySelector('#job [role=status]').innerText.startsWith('Done')", 120)
    assert page.text("#blend").endswith("+ mine")
    assert page.count("#weight-mine") == 1


CELL = {
    "version": 1, "language": "de", "domain": "hotel", "source": "en", "task": "classification",
    "metric": "macro_f1", "higher_is_better": True, "backbone": "tiny", "seeds": [0, 1],
    "adapters": {"language": "de", "domain": ["stars"]}, "rows": {"test": 20, "dev": 10},
    "columns": {
        "bare": {"blend": "none", "mean": 0.25, "low": 0.2, "high": 0.3, "test": [0.2, 0.3]},
        "sum": {"blend": "de + stars", "mean": 0.5, "low": 0.4, "high": 0.6, "test": [0.4, 0.6]},
    },
    "best_single": "domain", "dev": {"bare": 0.2, "sum": 0.5},
    "transfer": {"mean": 0.1, "low": 0.0, "high": 0.2},
    "composed": {"sum": {
        "gain": {"mean": 0.25, "low": 0.1, "high": 0.4}, "hurts": False, "helps": True,
        "composition_gain": {"mean": 0.125, "low": 0.05, "high": 0.2},
    }},
}  # fmt: skip


def test_heads_and_the_matrix(browser, play_model):
    other = {**CELL, "language": "da", "composed": {"sum": {
        **CELL["composed"]["sum"], "composition_gain": {"mean": -0.0625, "low": -0.1, "high": 0.1},
    }}}  # fmt: skip
    browser.resize(1360, 860)
    with served(play_model, matrix=[CELL, other]) as server:
        browser.open(server.url)
        browser.wait(f"{WRITTEN} > 0")
        browser.type("#text", "the room was clean")
        for tab in ("classify", "answer", "tag"):
            browser.click(f"#tab-{tab}")
            browser.wait(f"document.querySelectorAll('#columns-{tab} .card').length === 3")
        (labels,) = play_model.classify(["the room was clean"], adapters="stars")
        browser.click("#tab-classify")
        first, score = next(iter(labels.items()))
        browser.wait(
            "document.querySelector('#columns-classify .row')?.innerText.includes('" + first + "')"
        )
        assert f"{100 * score:.1f} %" in browser.text("#columns-classify .row")
        browser.click("#tab-matrix")
        numbers = browser.run(
            "return [...document.querySelectorAll('.heat button')].map(b => b.innerText)"
        )
        assert numbers == ["+0.125", "−0.063"]
        assert browser.count(".heat button.sure") == 1
        browser.click(".heat button")
        assert browser.run("return document.querySelector('#cell').open")
        assert "0.500" in browser.text("#cell table")
        browser.click("#cell .main")
        assert browser.text("#blend") == "de + stars"
    assert browser.log() == []


def test_the_pictures_are_kept_small():
    for name in IMAGES:
        content = (ROOT / "docs/images" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 300_000
