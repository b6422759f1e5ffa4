"""
Answers of the bank API that are whole and odd: what servers of this kind were seen to send, or may
send without breaking a word that Everifin documents.

=================== ============================================================================
odd                 what becomes of the answer
=================== ============================================================================
``no_pagination``   nothing is said about pages
``other_names``     pagination has names that nobody documents
``empty_page``      the page comes without rows; what it says about pages stays
``capped_pages``    no page has more than five rows, whatever was asked for
``same_page``       the number of the page is ignored: each time the first one comes
``string_numbers``  every number comes as a string of digits
``nul``             every string of a row ends in a NUL
``null_amounts``    every amount is null
``bad_dates``       every date and datetime is 0000-00-00
``no_external_ids`` payments do not tell their external ids
=================== ============================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse

PAGE_ROWS = 5

Document = dict[str, Any]


def ask(odd: tuple[str, ...], request: HttpRequest) -> None:
    """Change what *request* asks for, as the server that it meets would."""
    changes = [_QUERIES[name] for name in odd if name in _QUERIES]
    if changes:
        query = request.GET.copy()
        for change in changes:
            change(query)
        request.GET = query  # type: ignore[assignment]


def disguise(odd: tuple[str, ...], response: HttpResponse) -> HttpResponse:
    """Return *response* with its JSON changed; one without data stays as it is."""
    changes = [_ANSWERS[name] for name in odd if name in _ANSWERS]
    if not changes or response.status_code != 200:
        return response
    document = json.loads(response.content)
    for change in changes:
        document = change(document)
    response.content = json.dumps(document).encode()
    return response


def _cap(query: Any) -> None:
    query["countPerPage"] = str(min(PAGE_ROWS, int(query.get("countPerPage", PAGE_ROWS))))


def _first_page(query: Any) -> None:
    query["page"] = "1"


def _no_pagination(document: Document) -> Document:
    return {**document, "meta": {"status": "SUCCESS"}}


def _other_names(document: Document) -> Document:
    told = document["meta"].get("pagination", {})
    other = {
        "current": told.get("page"),
        "pages": told.get("last"),
        "next": told.get("nextPageUrl"),
    }
    return {**document, "meta": {"status": "SUCCESS", "pagination": other}}


def _empty_page(document: Document) -> Document:
    return {**document, "data": []}


def _in_all(change: Callable[[str, Any], Any]) -> Callable[[Document], Document]:
    """Return the function that changes each value of a document by its name."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: change(name, walk(inner)) for name, inner in value.items()}
        return [walk(inner) for inner in value] if isinstance(value, list) else value

    return lambda document: {**document, "data": walk(document["data"])}


def _string_numbers(document: Document) -> Document:
    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: walk(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else value

    return {name: walk(inner) for name, inner in document.items()}


_KEPT = frozenset({"id", "direction", "status", "type", "currency"})
_QUERIES: Mapping[str, Callable[[Any], None]] = {"capped_pages": _cap, "same_page": _first_page}
_ANSWERS: Mapping[str, Callable[[Document], Document]] = {
    "no_pagination": _no_pagination,
    "other_names": _other_names,
    "empty_page": _empty_page,
    "string_numbers": _string_numbers,
    "nul": _in_all(lambda n, v: f"{v}\0" if isinstance(v, str) and _is_words(n) else v),
    "null_amounts": _in_all(lambda n, v: None if n == "amount" else v),
    "bad_dates": _in_all(lambda n, v: "0000-00-00" if v and _is_time(n) else v),
    "no_external_ids": _in_all(lambda n, v: None if n == "externalId" else v),
}
ODDITIES = frozenset({*_QUERIES, *_ANSWERS})


def _is_words(name: str) -> bool:
    return name not in _KEPT and not _is_time(name)


def _is_time(name: str) -> bool:
    return name.endswith(("Date", "At", "Updated"))
