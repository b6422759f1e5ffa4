"""Plays the cases, counts what was observed, and writes it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from django.test import override_settings

from everifin_django.connections.refresh import clear_pauses
from everifin_django.oauth.jwks import clear_signing_keys
from everifin_django.testing.adapter import mount
from everifin_django.testing.fake import as_in_settings
from tests.providers.certification.beside import BESIDE
from tests.providers.certification.cases import DOES_NOT_APPLY, Case
from tests.providers.certification.plans import CASES, PLANS, SUITE
from tests.providers.certification.provider import AFTER_LOGOUT, Provider
from tests.providers.certification.sites import NO_SUCH_FEATURE, OURS, PLAIN, SITES, Site, Visit

DOCUMENT = Path(__file__).parents[3] / "docs" / "evidence" / "certification.md"
REDIRECT_URIS = (
    "http://testserver/everifin/callback/",
    "http://testserver/oidc/callback/",
    AFTER_LOGOUT,
)

Row = Mapping[str, str]
"""What was observed in one case, by the site's name."""

INTRODUCTION = """\
# The OpenID certification tests

The OpenID Foundation certifies relying sites with its conformance suite. In each test a provider
does one thing, right or wrong, and the relying site has to respond correctly. The tables below
are those tests, under the suite's names, run against this package's sandbox. They mirror the
suite; they are not the suite, and no certificate. The last table has what can go wrong with a
login although no test of the suite asks about it, under names of our own.

`python -m tests.providers.certification` runs them, with the same code for `everifin-django` and,
for comparison, for mozilla-django-oidc {version}, and writes this page. Every login begins at the
site's own login page, goes to the provider, and comes back to the site's own callback.
mozilla-django-oidc has its defaults, the URLs of the provider, and `OIDC_RP_SIGN_ALGO = 'RS256'`
with `OIDC_OP_JWKS_ENDPOINT`. A setting that a single test needs is in the notes below its table.
The test suite runs all this too. It fails if `everifin-django` does not do what is right (the
first outcome named, if there are several), and if this page is out of date. The comparison
decides nothing.

- *logged in*: as the user whom the ID token names; *as another*: as somebody else.
- *refused*: nobody is logged in, by an error page (4xx) or a redirect; at a back-channel logout,
  the answer is 400 and the visitor stays logged in.
- *logged out*: here, and for an RP-initiated logout at the provider too.
- *error 500*: nobody is logged in, because the site failed. The suite watches from the provider's
  side and could not tell this from a refusal, so the sums count these separately.
- *stopped*: the refreshed tokens are not used.
- *asked to come back later*: with 503 and `Retry-After`.
- **Bold** is what is wrong.

Two things to know on the way to a certificate: the suite ends most tests when the site asks
UserInfo, and `everifin-django` does not ask it about users who have an ID token. And FAPI 2.0
demands more than the tests named here, such as pushed authorization requests and
sender-constrained tokens.
"""


class Sums(NamedTuple):
    """Over some cases: *crashed* are those of the wrong ones that ended in a server error."""

    cases: int
    right: int
    wrong: int
    crashed: int
    without_feature: int
    not_applicable: int

    def __str__(self) -> str:
        return (
            f"{self.cases} cases: {self.right} right, {self.wrong} wrong "
            f"(of these {self.crashed} by a server error), "
            f"{self.without_feature} without the feature, {self.not_applicable} not applicable"
        )


def observe(case: Case, site: Site) -> str:
    """Play *case* with *site*, at a provider of its own, and return what was observed."""
    provider = Provider(**as_in_settings(), redirect_uris=REDIRECT_URIS)
    settings = {**site.settings(provider), **case.settings.get(site.name, {})}
    clear_signing_keys()
    clear_pauses()
    with (
        override_settings(ROOT_URLCONF="tests.providers.certification.urls", **settings),
        mount(provider),
    ):
        case.switch(provider)
        visit = Visit(site, provider)
        outcome = case.play(visit)
        complaint = case.complaint(visit) if outcome in case.right else ""
    clear_signing_keys()
    return f"{outcome}, {complaint}" if complaint else outcome


def run(sites: Sequence[Site] = SITES) -> list[Row]:
    """Play every case with each of *sites*."""
    return [{site.name: observe(case, site) for site in sites} for case in CASES]


def is_wrong(case: Case, observed: str) -> bool:
    return observed not in (*case.right, NO_SUCH_FEATURE)


def sums(cases: Sequence[Case], rows: Sequence[Row], site: Site) -> Sums:
    observed = [(case, row[site.name]) for case, row in zip(cases, rows, strict=True)]
    wrong = [outcome for case, outcome in observed if is_wrong(case, outcome)]
    without_feature = sum(outcome == NO_SUCH_FEATURE for _, outcome in observed)
    not_applicable = sum(outcome == DOES_NOT_APPLY for _, outcome in observed)
    return Sums(
        cases=len(observed),
        right=len(observed) - len(wrong) - without_feature - not_applicable,
        wrong=len(wrong),
        crashed=sum(outcome.startswith("error") for outcome in wrong),
        without_feature=without_feature,
        not_applicable=not_applicable,
    )


def table(rows: Sequence[Row]) -> str:
    """Return what was observed as a table for a terminal, with wrong answers marked and sums."""
    lines = [("case", "right", *(site.name for site in SITES))]
    for case, row in zip(CASES, rows, strict=True):
        outcomes = [row[site.name] for site in SITES]
        marked = [f"{one} (WRONG)" if is_wrong(case, one) else one for one in outcomes]
        lines.append((case.name, " or ".join(case.right), *marked))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*text, "", *_totals(rows, ""), ""])


def document(rows: Sequence[Row]) -> str:
    """Return what was observed as docs/evidence/certification.md."""
    observed = {case.name: row for case, row in zip(CASES, rows, strict=True)}
    parts = [INTRODUCTION.format(version=version(PLAIN.name))]
    for title, cases in PLANS.items():
        header = f"| test | the provider | right | {OURS.name} | {PLAIN.name} |"
        lines = [f"## {title}", "", header, "|---|---|---|---|---|"]
        lines += [_line(case, observed[case.name]) for case in cases]
        parts.append("\n".join([*lines, *_notes(cases), ""]))
    totals = [f"- {total}" for total in _totals(rows, "`")]
    return "\n".join([*parts, "## Sums", "", *totals, ""])


def _totals(rows: Sequence[Row], quote: str) -> list[str]:
    parts = {"the suite": (SUITE, rows[: len(SUITE)]), "beside it": (BESIDE, rows[len(SUITE) :])}
    return [
        f"{quote}{site.name}{quote}, {part}: {sums(cases, observed, site)}"
        for part, (cases, observed) in parts.items()
        for site in SITES
    ]


def _line(case: Case, row: Row) -> str:
    outcomes = [row[site.name] for site in SITES]
    marked = [f"**{one}**" if is_wrong(case, one) else one for one in outcomes]
    cells = [f"`{case.name}`", case.provider_does, " or ".join(case.right), *marked]
    return f"| {' | '.join(cells)} |"


def _notes(cases: tuple[Case, ...]) -> list[str]:
    notes = [f"- `{case.name}`: {note}" for case in cases if (note := _note(case))]
    return ["", *notes] if notes else []


def _note(case: Case) -> str:
    texts = [
        f"`{site}` with `{name} = {value!r}`."
        for site, settings in case.settings.items()
        for name, value in settings.items()
    ]
    return " ".join([*texts, case.remark]).strip()
