"""
OpenTelemetry: spans and metrics of requests to Everifin, of refreshes, and of what becomes of
connections.

Needs the extra ``otel``. Nothing is recorded, and OpenTelemetry not imported, until a site calls
``instrument``. No attribute names a user, a connection or a bank account, and no trace context is
sent to Everifin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from django.dispatch import Signal
from opentelemetry import context, metrics, trace

from everifin_django import __version__, instrumentation, signals
from everifin_django.conf import conf

__all__ = ["instrument", "uninstrument"]

EVENTS: Mapping[str, Signal] = {
    name: getattr(signals, name)
    for name in (
        "client_refused",
        "connection_degraded",
        "connection_recovered",
        "consent_expired",
        "everifin_connected",
        "everifin_disconnected",
        "refresh_failed",
        "token_refreshed",
    )
}
IDP_ENDPOINTS = ("token", "logout", "certs", "userinfo")
UID = "everifin_django.contrib.opentelemetry"
KINDS = {"request": trace.SpanKind.CLIENT, "refresh": trace.SpanKind.INTERNAL}
HOW_LONG = {
    "request": "One HTTP request to Everifin, until its whole answer is read.",
    "refresh": "Asking for new tokens of a connection: one request, or two.",
}

Attributes = dict[str, str | int]


def instrument(
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> None:
    """
    Record spans and metrics from now on, with the given providers or OpenTelemetry's global ones.

    For ``AppConfig.ready()`` of the site. A second call replaces the first.
    """
    uninstrument()
    recorder = _Recorder(
        trace.get_tracer(UID, __version__, tracer_provider),
        metrics.get_meter(UID, __version__, meter_provider),
    )
    _active.append(recorder)
    instrumentation.add_observer(recorder.observe)
    for name, signal in EVENTS.items():
        signal.connect(recorder.counts(name), weak=False, dispatch_uid=UID)


def uninstrument() -> None:
    """Record nothing any more."""
    for signal in EVENTS.values():
        signal.disconnect(dispatch_uid=UID)
    while _active:
        instrumentation.remove_observer(_active.pop().observe)


class _Recorder:
    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._durations = {
            name: meter.create_histogram(f"everifin.{name}.duration", "s", description)
            for name, description in HOW_LONG.items()
        }
        self._events = meter.create_counter(
            "everifin.connection.events", "{event}", "What became of connections, by signal."
        )

    def observe(self, name: str, facts: instrumentation.Facts) -> Callable[[], None]:
        begun = _attributes(facts)
        span = self._tracer.start_span(_title(name, begun), kind=KINDS[name], attributes=begun)
        token, start = context.attach(trace.set_span_in_context(span)), perf_counter()

        def end() -> None:
            context.detach(token)
            attributes = {**begun, **_outcome(facts)}
            span.set_attributes(attributes)
            if "error.type" in attributes:
                span.set_status(trace.StatusCode.ERROR)
            span.end()
            self._durations[name].record(perf_counter() - start, attributes)

        return end

    def counts(self, name: str) -> Callable[..., None]:
        """Return a receiver that counts the signal *name*. It looks at no user."""

        def count(sender: Any, reason: str = "", **kwargs: Any) -> None:
            self._events.add(1, {"everifin.event": name, "everifin.reason": reason})

        return count


_active: list[_Recorder] = []


def _title(name: str, attributes: Attributes) -> str:
    """The name of a span: ``GET accounts``, or ``everifin refresh``."""
    if "everifin.endpoint" not in attributes:
        return f"everifin {name}"
    return f"{attributes['http.request.method']} {attributes['everifin.endpoint']}"


def _attributes(facts: instrumentation.Facts) -> Attributes:
    if "url" not in facts:
        return {}
    return {
        "http.request.method": facts["method"],
        "everifin.endpoint": _endpoint(facts["url"]),
        "server.address": urlsplit(facts["url"]).hostname or "",
    }


def _outcome(facts: instrumentation.Facts) -> Attributes:
    found: Attributes = {}
    status = facts.get("status")
    if status is not None:
        found["http.response.status_code"] = status
    if "error" in facts:
        found["error.type"] = facts["error"]
    elif status is not None and status >= 400:
        found["error.type"] = str(status)
    return found


def _endpoint(url: str) -> str:
    """
    The name of the endpoint of the identity provider, or of the path in EVERIFIN_API_PATHS; the URL
    itself would have the ids of bank accounts in it.
    """
    names = [name for name in IDP_ENDPOINTS if url == conf.endpoint(name)]
    if not names and url.startswith(conf.api_url):
        path = url.removeprefix(conf.api_url).partition("?")[0]
        fixed_first = sorted(conf.api_paths.items(), key=lambda item: item[1].count("{"))
        names = [name for name, template in fixed_first if _matches(template, path)]
    return names[0] if names else "other"


def _matches(template: str, path: str) -> bool:
    parts = re.split(r"\{\w+\}", template)
    return re.fullmatch("[^/]+".join(map(re.escape, parts)), path) is not None
