"""The sandbox's payments and its bank page, entered through requests."""

from collections.abc import Callable
from typing import Any

import pytest
import requests

from everifin_django.testing.sandbox import Sandbox
from everifin_django.testing.sandbox import payments as box
from everifin_django.testing.sandbox.data import iban
from tests.testing import Form, Site, query

IBAN = iban("SK", "9991", 7)
BACK = "https://shop.test/back"
SENDER = {"x-ef-sender-ip": "192.0.2.7", "x-ef-sender-user-agent": "Browser"}
SINGLE = {"amount": 12.3, "currency": "EUR", "recipientIban": IBAN, "redirectUrl": BACK}
ITEM = {"amount": 5, "currency": "EUR", "recipientIban": IBAN, "recipientName": "Anna"}

Call = Callable[..., requests.Response]


@pytest.fixture
def call(site: Site) -> Call:
    """Give a function that calls the bank API as alice, who is present."""
    token = site.tokens(scope="ais pis")["access_token"]

    def call(method: str, path: str, json: Any = None, **headers: Any) -> requests.Response:
        sent = {"Authorization": f"Bearer {token}", **SENDER, **headers}
        given = {name: value for name, value in sent.items() if value is not None}
        url = site.sandbox.api_url + path
        return requests.request(method, url, json=json, headers=given, timeout=5)

    return call


@pytest.fixture
def accounts(call: Call) -> dict[str, str]:
    rows = call("GET", "/v1/bank-accounts").json()["data"]
    return {row["bankId"]: row["iban"] for row in rows}


@pytest.fixture
def create(call: Call, accounts: dict[str, str]) -> Callable[..., str]:
    """Give a function that makes a payment from an account at *bank*, and returns its address."""

    def create(bank: str | None = None, **changes: Any) -> str:
        sender = {"senderIban": accounts[bank]} if bank else {}
        answer = call("POST", "/v1/payments/single", {**SINGLE, **sender, **changes})
        return f"/v1/payments/single/{answer.json()['data']['id']}"

    return create


def wrong(answer: requests.Response) -> tuple[int, str, str]:
    detail = answer.json()["errors"][0]["detail"]
    assert set(detail) == {"rule", "field", "message", "args"}
    return answer.status_code, detail["field"], detail["rule"]


class TestCreating:
    @pytest.mark.parametrize(
        ("changes", "field", "rule"),
        [
            ({"amount": None}, "amount", "required"),
            ({"amount": 0}, "amount", "range"),
            ({"amount": "1"}, "amount", "range"),
            ({"amount": True}, "amount", "range"),
            ({"currency": "eur"}, "currency", "regex"),
            ({"recipientIban": IBAN[:-1] + "0"}, "recipientIban", "iban"),
            ({"recipientIban": 7}, "recipientIban", "iban"),
            ({"redirectUrl": "http://localhost/"}, "redirectUrl", "url"),
            ({"redirectUrl": "http://[/"}, "redirectUrl", "url"),
            ({"redirectUrl": 1}, "redirectUrl", "url"),
            ({"paymentDate": "soon"}, "paymentDate", "date"),
            ({"variableSymbol": "1x"}, "variableSymbol", "regex"),
            ({"paymentMessage": "x" * 141}, "paymentMessage", "maxLength"),
            ({"variableSymbol": "1", "reference": "r"}, "reference", "symbolsOrReference"),
            ({"senderIban": IBAN}, "senderIban", "exists"),
        ],
    )
    def test_what_is_wrong_is_named(self, call, changes, field, rule):
        answer = call("POST", "/v1/payments/single", {**SINGLE, **changes})
        assert wrong(answer) == (422, field, rule)

    @pytest.mark.parametrize(
        ("changes", "field", "rule"),
        [
            ({"payments": []}, "payments", "required"),
            ({"payments": "x"}, "payments", "array"),
            ({"payments": [ITEM, {**ITEM, "currency": "CZK"}]}, "payments", "sameCurrency"),
            ({"payments": [ITEM, 7]}, "payments.1.amount", "required"),
            ({"name": ""}, "name", "required"),
            ({"senderIban": None}, "senderIban", "required"),
        ],
    )
    def test_what_is_wrong_in_a_bulk_is_named(self, call, accounts, changes, field, rule):
        sent = {"name": "Pay", "senderIban": accounts["eftdemo1"], "redirectUrl": BACK}
        answer = call("POST", "/v1/payments/bulk", {**sent, "payments": [ITEM], **changes})
        assert wrong(answer) == (422, field, rule)

    def test_a_body_that_is_no_object_is_refused(self, call, site):
        answer = call("POST", "/v1/payments/single", [1])
        assert answer.json()["errors"][0]["code"] == "INPUT_DATA_ERROR"
        token = site.tokens(scope="pis")["access_token"]
        url = f"{site.sandbox.api_url}/v1/payments/single"
        headers = {"Authorization": f"Bearer {token}"}
        answer = requests.post(url, data="{", headers=headers, timeout=5)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "INPUT_DATA_ERROR")

    def test_a_token_for_reading_does_not_pay(self, site):
        answer = site.get("/v1/payments/single", site.tokens()["access_token"])
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, "INVALID_SCOPE")

    def test_the_list_has_the_newest_first(self, call, create):
        first, second = create(), create(externalId="mine")
        rows = call("GET", "/v1/payments/single").json()["data"]
        assert [f"/v1/payments/single/{row['id']}" for row in rows] == [second, first]
        assert rows[0]["externalId"] == "mine"

    @pytest.mark.parametrize("which", ["999", "abc", "1" * 12])
    def test_there_is_no_other_payment(self, call, which):
        assert call("GET", f"/v1/payments/single/{which}").status_code == 404

    def test_a_single_payment_is_no_bulk(self, call, create):
        assert call("GET", create().replace("single", "bulk")).status_code == 404

    def test_a_payment_outlives_the_sandbox_that_has_a_file(self, tmp_path):
        file = str(tmp_path / "sandbox.sqlite3")
        first = Sandbox(data=file)
        number = first.store.add_payment("sub", "single", {"status": "CREATED"})
        first.store.close()
        kept = Sandbox(data=file).store.payment(number)
        assert kept is not None
        assert kept.document == {"status": "CREATED"}


class TestProcessing:
    @pytest.mark.parametrize("header", SENDER)
    def test_the_person_present_has_to_be_named(self, call, create, header):
        answer = call("PATCH", create("eftdemo3"), {}, **{header: None})
        assert wrong(answer) == (422, header, "required")

    def test_push_then_next_then_the_end(self, call, create):
        path = create("eftdemo3")
        answers = [call("PATCH", path).json()["data"] for _ in range(3)]
        assert [one.get("type") for one in answers] == ["PUSH", "NEXT", None]
        assert answers[-1]["status"] == "FINISHED"
        again = call("PATCH", path)
        assert (again.status_code, again.json()["errors"][0]["code"]) == (400, "NOT_EDITABLE")

    def test_inputs_in_the_clear_are_taken(self, call, create):
        path = create("eftdemo2")
        asked = call("PATCH", path).json()["data"]
        assert [one["name"] for one in asked["inputSet"]] == ["userId", "userPassword"]
        assert wrong(call("PATCH", path, {"userId": "a"})) == (422, "userPassword", "required")
        asked = call("PATCH", path, {"userId": "a", "userPassword": "b"}).json()["data"]
        assert asked["input"]["type"] == "IMAGE"
        assert wrong(call("PATCH", path, {"otp": box.WRONG_OTP})) == (422, "otp", "otp")
        assert call("PATCH", path, {"otp": "1"}).json()["data"]["status"] == "FINISHED"

    def test_only_one_way_to_encrypt_is_known(self, call, create):
        path, header = create("eftdemo2"), "x-user-data-encryption-method"
        call("PATCH", path)
        login = {"userId": "a", "userPassword": "b"}
        assert wrong(call("PATCH", path, login, **{header: "RSA1_5"})) == (422, header, "enum")
        answer = call("PATCH", path, login, **{header: box.ENCRYPTION})
        assert wrong(answer) == (422, "userId", "encrypted")

    def test_without_a_sender_the_account_is_asked_for(self, call, create, accounts):
        path = create()
        field = call("PATCH", path).json()["data"]["input"]
        assert {one["value"] for one in field["selectOptions"]} == set(accounts.values())
        assert wrong(call("PATCH", path, {"account": IBAN})) == (422, "account", "enum")
        step = call("PATCH", path, {"account": accounts["eftdemo3"]}).json()["data"]
        assert step["type"] == "PUSH"
        assert call("GET", path).json()["data"]["senderIban"] == accounts["eftdemo3"]

    @pytest.mark.parametrize(
        ("recipient", "status"), [(box.FAILED_IBAN, "FAILED"), (IBAN, "FINISHED")]
    )
    def test_the_recipient_decides_the_end(self, call, create, recipient, status):
        path = create("eftdemo3", recipientIban=recipient)
        for _ in range(3):
            answer = call("PATCH", path)
        assert answer.json()["data"]["status"] == status
        assert call("GET", path).json()["data"]["status"] == status

    def test_a_slow_bank_answers_next_for_a_while(self, call, create):
        path = create("eftdemo3", recipientIban=box.SLOW_IBAN)
        answers = [call("PATCH", path).json()["data"] for _ in range(3 + box.SLOW_STEPS)]
        assert [one["status"] for one in answers[2:]] == ["PROCESSING"] * 3 + ["FINISHED"]

    def test_of_two_calls_at_once_only_one_moves_the_payment(self, site, call, create):
        create()
        (payment,) = site.sandbox.store.payments(site.sandbox.user("alice").sub, "single")
        changed = {**payment.document, "status": "FAILED"}
        assert site.sandbox.store.change_payment(payment, changed)
        assert not site.sandbox.store.change_payment(payment, {**payment.document, "status": "X"})

    def test_a_call_that_was_overtaken_is_refused(self, site, call, create, monkeypatch):
        path = create("eftdemo3")
        monkeypatch.setattr(site.sandbox.store, "change_payment", lambda *_: False)
        assert call("PATCH", path).json()["errors"][0]["code"] == "NOT_EDITABLE"


class TestBankPage:
    @pytest.fixture
    def path(self, create):
        return create("eftdemo1", recipientName="<Anna>", redirectUrl=f"{BACK}?order=7")

    @pytest.fixture
    def url(self, call, path):
        step = call("PATCH", path).json()["data"]
        assert (step["type"], step["status"]) == ("REDIRECT", "CREATED")
        return step["redirectUrl"]

    def decide(self, url: str, answer: str) -> dict[str, str]:
        page = requests.get(url, timeout=5)
        assert "12.30 EUR" in page.text
        assert "&lt;Anna&gt;" in page.text
        back = Form(page, "payment").submit(**{answer: "x"})
        assert back.status_code == 303
        assert back.headers["Location"].startswith(f"{BACK}?order=7&")
        return query(back.headers["Location"])

    def test_who_confirms_pays(self, call, path, url):
        returned = self.decide(url, "confirm")
        assert call("PATCH", path, returned).json()["data"]["status"] == "FINISHED"

    def test_who_refuses_does_not(self, call, path, url):
        returned = self.decide(url, "refuse")
        assert returned["error"] == "access_denied"
        assert call("PATCH", path, returned).json()["data"]["status"] == "FAILED"

    def test_before_the_payer_decides_nothing_moves(self, call, path, url):
        step = call("PATCH", path, {"code": "forged", "state": "forged"}).json()["data"]
        assert (step["type"], step["redirectUrl"]) == ("REDIRECT", url)

    def test_a_query_that_is_not_the_bank_s_is_refused(self, call, path, url):
        returned = self.decide(url, "refuse")
        forged = {"state": returned["state"], "status": "ok"}
        assert wrong(call("PATCH", path, forged)) == (422, "error", "required")
        assert call("GET", path).json()["data"]["status"] == "CREATED"

    def test_the_bank_hears_one_answer(self, url):
        page = requests.get(url, timeout=5)
        form = Form(page, "payment")
        form.submit(confirm="x")
        assert form.submit(refuse="x").status_code == 409
        assert requests.get(url, timeout=5).status_code == 409

    def test_an_answer_that_was_overtaken_is_none(self, site, url, monkeypatch):
        form = Form(requests.get(url, timeout=5), "payment")
        monkeypatch.setattr(site.sandbox.store, "change_payment", lambda *_: False)
        assert form.submit(confirm="x").status_code == 409

    def test_who_does_not_come_from_everifin_sees_nothing(self, site, url, path):
        number = path.rpartition("/")[2]
        for address in (f"{url}x", f"{site.sandbox.idp_url}/_bank/{number}", f"{url}9999"):
            assert requests.get(address, timeout=5).status_code == 404
        unknown = f"{site.sandbox.idp_url}/_bank/9999?state=x"
        assert requests.get(unknown, timeout=5).status_code == 404

    def test_before_it_is_processed_a_payment_has_no_page(self, site, create):
        number = create("eftdemo1").rpartition("/")[2]
        answer = requests.get(f"{site.sandbox.idp_url}/_bank/{number}?state=", timeout=5)
        assert answer.status_code == 404


def test_a_bulk_shows_its_items(call, accounts):
    sent = {"name": "Pay", "senderIban": accounts["eftdemo1"], "redirectUrl": BACK}
    items = [ITEM, {**ITEM, "amount": 0.1, "recipientIban": box.FAILED_IBAN}]
    made = call("POST", "/v1/payments/bulk", {**sent, "payments": items})
    path = f"/v1/payments/bulk/{made.json()['data']['id']}"
    url = call("PATCH", path).json()["data"]["redirectUrl"]
    page = requests.get(url, timeout=5)
    assert box.FAILED_IBAN in page.text
    returned = query(Form(page, "payment").submit(confirm="x").headers["Location"])
    assert call("PATCH", path, returned).json()["data"]["status"] == "PARTIALLY_PAID"
    seen = call("GET", path).json()["data"]
    assert [one["status"] for one in seen["payments"]] == ["FINISHED", "FAILED"]
    assert (seen["totalAmount"], seen["allPaymentsCount"]) == (5.1, 2)
    assert call("GET", "/v1/payments/bulk").json()["data"] == [seen]
