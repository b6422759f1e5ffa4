"""
The pages that show accounts and transactions.

``non_atomic_requests`` takes them out of ATOMIC_REQUESTS: they write nothing, and no transaction
should stay open while another service answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from everifin_django.decorators import everifin_required
from everifin_django.exceptions import InvalidRequestError, NotFoundError
from everifin_django.request import EverifinRequest
from example_project.chart import by_month
from example_project.forms import TransactionFilter, at_first

ROWS_AT_ONCE = 50
MOST_ROWS = 2000
ROWS_PER_CALL = 100


@never_cache
@require_safe
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "site/home.html")


@never_cache
@require_safe
@transaction.non_atomic_requests
@everifin_required(scopes={"ais"})
def accounts(request: EverifinRequest) -> HttpResponse:
    """Each account the user chose to show, with its balance."""
    return render(request, "site/accounts.html", {"accounts": list(request.everifin.accounts())})


@never_cache
@require_safe
@transaction.non_atomic_requests
@everifin_required(scopes={"ais"})
def account(request: EverifinRequest, account_id: str) -> HttpResponse:
    """What went in and out of one account, newest first, with a picture."""
    filled_in = request.GET.dict() or at_first()
    form = TransactionFilter(filled_in, label_suffix="")
    try:
        shown = request.everifin.account(account_id)
        rows = _transactions(request, account_id, form)
    except NotFoundError:
        return render(request, "404.html", status=404)  # the site's own page, with DEBUG too
    count = _rows_to_show(filled_in)
    context = {
        "account": shown,
        "form": form,
        "rows": rows[:count],
        "total": len(rows),
        "is_cut": len(rows) == MOST_ROWS,
        "chart": by_month(rows, shown.currency or ""),
        "more": _link_to_more(filled_in, count) if len(rows) > count else "",
    }
    return render(request, "site/account.html", context)


def _transactions(request: EverifinRequest, account_id: str, form: TransactionFilter) -> list[Any]:
    if not form.is_valid():
        return []
    found = request.everifin.transactions(account_id, **form.filters(), page_size=ROWS_PER_CALL)
    try:
        return list(islice(found, MOST_ROWS))
    except InvalidRequestError:
        form.add_error(None, "Everifin does not accept these days. Please choose others.")
        return []


def _rows_to_show(filled_in: Mapping[str, str]) -> int:
    text = filled_in.get("show", "")
    asked = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    return max(ROWS_AT_ONCE, asked)


def _link_to_more(filled_in: Mapping[str, str], count: int) -> str:
    query = urlencode({**filled_in, "show": str(count + ROWS_AT_ONCE)})
    return f"?{query}#row-{count + 1}"
