"""To pay by the example's pages, from the account at the bank that asks in the way wanted."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from everifin_django.testing.sandbox import data
from tests.browser.visitor import Tab

ACCOUNTS = {"One": "Everyday account", "Two": "Business account", "Three": "Prague account"}
"""By the demo bank: it redirects, asks for inputs, asks for a confirmation in its app."""


def fill_in(tab: Tab, bank: str) -> None:
    """Fill in the form; stop where the site asks whether it is right."""
    tab.open("/pay/")
    tab.page.get_by_label(re.compile(ACCOUNTS[bank])).check()
    for name, value in {
        "recipient_name": "Shop",
        "recipient_iban": data.iban("SK", "0900", 77),
        "amount": "12,30",
    }.items():
        tab.page.locator(f"[name={name}]").fill(value)
    tab.press("Next")


def confirmed(tab: Tab, bank: str) -> str:
    """Pay; return the path of the payment's page, at which the tab may be or not any more."""
    fill_in(tab, bank)
    with tab.page.expect_response("**/everifin/payments/*/") as response:
        tab.button("Confirm and go to the bank").click()
    return urlsplit(response.value.url).path


def made(tab: Tab) -> list[str]:
    """Return the states of the payments that the sandbox has of this person."""
    sandbox = tab.profile.served.sandbox
    sub = sandbox.user(tab.profile.person).sub
    return [one.document["status"] for one in sandbox.store.payments(sub, "single")]
