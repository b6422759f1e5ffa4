"""Spans and metrics, as the SDK's exporters in memory get them."""

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from everifin_django import instrumentation
from everifin_django.connections import everifin_for, refresh_now
from everifin_django.contrib.opentelemetry import instrument, uninstrument
from everifin_django.exceptions import (
    ConsentExpiredError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)

pytestmark = pytest.mark.django_db


class Recorded:
    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider(metric_readers=[self.reader])

    def instrument(self):
        instrument(tracer_provider=self.tracers, meter_provider=self.meters)

    @property
    def spans(self):
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def points(self, name):
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def events(self):
        return {
            (point.attributes["everifin.event"], point.attributes["everifin.reason"]): point.value
            for point in self.points("everifin.connection.events")
        }

    def everything(self):
        spans = "".join(span.to_json() for span in self.exporter.get_finished_spans())
        data = self.reader.get_metrics_data()
        return spans + (data.to_json() if data else "")


@pytest.fixture
def recorded():
    recorded = Recorded()
    recorded.instrument()
    yield recorded
    uninstrument()
    recorded.tracers.shutdown()
    recorded.meters.shutdown()


def test_a_call_is_a_span_and_a_duration(recorded, connected):
    account = next(everifin_for(connected.user).accounts())
    everifin_for(connected.user).account(account.id)
    attributes = {
        "http.request.method": "GET",
        "everifin.endpoint": "account",
        "server.address": "api.everifin.test",
        "http.response.status_code": 200,
    }
    span = recorded.spans["GET account"]
    assert dict(span.attributes) == attributes
    assert span.kind.name == "CLIENT"
    assert span.status.is_unset
    points = recorded.points("everifin.request.duration")
    assert attributes in [dict(point.attributes) for point in points]
    assert sum(point.count for point in points) == len(recorded.exporter.get_finished_spans())


def test_a_refresh_is_a_span_around_its_request(recorded, connected):
    refresh_now(connected.user)
    request, refresh = recorded.spans["POST token"], recorded.spans["everifin refresh"]
    assert request.parent.span_id == refresh.context.span_id
    assert refresh.parent is None
    assert refresh.status.is_unset
    [point] = recorded.points("everifin.refresh.duration")
    assert point.count == 1
    assert recorded.events()["token_refreshed", ""] == 1


def test_spans_are_within_the_span_of_the_site(recorded, connected):
    with recorded.tracers.get_tracer("site").start_as_current_span("job") as job:
        refresh_now(connected.user)
        next(everifin_for(connected.user).accounts())
    for name in ("everifin refresh", "GET accounts"):
        assert recorded.spans[name].parent.span_id == job.context.span_id


def test_an_end_by_everifin(recorded, everifin, connected):
    everifin.faults.add("token", status=400, body={"error": "invalid_grant"})
    with pytest.raises(ConsentExpiredError):
        refresh_now(connected.user)
    assert recorded.spans["everifin refresh"].attributes["error.type"] == "RefusedError"
    request = recorded.spans["POST token"]
    assert request.attributes["http.response.status_code"] == 400
    assert request.attributes["error.type"] == "400"
    assert not request.status.is_ok
    assert recorded.events()["consent_expired", "invalid_grant"] == 1


def test_an_outage(recorded, everifin, connected):
    everifin.faults.add("token", status=503)
    with pytest.raises(UnavailableError):
        refresh_now(connected.user)
    assert recorded.spans["everifin refresh"].attributes["error.type"] == "UnavailableError"
    assert recorded.events()["refresh_failed", "unavailable"] == 1
    assert recorded.events()["connection_degraded", "unavailable"] == 1


def test_no_attribute_names_anybody(recorded, connected):
    client = everifin_for(connected.user)
    account = next(client.accounts())
    next(client.transactions(account.id), None)
    with pytest.raises(NotFoundError):
        client.account("somebody-elses")
    refresh_now(connected.user)
    with pytest.raises(InvalidRequestError):
        client.request("GET", "/v1/bank-accounts?owner=holder")
    connected.refresh_from_db()
    told = recorded.everything()
    access = connected.open_token("access").reveal()
    private = (
        account.id,
        "somebody-elses",
        "holder",
        "?page",
        "pageSize",
        connected.subject,
        connected.pk,
        access,
    )
    assert [one for one in private if str(one) in told] == []


def test_a_path_without_a_name(recorded, connected):
    with pytest.raises(NotFoundError):
        everifin_for(connected.user).request("GET", "/v1/nothing/17")
    assert recorded.spans["GET other"].attributes["error.type"] == "404"


@pytest.mark.parametrize("when", ["on_start", "on_end"])
def test_a_processor_that_fails_loses_no_token(recorded, connected, monkeypatch, caplog, when):
    class Failing(SpanProcessor):
        pass

    def fail(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(Failing, when, fail)
    recorded.tracers.add_span_processor(Failing())
    refresh_now(connected.user)
    connected.refresh_from_db()
    assert connected.token_version == 2
    assert "An observer of calls to Everifin failed: RuntimeError." in caplog.text
    assert not trace.get_current_span().get_span_context().is_valid


def test_nothing_more_is_recorded_afterwards(recorded, connected):
    recorded.instrument()
    refresh_now(connected.user)
    assert recorded.events()["token_refreshed", ""] == 1
    uninstrument()
    uninstrument()
    assert instrumentation._observers == []
    refresh_now(connected.user)
    assert recorded.events()["token_refreshed", ""] == 1


def test_nothing_is_imported_unless_asked_for():
    program = (
        "import django, sys; django.setup();"
        "import everifin_django.web.views, everifin_django.tasks;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    environment = {"DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], check=False, env=environment)
    assert done.returncode == 0
