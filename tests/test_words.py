"""
What this project says is said in the field's own words: the private ones it once had stay retired.

Read are all Python files but this one, the package's pages, README, CHANGELOG, CONTRIBUTING and
docs. ALLOWED has every other use of such a word, with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "everifin_django").rglob("*.html")),
    *(
        module
        for folder in ("everifin_django", "example_project", "scripts", "tests", "benchmarks")
        for module in sorted((ROOT / folder).rglob("*.py"))
        if module != Path(__file__)
    ),
]
RETIRED = {
    "place": r"\b(?:mis)?plac(?:e|es|ed|ing)\b",
    "door": r"\bdoors?\b",
    "lend": r"\b(?:lend|lends|lent|lending|lender)\b",
    "loan": r"\bloans?\b",
    "keep a grant": r"\b(?:keep|keeps|kept|keeping)\b[^.\n]{0,20}\bgrants?\b"
    r"|\bgrants?\b[^.\n]{0,20}\b(?:keep|keeps|kept|keeping)\b",
    "forget": r"\b(?:forget|forgets|forgot|forgotten|forgetting)\b",
    "drop": r"\b(?:drop|drops|dropped|dropping)\b",
    "twin": r"\btwins?\b",
    "the mark": r"\bthe mark\b|\b(?:un)?marked view|\bmark the view",
    "Who as a subject": r"(?:^|[.;:|#] |\"\"\" ?)Who\b(?! [^.]*\?)",
    "one that is none": r"\b(?:that|which|who) (?:is|are) none\b",
    "pretend": r"\b[Pp]retend\b|in a box",
}
ALLOWED: dict[str, str] = {
    r"decimal places|places=2": "the word of arithmetic",
    r"two places|of at most \{MOST_PLACES\} places|MOST_PLACES": "decimal places",
    r"drop_old|old, or drop": "an argument's documented name",
}


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_not_used(word):
    allowed = re.compile("|".join(ALLOWED))
    found = [
        f"{page.relative_to(ROOT)}:{number}: {line.strip()}"
        for page in PAGES
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(RETIRED[word], allowed.sub("", line), re.MULTILINE)
    ]
    assert found == []
