"""Every certification test comes out right for us, and docs/evidence/certification.md says so."""

from importlib.metadata import version

import pytest

from tests.providers.certification import matrix
from tests.providers.certification.cases import BASIC, CONFIG, FAPI, OIDCC, REFRESH, Case
from tests.providers.certification.plans import CASES, SUITE
from tests.providers.certification.sites import NO_SUCH_FEATURE, OURS, PLAIN, REFUSED

pytestmark = pytest.mark.django_db

REASONS = {
    f"{OIDCC}-invalid-iss": "token_invalidissuer",
    f"{OIDCC}-missing-sub": "token_missingrequiredclaim",
    f"{OIDCC}-invalid-aud": "id_token_audience",
    f"{OIDCC}-missing-iat": "token_missingrequiredclaim",
    f"{OIDCC}-kid-absent-multiple-jwks": "token_key",
    f"{OIDCC}-idtoken-sig-none": "token_header",
    f"{OIDCC}-invalid-sig-rs256": "token_invalidsignature",
    f"{OIDCC}-nonce-invalid": "id_token_nonce",
    f"{OIDCC}-missing-aud": "token_missingrequiredclaim",
    f"{OIDCC}-invalid-sig-es256": "token_invalidsignature",
    f"{OIDCC}-invalid-sig-hs256": "token_header",
    f"{OIDCC}-invalid-athash": "id_token_at_hash",
    f"{FAPI}-invalid-authorization-response-iss": "issuer_foreign",
    f"{FAPI}-remove-authorization-response-iss": "issuer_missing",
    f"{FAPI}-ensure-authorization-response-with-invalid-state-fails": "state_unknown",
    f"{FAPI}-ensure-authorization-response-with-invalid-missing-state-fails": "state_missing",
    f"{FAPI}-invalid-secondary-aud": "id_token_audience",
    f"{FAPI}-invalid-missing-exp": "token_missingrequiredclaim",
    f"{FAPI}-invalid-expired-exp": "token_expiredsignature",
    "another-issuer-everywhere": "issuer_foreign",
}
"""What our security log says of each login refused, so that nothing else is the cause of it."""


def without_comparison(page: str) -> list[str]:
    """Return the rows of the tables on *page* as far as they are about us."""
    return [line.rsplit("|", 2)[0] for line in page.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_we_do_what_is_right(case: Case, caplog):
    assert matrix.observe(case, OURS) == case.right[0]
    if case.name in REASONS:
        assert f"stopped: {REASONS[case.name]}." in caplog.text


@pytest.mark.exhaustive
def test_the_page_says_what_is_observed():
    """What another version of mozilla-django-oidc does is not ours to answer for."""
    page = matrix.DOCUMENT.read_text(encoding="utf-8")
    if f"{PLAIN.name} {version(PLAIN.name)}," in page:
        assert page == matrix.document(matrix.run())
    else:
        rows = [{**row, PLAIN.name: "not played"} for row in matrix.run([OURS])]
        assert without_comparison(page) == without_comparison(matrix.document(rows))


class TestTable:
    def test_each_case_has_a_name_of_its_own(self):
        names = {case.name for case in CASES}
        assert len(names) == len(CASES)
        assert names >= {*REASONS}

    def test_sums(self):
        rows = [dict.fromkeys((OURS.name, PLAIN.name), case.right[0]) for case in CASES]
        rows[0][PLAIN.name] = REFUSED
        rows[1][PLAIN.name] = "error 500"
        rows[2][PLAIN.name] = NO_SUCH_FEATURE
        total, beside = len(SUITE), len(CASES) - len(SUITE)
        assert matrix.sums(SUITE, rows[:total], OURS) == matrix.Sums(total, total - 2, 0, 0, 0, 2)
        assert matrix.sums(SUITE, rows[:total], PLAIN) == matrix.Sums(total, total - 5, 2, 1, 1, 2)
        printed = matrix.table(rows)
        assert printed.count("(WRONG)") == 2
        assert f"{PLAIN.name}, the suite: {total} cases: {total - 5} right, 2 wrong" in printed
        assert f"{PLAIN.name}, beside it: {beside} cases: {beside} right, 0 wrong" in printed
        page = matrix.document(rows)
        assert page.count("| **refused** |") == page.count("| **error 500** |") == 1

    @pytest.mark.parametrize(
        ("case", "observed", "is_wrong"),
        [
            (BASIC[0], "logged in", False),
            (BASIC[0], "logged in as another", True),
            (BASIC[1], "refused, but asks UserInfo", True),
            (BASIC[6], "logged in", False),
            (CONFIG[1], "logged in", True),
            (REFRESH[0], NO_SUCH_FEATURE, False),
        ],
    )
    def test_what_counts_as_wrong(self, case, observed, is_wrong):
        assert matrix.is_wrong(case, observed) is is_wrong


def test_a_right_outcome_is_looked_at_closer():
    """The same login, but looked at as if something else had been asked for."""
    closer = {case.name: case.complaint for case in CASES}
    expected = {
        f"{OIDCC}-client-secret-basic": "logged in, without Basic",
        f"{FAPI}-invalid-authorization-response-iss": "logged in, but redeems the code",
    }
    for name, outcome in expected.items():
        case = Case(name=name, provider_does="", right=("logged in",), complaint=closer[name])
        assert matrix.observe(case, OURS) == outcome
