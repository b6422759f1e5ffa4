"""The bank API of the sandbox, entered through requests."""

from collections import Counter
from datetime import datetime, timedelta

import jwt
import pytest
import requests

from everifin_django.testing.adapter import mount
from everifin_django.testing.sandbox import Sandbox, bank, data
from everifin_django.testing.sandbox.data import iban
from tests.testing import NOON, Clock, Site

DAY = 86_400


@pytest.fixture
def token(site: Site):
    return site.tokens()["access_token"]


@pytest.fixture
def account(site: Site, token: str):
    return site.get("/v1/bank-accounts", token).json()["data"][0]


@pytest.fixture
def fetch(site: Site, token: str, account: dict):
    """Give a function that returns one page of alice's transactions."""
    path = f"/v1/bank-accounts/{account['id']}/transactions"
    return lambda **params: site.get(path, token, **params)


@pytest.fixture
def fetch_all(fetch):
    def every(**params) -> list[dict]:
        rows, page = [], 1
        while True:
            answer = fetch(page=page, countPerPage=100, **params).json()
            rows += answer["data"]
            if answer["meta"]["pagination"]["nextPageUrl"] is None:
                return rows
            page += 1

    return every


def error(response: requests.Response) -> tuple[int, str]:
    answer = response.json()
    assert answer["meta"] == {"status": "ERROR"}
    assert answer["errors"][0]["title"]
    return response.status_code, answer["errors"][0]["code"]


def is_valid_iban(text: str) -> bool:
    turned = text[4:] + text[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


class TestAccess:
    @pytest.mark.parametrize("header", [None, "Basic eDp5", "Bearer", "Bearer  ", "token"])
    def test_without_a_bearer_header(self, site, header):
        headers = {"Authorization": header} if header else {}
        answer = requests.get(
            f"{site.sandbox.api_url}/v1/bank-accounts", headers=headers, timeout=5
        )
        assert error(answer) == (401, "INVALID_AUTH_HEADER")

    def test_with_a_token_that_is_none(self, site):
        assert error(site.get("/v1/bank-accounts", "guess")) == (401, "INVALID_ACCESS_TOKEN")

    def test_with_an_expired_token(self, site, token, clock):
        clock.now += 299
        assert site.get("/v1/bank-accounts", token).ok
        clock.now += 1
        assert error(site.get("/v1/bank-accounts", token)) == (401, "INVALID_ACCESS_TOKEN")

    def test_with_a_token_of_another_issuer(self, site, token):
        claims = jwt.decode(token, options={"verify_signature": False})
        forged = site.sandbox.signing_key.sign({**claims, "iss": "https://other.test"})
        assert error(site.get("/v1/bank-accounts", forged)) == (401, "INVALID_ACCESS_TOKEN")

    def test_with_an_unsigned_token(self, site, token):
        claims = jwt.decode(token, options={"verify_signature": False})
        forged = jwt.encode(claims, "", "none")
        assert error(site.get("/v1/bank-accounts", forged)) == (401, "INVALID_ACCESS_TOKEN")

    def test_with_a_refresh_token(self, site):
        answer = site.get("/v1/bank-accounts", site.tokens()["refresh_token"])
        assert error(answer) == (401, "INVALID_ACCESS_TOKEN")

    def test_after_tokens_were_expired_by_hand(self, site, token):
        site.sandbox.expire_access_tokens()
        assert error(site.get("/v1/bank-accounts", token)) == (401, "INVALID_ACCESS_TOKEN")
        assert site.get("/v1/bank-accounts", site.tokens()["access_token"]).ok

    def test_without_the_scope(self, site):
        token = site.tokens(scope="openid pis")["access_token"]
        assert error(site.get("/v1/bank-accounts", token)) == (403, "INVALID_SCOPE")
        assert site.get("/v1/banks", token).ok

    def test_an_unknown_url(self, site, token):
        answer = site.get("/v1/nothing", token)
        assert error(answer) == (404, "NOT_FOUND")
        assert answer.json()["errors"][0]["detail"] == "Invalid URL path: /v1/nothing"

    def test_a_verb_that_is_not_served(self, site):
        answer = requests.post(f"{site.sandbox.api_url}/v1/banks", timeout=5)
        assert error(answer) == (404, "NOT_FOUND")

    def test_both_prefixes_lead_to_the_same(self, site, token):
        assert site.get("/api/v1/banks", token).json() == site.get("/v1/banks", token).json()

    def test_the_end_users_headers_arrive(self, site, token):
        headers = {
            "Authorization": f"Bearer {token}",
            "User-Agent": "Firefox",
            "client-ip-address": "203.0.113.7",
        }
        requests.get(f"{site.sandbox.api_url}/v1/bank-accounts", headers=headers, timeout=5)
        seen = site.sandbox.last_request["api.accounts"].headers
        assert (seen["User-Agent"], seen["client-ip-address"]) == ("Firefox", "203.0.113.7")


class TestAccounts:
    def test_alice_has_three_accounts(self, site, token):
        answer = site.get("/v1/bank-accounts", token).json()
        kinds = [(account["type"], account["currency"]) for account in answer["data"]]
        assert kinds == [("PERSONAL", "EUR"), ("BUSINESS", "EUR"), ("PERSONAL", "CZK")]
        assert answer["meta"]["pagination"]["countTotal"] == 3

    def test_every_account_has_a_valid_iban_of_its_own(self, site):
        rows = [
            account
            for user in ("alice", "bob")
            for account in site.get("/v1/bank-accounts", site.tokens(user)["access_token"]).json()[
                "data"
            ]
        ]
        ibans = {row["iban"] for row in rows}
        assert len(ibans) == len(rows) == len({row["id"] for row in rows}) == 4
        assert all(is_valid_iban(text) for text in ibans)
        assert {text[:2] for text in ibans} == {"SK", "CZ"}

    def test_an_account_has_the_fields_of_the_api(self, account):
        assert account["countryCode"] == "EFT"
        assert account["bban"] == account["iban"][4:]
        assert isinstance(account["id"], str)
        assert {balance["type"] for balance in account["balances"]} == {"CLBD", "ITAV"}
        for balance in account["balances"]:
            assert round(balance["amount"], 2) == balance["amount"]
            assert balance["currency"] == account["currency"]

    def test_the_detail_is_the_same_as_in_the_list(self, site, token, account):
        answer = site.get(f"/v1/bank-accounts/{account['id']}", token).json()
        assert answer == {"meta": {"status": "SUCCESS"}, "data": account}

    def test_somebody_elses_account_is_not_found(self, site, account):
        token = site.tokens("bob")["access_token"]
        for path in ("", "/transactions", "/transactions/1"):
            answer = site.get(f"/v1/bank-accounts/{account['id']}{path}", token)
            assert error(answer) == (404, "DATA_NOT_FOUND")

    def test_the_balance_follows_the_transactions(self, site, account, fetch_all, clock):
        def balance():
            path = f"/v1/bank-accounts/{account['id']}"
            data = site.get(path, site.tokens()["access_token"]).json()["data"]
            return round(data["balances"][0]["amount"] * 100)

        before = balance()
        known = {row["id"] for row in fetch_all()}
        clock.now += 200  # the token of the fixture lives on
        assert balance() == before
        clock.now += 20 * DAY - 200
        token = site.tokens()["access_token"]
        path = f"/v1/bank-accounts/{account['id']}/transactions"
        recent = site.get(path, token, countPerPage=100).json()["data"]
        new = [row for row in recent if row["id"] not in known]
        assert new
        signs = {"IN": 1, "OUT": -1}
        moved = sum(signs[row["direction"]] * round(row["amount"] * 100) for row in new)
        assert balance() == before + moved

    def test_banks_are_listed_under_their_own_country(self, site, token):
        banks = site.get("/v1/banks", token).json()["data"]
        assert {bank["countryCode"] for bank in banks} == {"EFT"}
        assert site.get("/v1/banks", token, countryCode="SVK").json()["data"] == []


class TestManualRefresh:
    @pytest.fixture
    def ask(self, site):
        url = f"{site.sandbox.api_url}/v1/bank-accounts/refresh"
        return lambda token: requests.post(
            url, headers={"Authorization": f"Bearer {token}"}, timeout=5
        )

    def test_it_runs_on_after_the_answer_and_a_second_is_refused(self, ask, token, clock):
        assert ask(token).status_code == 204
        clock.now += bank.REFRESH_SECONDS - 1
        assert error(ask(token)) == (409, "ACCOUNT_REFRESH_ALREADY_RUNNING")
        clock.now += 1
        assert ask(token).status_code == 204

    def test_each_user_has_their_own(self, ask, token, site):
        ask(token)
        assert ask(site.tokens("bob")["access_token"]).status_code == 204

    def test_it_needs_the_scope(self, ask, site):
        assert error(ask(site.tokens(scope="openid pis")["access_token"])) == (403, "INVALID_SCOPE")


class TestTransactions:
    def test_there_are_36_months_of_them(self, fetch_all):
        rows = fetch_all()
        months = Counter(row["bookingDate"][:7] for row in rows)
        assert min(months) == "2023-11"
        assert max(months) == "2026-11"
        assert len(months) == 37
        del months["2026-11"]  # not over yet
        assert all(20 <= count < 60 for count in months.values())

    def test_a_row_has_the_fields_of_the_api(self, fetch):
        row = fetch().json()["data"][0]
        assert set(row) == {
            *("id", "direction", "amount", "currency", "bookingDate", "valueDate", "type"),
            *("counterpartyName", "counterpartyIban", "counterpartyBic", "paymentMessage"),
            *("variableSymbol", "constantSymbol", "specificSymbol", "reference"),
            *("status", "createdAt", "lastUpdated"),
        }

    def test_values_are_of_the_right_kind(self, fetch_all, account):
        rows = fetch_all()
        assert len({row["id"] for row in rows}) == len(rows)
        assert all(row["id"].isdecimal() for row in rows)
        assert {row["direction"] for row in rows} == {"IN", "OUT"}
        assert all(row["amount"] > 0 == round(row["amount"] * 100) % 1 for row in rows)
        assert all(is_valid_iban(row["counterpartyIban"] or account["iban"]) for row in rows)

    def test_the_newest_come_first_and_none_is_of_today(self, fetch_all):
        days = [row["bookingDate"] for row in fetch_all()]
        assert days == sorted(days, reverse=True)
        assert days[0] < "2026-11-23"

    def test_two_sandboxes_agree(self, fetch_all, site, account):
        there = Sandbox(clock=Clock())
        with mount(there):
            other = Site(there)
            path = f"/v1/bank-accounts/{account['id']}/transactions"
            answer = other.get(path, other.tokens()["access_token"], countPerPage=100).json()
        assert answer["data"] == fetch_all()[:100]

    def test_old_rows_were_stored_later_than_newer_ones(self, fetch_all):
        rows = fetch_all()
        assert max(row["lastUpdated"] for row in rows) <= "2026-11-23T12:00:00.000Z"
        history = [row for row in rows if row["bookingDate"] < "2026-09-01"]
        times = [row["createdAt"] for row in history]
        assert times == sorted(times)
        assert times[0] >= "2026-09-01T09:00:00.000Z"
        assert len(set(times)) == len(times)

    def test_a_card_payment_settles_later_under_the_same_id(self, site, fetch, clock, account):
        before = {row["id"]: row for row in fetch().json()["data"]}
        pending = [row for row in before.values() if row["status"] == "PENDING"]
        assert pending
        clock.now += 3 * DAY
        path = f"/v1/bank-accounts/{account['id']}/transactions"
        token = site.tokens()["access_token"]
        after = {row["id"]: row for row in site.get(path, token).json()["data"]}
        for row in pending:
            settled = after[row["id"]]
            assert settled["status"] == "BOOKED"
            assert settled["lastUpdated"] > row["lastUpdated"]
            assert settled["createdAt"] == row["createdAt"]

    def test_incremental_reading_misses_nothing(self, site, fetch_all, clock, account):
        rows = {row["id"]: row for row in fetch_all()}
        newest = max(row["lastUpdated"] for row in rows.values())
        since = datetime.fromisoformat(newest) + timedelta(milliseconds=1)
        clock.now += 10 * DAY
        path = f"/v1/bank-accounts/{account['id']}/transactions"
        token = site.tokens()["access_token"]
        for page in range(1, 20):
            params = {"updatedFrom": since.isoformat(), "page": page, "countPerPage": 100}
            for row in site.get(path, token, **params).json()["data"]:
                rows[row["id"]] = row
        everything = {}
        for page in range(1, 20):
            params = {"page": page, "countPerPage": 100}
            for row in site.get(path, token, **params).json()["data"]:
                everything[row["id"]] = row
        assert everything.items() <= rows.items()

    def test_the_detail_is_the_same_as_in_the_list(self, site, token, account, fetch):
        row = fetch().json()["data"][7]
        path = f"/v1/bank-accounts/{account['id']}/transactions/"
        assert site.get(path + row["id"], token).json()["data"] == row
        assert error(site.get(f"{path}1", token)) == (404, "DATA_NOT_FOUND")

    def test_pages_are_cut_from_a_history_made_once(self, fetch):
        """How fast that is, ``benchmarks.sandbox`` says."""
        fetch()
        made = data.transactions.cache_info().misses
        for page in range(1, 21):
            fetch(page=page)
        assert data.transactions.cache_info().misses == made


class TestFilters:
    def test_by_booking_date(self, fetch_all):
        rows = fetch_all(bookingDateFrom="2026-03-01", bookingDateTo="2026-03-31")
        assert rows
        assert {row["bookingDate"][:7] for row in rows} == {"2026-03"}
        assert rows == [row for row in fetch_all() if row["bookingDate"][:7] == "2026-03"]

    def test_by_value_date(self, fetch_all):
        rows = fetch_all(valueDateFrom="2026-10-10T00:00:00.000Z", valueDateTo="2026-10-10")
        assert {row["valueDate"] for row in rows} == {"2026-10-10T00:00:00.000Z"}

    @pytest.mark.parametrize(
        ("name", "field"), [("updatedFrom", "lastUpdated"), ("createdFrom", "createdAt")]
    )
    def test_from_is_inclusive_in_any_time_zone(self, fetch_all, name, field):
        bound = fetch_all()[30][field]
        expected = [row for row in fetch_all() if row[field] >= bound]
        assert fetch_all(**{name: bound}) == expected
        moment = datetime.fromisoformat(bound)
        shifted = (moment + timedelta(hours=2)).replace(tzinfo=None).isoformat() + "+02:00"
        assert fetch_all(**{name: shifted}) == expected

    def test_by_direction(self, fetch_all):
        incoming, outgoing = fetch_all(direction="IN"), fetch_all(direction="OUT")
        assert {row["direction"] for row in incoming} == {"IN"}
        assert len(incoming) + len(outgoing) == len(fetch_all())

    def test_sorted(self, fetch_all):
        for field in ("amount", "lastUpdated"):
            for order in ("asc", "desc"):
                values = [row[field] for row in fetch_all(sort=f"{field}:{order}")]
                assert values == sorted(values, reverse=order == "desc")

    def test_pages_hold_every_row_once(self, fetch_all, fetch):
        rows = [row for page in range(1, 40) for row in fetch(page=page).json()["data"]]
        assert rows == fetch_all()

    def test_pagination_says_where_one_is(self, fetch):
        meta = fetch(page=2, countPerPage=10).json()["meta"]["pagination"]
        total = meta["countTotal"]
        assert meta == {
            "page": 2,
            "countPerPage": 10,
            "countTotal": total,
            "first": 1,
            "last": -(-total // 10),
            "firstPageUrl": "/?page=1",
            "lastPageUrl": f"/?page={-(-total // 10)}",
            "nextPageUrl": "/?page=3",
            "previousPageUrl": "/?page=1",
        }
        assert fetch(page=1).json()["meta"]["pagination"]["previousPageUrl"] is None
        beyond = fetch(page=9999).json()
        assert (beyond["data"], beyond["meta"]["pagination"]["nextPageUrl"]) == ([], None)

    def test_an_empty_list_has_one_page(self, fetch):
        answer = fetch(createdFrom="2030-01-01").json()
        assert answer["data"] == []
        assert answer["meta"]["pagination"]["last"] == 1

    @pytest.mark.parametrize(
        ("name", "value", "rule"),
        [
            ("direction", "UP", "enum"),
            ("sort", "amount", "enum"),
            ("sort", "iban:asc", "enum"),
            ("sort", "amount:up", "enum"),
            ("updatedFrom", "yesterday", "date"),
            ("updatedFrom", "0001-01-01T00:00:00+14:00", "date"),
            ("bookingDateFrom", "2026-02-30", "date"),
            ("page", "0", "range"),
            ("page", "-1", "number"),
            ("page", "x", "number"),
            ("countPerPage", "101", "range"),
            ("countPerPage", "9" * 50, "number"),
        ],
    )
    def test_a_wrong_value_is_named(self, fetch, name, value, rule):
        answer = fetch(**{name: value})
        assert error(answer) == (422, "REQUEST_VALIDATION_ERROR")
        detail = answer.json()["errors"][0]["detail"]
        assert (detail["rule"], detail["field"]) == (rule, name)
        assert detail["message"] == f"{rule} validation failed on {name}"
        assert isinstance(detail["args"], dict)

    def test_choices_are_given(self, fetch):
        detail = fetch(direction="in").json()["errors"][0]["detail"]
        assert detail["args"] == {"choices": ["IN", "OUT"]}

    def test_an_unknown_parameter_is_refused(self, site, token, fetch):
        answer = fetch(account_types="x")
        assert error(answer) == (422, "REQUEST_VALIDATION_ERROR")
        assert answer.json()["errors"][0]["detail"] == '"account_types" is not allowed'
        answer = site.get("/v1/bank-accounts", token, direction="IN")
        assert answer.status_code == 422


def test_the_history_stays_where_it_is_as_days_go_by(site, fetch_all, clock, account):
    rows = {row["id"]: row for row in fetch_all() if row["status"] == "BOOKED"}
    clock.now = NOON + 40 * DAY
    path = f"/v1/bank-accounts/{account['id']}/transactions"
    token = site.tokens()["access_token"]
    later = {}
    for page in range(1, 20):
        answer = site.get(path, token, page=page, countPerPage=100).json()
        later.update({row["id"]: row for row in answer["data"]})
    kept = {row_id: row for row_id, row in rows.items() if row["bookingDate"] >= "2024-02-01"}
    assert kept.items() <= later.items()


def test_the_iban_of_the_registrys_example_is_computed():
    assert iban("SK", "1200", 19_8742637541) == "SK3112000000198742637541"


class TestPersonas:
    def accounts(self, site: Site, username: str) -> list[dict]:
        token = site.tokens(username)["access_token"]
        found: list[dict] = site.get("/v1/bank-accounts", token).json()["data"]
        return found

    def test_nina_has_no_bank_yet(self, site):
        assert self.accounts(site, "nina") == []

    def test_oto_has_what_a_page_has_to_bear(self, site):
        empty, overdrawn, long = self.accounts(site, "oto")
        token = site.tokens("oto")["access_token"]
        path = f"/v1/bank-accounts/{empty['id']}/transactions"
        assert site.get(path, token).json()["data"] == []
        assert {balance["amount"] for balance in empty["balances"]} == {0}
        assert overdrawn["balances"][0]["amount"] < 0
        assert len(long["name"]) > 80
        assert long["balances"][0]["amount"] > 10**8


class TestWebApp:
    def add(self, site: Site, **fields: str) -> requests.Response:
        given = {"username": "nina", "password": "nina", "bank": "eftdemo2", **fields}
        return requests.post(f"{site.sandbox.idp_url}/", given, timeout=5)

    def test_a_bank_that_is_added_brings_an_account(self, site):
        token = site.tokens("nina")["access_token"]
        page = requests.get(f"{site.sandbox.idp_url}/", timeout=5)
        assert '<option value="eftdemo2">Demo Bank Two</option>' in page.text
        assert "Demo Bank Two is added" in self.add(site).text
        assert "Demo Bank One is added" in self.add(site, bank="eftdemo1").text
        found = site.get("/v1/bank-accounts", token).json()["data"]
        assert [one["bankId"] for one in found] == ["eftdemo2", "eftdemo1"]
        assert site.get(f"/v1/bank-accounts/{found[0]['id']}/transactions", token).json()["data"]

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"password": "x"}, "Invalid username or password."),
            ({"username": "<nobody>"}, "Invalid username or password."),
            ({"bank": "<b>"}, "Choose a bank."),
            ({"bank": ""}, "Choose a bank."),
        ],
    )
    def test_what_cannot_be_is_said_and_adds_nothing(self, site, fields, error):
        page = self.add(site, **fields).text
        assert f'role="alert" id="error">{error}</p>' in page
        assert "<b>" not in page
        token = site.tokens("nina")["access_token"]
        assert site.get("/v1/bank-accounts", token).json()["data"] == []

    def test_a_bank_is_added_once(self, site):
        self.add(site)
        assert "You have added Demo Bank Two before." in self.add(site).text

    def test_a_file_remembers_it(self, tmp_path):
        sandbox = Sandbox(data=str(tmp_path / "sandbox.sqlite3"))
        sandbox.store.add_bank("somebody", "eftdemo3")
        sandbox.store.close()
        again = Sandbox(data=str(tmp_path / "sandbox.sqlite3"))
        assert again.store.added_banks("somebody") == ("eftdemo3",)
