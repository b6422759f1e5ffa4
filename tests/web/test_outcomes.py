"""An answer from Everifin in every case there is: one outcome, one sentence, no page lost."""

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.test import Client

from everifin_django.models import LoginFlow
from everifin_django.testing.fake import redirect_target
from everifin_django.web.login_flow import FlowKind
from everifin_django.web.notices import NOTICES
from everifin_django.web.outcomes import OUTCOMES, FlowState, LoggedIn, Outcome, Step, outcome_of
from tests.support.flows import change_flows

CALLBACK = "/everifin/callback/"
NEXT = "/plain/?a=" + "x" * 2500
EXPLANATION = Path(__file__).parents[2] / "docs/explanation/login.md"
CELLS = [
    (kind or begun, state, who, answer)
    for kind, state, who in OUTCOMES
    for begun in ([kind] if kind else (FlowKind.LOGIN, FlowKind.CONNECT))
    for answer in ("code", "error")
]

pytestmark = pytest.mark.django_db


@pytest.fixture
def users(django_user_model):
    make = django_user_model.objects.create_user
    return {LoggedIn.SAME: make("ann"), LoggedIn.ANOTHER: make("eve")}


def log_in(client: Client, user) -> None:
    """As *user*, or as nobody; the other cookies stay."""
    client.cookies.pop("sessionid", None)
    if user is not None:
        client.force_login(user)


@pytest.mark.parametrize("cell", CELLS, ids=["-".join(map(str, cell)) for cell in CELLS])
def test_a_cell(everifin, client, users, cell):
    kind, state, who, answer = cell
    is_known = state != FlowState.UNKNOWN
    outcome = outcome_of(kind if is_known else None, state, who, is_error=answer == "error")
    log_in(client, users[LoggedIn.SAME] if kind == FlowKind.CONNECT else None)
    url = redirect_target(client.post(f"/everifin/{kind}/", {"next": NEXT}))
    if answer == "code":
        back = everifin.authorize(url)
    else:
        [named] = parse_qs(urlsplit(url).query)["state"]
        back = f"{CALLBACK}?{urlencode({'state': named, 'error': 'access_denied'})}"
    bring_about(state, client, back)
    log_in(client, users.get(who))
    before = str(client.cookies.get("sessionid"))

    response = client.get(back)
    assert everifin.calls["token"] == (outcome.step == Step.EXCHANGE)
    if outcome.step in (Step.EXCHANGE, Step.LEAD_ON):
        assert response["Location"] == NEXT
    elif outcome.step == Step.TELL:
        path, _, given = response["Location"].partition("?")
        assert path == f"/everifin/{kind}/"
        assert parse_qs(given) == {"next": [NEXT], "notice": ["cancelled"]}
    else:
        assert_is_told(response, outcome, NEXT if is_known else "")
    if outcome.step != Step.EXCHANGE:
        assert "sessionid" not in response.cookies
        assert str(client.cookies.get("sessionid")) == before


def bring_about(state: FlowState, client: Client, back: str) -> None:
    if state == FlowState.SPENT:
        client.get(back.replace("code=", "error=access_denied&x="))
    elif state == FlowState.UNKNOWN:
        LoginFlow.objects.all().delete()
    elif state == FlowState.TOO_OLD:
        change_flows(started=0.0)
    elif state == FlowState.OTHER_HOST:
        # Begun at www.testserver, whose cookies this host does not get.
        change_flows(host="www.testserver")
        client.cookies.clear()


def assert_is_told(response, outcome: Outcome, next_url: str) -> None:
    notice = NOTICES[outcome.notice]
    page = html.unescape(response.content.decode())
    assert response.status_code == 400
    assert f"<h1>{notice.title}</h1>" in page
    assert str(notice.text) in page
    [way_on] = re.findall(r'<a href="([^"]+)" class="everifin-button">', page)
    assert next_url in everything_in(way_on)


def everything_in(url: str) -> list[str]:
    """The values of a URL's query, and of the URLs in it; an empty string if there are none."""
    values = [value for values in parse_qs(urlsplit(url).query).values() for value in values]
    return ["", *values, *(inner for value in values for inner in everything_in(value)[1:])]


def test_a_flow_that_really_began_at_another_host(everifin, client, settings, caplog):
    settings.ALLOWED_HOSTS = ["testserver", "www.testserver"]
    settings.EVERIFIN_REDIRECT_URI = "https://testserver/everifin/callback/"
    www = {"headers": {"host": "www.testserver"}, "secure": True}
    begun = client.post("/everifin/login/", {"next": "/plain/"}, **www)
    response = Client().get(everifin.authorize(redirect_target(begun)), secure=True)
    assert "<h1>You came back to another address of this site</h1>" in response.content.decode()
    assert "EVERIFIN_REDIRECT_URI" in caplog.text
    # Where the cookies are of both hosts, the answer is good.
    back = everifin.authorize(redirect_target(client.post("/everifin/login/", **www)))
    assert client.get(back, secure=True).status_code == 302


def test_every_refusal_has_a_sentence_of_its_own():
    refusals = {
        cell.code.reason: cell.code.notice
        for cell in OUTCOMES.values()
        if cell.code.step == Step.REFUSE
    }
    texts = [str(NOTICES[notice].text) for notice in refusals.values()]
    assert len(set(texts)) == len(refusals) == 6


def test_there_is_a_cell_for_each_case():
    flows = [state for state in FlowState if state != FlowState.UNKNOWN]
    expected: set[Any] = {
        (None, FlowState.UNKNOWN, who) for who in (LoggedIn.NOBODY, LoggedIn.ANOTHER)
    }
    for state in flows:
        # A login is begun by nobody.
        expected |= {(FlowKind.LOGIN, state, who) for who in (LoggedIn.NOBODY, LoggedIn.ANOTHER)}
        expected |= {(FlowKind.CONNECT, state, who) for who in LoggedIn}
    assert OUTCOMES.keys() == expected


def test_the_explanation_shows_the_table():
    rows = re.findall(r"^\| (login|connect|any) \|.*$", EXPLANATION.read_text(), re.MULTILINE)
    assert len(rows) == len(OUTCOMES)
    for (kind, state, who), cell in OUTCOMES.items():
        named = "somebody" if who == LoggedIn.ANOTHER and kind != FlowKind.CONNECT else str(who)
        words = [kind or "any", str(state), named, said(cell.code), said(cell.error)]
        assert f"| {' | '.join(words)} |" in EXPLANATION.read_text()


def said(outcome: Outcome) -> str:
    return f"“{NOTICES[outcome.notice].title}”" if outcome.notice else str(outcome.step)
