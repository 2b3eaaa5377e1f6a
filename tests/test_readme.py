"""README and the pages are checked against the disk: tree, links, names; Chinese against English."""

import re

import pytest
from helpers import ROOT
from helpers.documents import PAGES, blocks_of, headings_of

import adapters_hub as ah

README = (ROOT / "README.md").read_text(encoding="utf-8")
TRANSLATED = ("README", "docs/start")


def text_of(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def test_the_readme_is_short():
    assert len(README.split()) <= 900


def test_the_tree_is_what_is_on_disk():
    tree = re.search(r"```\n(adapters_hub/ .*?)```", README, re.S)[1]
    named = [line.split()[0] for line in tree.splitlines()]
    assert all((ROOT / name).is_dir() for name in named)
    mentioned = re.findall(r"\w+\.(?:py|md)", tree)
    there = {path.name for folder in named for path in (ROOT / folder).iterdir()}
    assert set(mentioned) <= there


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_targets_and_programs_exist(page):
    text = text_of(page)
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.M) + re.findall(r"`make (\w+)`", text):
        assert re.search(rf"^{target}:", makefile, re.M), target
    if page.name != "lab-log.md":  # what it tells of may be gone
        for program in re.findall(r"(?<![\w/])(?:recipes|benchmarks)/\w+\.py", text):
            assert (ROOT / program).is_file(), program


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_names_exist(page):
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S)  # blocks are run
    for name in set(re.findall(r"\bah\.(\w+)", text)):
        assert hasattr(ah, name), name
    for name in set(re.findall(r"(?<!\w)(?<!\.)model\.(\w+)\(", text)):
        assert hasattr(ah.AdaptedModel, name), name
    for name in set(re.findall(r"\blibrary\.(\w+)\(", text)):
        assert hasattr(ah.Library, name), name


def test_every_figure_has_a_command_and_a_date():
    text = text_of(ROOT / "docs/results.md")
    tables = re.findall(r"^\| .*printed by \| date \|\n\| [-| :]+\n((?:\|.*\n)+)", text, re.M)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(tables) == 4
    for row in rows:
        *_, command, date = (cell.strip() for cell in row.strip("|").split(" | "))
        assert re.search(r"`(?:benchmarks|recipes)/[\w/]+\.py", command), row
        assert re.fullmatch(r"\d{4}-\d\d-\d\d(; .*)?", date), row


def test_the_page_on_the_api_has_every_public_name():
    named = re.findall(r"^::: adapters_hub\.(.+)$", text_of(ROOT / "docs/api.md"), re.M)
    wanted = {f"{home}.{name}" for name, home in ah._HOME.items() if home != "errors"}
    assert set(named) == wanted | {"errors"}


def test_the_short_index_names_every_page():
    index = text_of(ROOT / "llms.txt")
    links = re.findall(r"\]\(([^)]+)\)", index)
    assert all((ROOT / link).is_file() for link in links)
    pages = {name_of(page) for page in PAGES if "images" not in name_of(page)}
    assert pages <= set(links)


@pytest.mark.parametrize("page", TRANSLATED)
def test_the_chinese_page_keeps_step(page):
    english, chinese = ROOT / f"{page}.md", ROOT / f"{page}.zh.md"
    assert headings_of(chinese) == headings_of(english)
    ours, theirs = blocks_of(english), blocks_of(chinese)
    assert [block.kind for block in theirs] == [block.kind for block in ours]
    for block, other in zip(ours, theirs, strict=True):
        if block.kind:  # a tree is told in words
            assert without_comments(other.text) == without_comments(block.text)
    tables = [re.findall(r"^\|.*\|$", text_of(path), re.M) for path in (english, chinese)]
    assert len(tables[0]) == len(tables[1])
    figures = [sorted(re.findall(r"\d+\.\d+", text_of(path))) for path in (english, chinese)]
    assert figures[0] == figures[1]


def without_comments(text):
    return [re.sub(r"\s*#.*$", "", line) for line in text.splitlines()]
