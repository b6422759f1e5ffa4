"""The pages people see, and the headers they all carry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.http import HttpResponse
from django.template import Context, Engine

# An engine of its own: the pages look the same whatever TEMPLATES the site has, and the site's own
# loaders find none of them.
_ENGINE = Engine(dirs=[str(Path(__file__).parent / "templates")], autoescape=True)

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # With no-referrer a browser would send "Origin: null" with the forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def page(template: str, context: Mapping[str, Any], *, status: int = 200) -> HttpResponse:
    html = _ENGINE.get_template(template).render(Context(dict(context), use_l10n=False))
    return HttpResponse(html, status=status, headers=_HEADERS)


def message(title: str, text: str, *, status: int = 200) -> HttpResponse:
    return page("message.html", {"title": title, "text": text}, status=status)


def redirect(url: str, *, status: int = 302) -> HttpResponse:
    # Django's own redirect refuses the schemes of native apps, which a client may have registered.
    return HttpResponse(status=status, headers={**_HEADERS, "Location": url})
