"""The pages of docs lead to each other: every relative link and every anchor is there."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    if not link.startswith(("http://", "https://", "mailto:"))
]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that GitHub gives the headings of *page*."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return frozenset(heading.replace(" ", "-") for heading in kept)


def name(value):
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else value


@pytest.mark.parametrize(("page", "link"), LINKS, ids=name)
def test_a_relative_link_leads_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    assert not anchor or anchor in anchors(target)


GUIDE = [page for page in PAGES if page.parent.name in {"tutorial", "howto", "reference"}]


@pytest.mark.parametrize("page", GUIDE, ids=name)
def test_no_page_of_the_guide_leads_to_evidence(page):
    """A reader is never sent to a page of evidence to learn what to do."""
    assert [link for other, link in LINKS if other == page and "evidence/" in link] == []


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve() for page, link in LINKS if page == index
    }
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs") and page != index}
    assert {page for page in pages if page.parent.name != "evidence"} <= linked
