"""
Everifin's web app, as far as a site sends its users there: to add a bank.

That banks are added there, by country and bank, is documented; this page is an invention. It asks
for the login each time, and the user goes back to the site by themselves, as at Everifin.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from everifin_django.testing.sandbox import data
from everifin_django.testing.sandbox.pages import message, page
from everifin_django.testing.sandbox.state import State


def home(state: State, request: HttpRequest) -> HttpResponse:
    return _add_bank(state, request) if request.method == "POST" else _page(state)


def _add_bank(state: State, request: HttpRequest) -> HttpResponse:
    username = request.POST.get("username", "").strip().lower()
    user = state.check_password(username, request.POST.get("password", ""))
    if user is None:
        return _page(state, error="Invalid username or password.")
    chosen = {bank.id: bank for bank in data.BANKS}.get(request.POST.get("bank", ""))
    if chosen is None:
        return _page(state, error="Choose a bank.")
    if not state.store.add_bank(user.sub, chosen.id):
        return _page(state, error=f"You have added {chosen.name} before.")
    text = f"{chosen.name} is added to the Everifin account of {user.name}. Go back to the site."
    return message("Your bank is added", text)


def _page(state: State, *, error: str = "") -> HttpResponse:
    context = {"title": "Add a bank", "demo_logins": state.demo_logins, "error": error}
    return page("web_app.html", {**context, "banks": data.BANKS, "country": data.COUNTRY})
