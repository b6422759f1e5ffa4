"""
What another web page makes a browser do is refused: by its Origin, and by the host it has asked for
(a name that was pointed at this machine after the page was loaded, called DNS rebinding).

The sandbox lets anybody in who can reach it, so any page that its developer opens could use it.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from django.http import HttpRequest, HttpResponse

from everifin_django.testing.sandbox.pages import message
from everifin_django.testing.sandbox.state import State

WITH_FORMS = frozenset({"control", "login", "registration", "consent", "bank_page"})
"""What only the sandbox's own pages send. Programs send no Origin."""


def refusal(state: State, request: HttpRequest, name: str) -> HttpResponse | None:
    """Return the answer to a request that is to be refused, None for all others."""
    host = request.META.get("HTTP_HOST", "")
    if not _is_own(state, host):
        text = (
            f"This sandbox is not called {host[:100]}. If it is to be, start it with "
            "--url http://… and that name."
        )
        return message("Wrong address", text, status=421)
    origin = request.headers.get("Origin")
    is_foreign = origin is not None and urlsplit(origin).netloc != host
    if name in WITH_FORMS and request.method not in ("GET", "HEAD") and is_foreign:
        text = "This came from a page of another site. Nothing was done."
        return message("Not from here", text, status=403)
    return None


def _is_own(state: State, host: str) -> bool:
    """An IP address is no name that could be pointed elsewhere."""
    name = _name_in(host)
    own = {urlsplit(url).hostname for url in (state.idp_url, state.api_url)}
    return name in own or name == "localhost" or _is_ip(name)


def _name_in(host: str) -> str:
    """The name in a Host header, without the port; empty for what is none."""
    if not host.isascii() or not host.isprintable() or set(host) & set("@/\\?# "):
        return ""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_ip(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
