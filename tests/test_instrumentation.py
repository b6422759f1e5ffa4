"""What observers see, and that none can stop what it watches."""

import pytest

from everifin_django import instrumentation
from everifin_django.instrumentation import observed


@pytest.fixture
def observers():
    added = []

    def add(observer):
        added.append(observer)
        instrumentation.add_observer(observer)
        instrumentation.add_observer(observer)

    yield add
    for observer in added:
        instrumentation.remove_observer(observer)
        instrumentation.remove_observer(observer)


def test_an_observer_sees_a_block_begin_and_end_once(observers):
    seen = []

    def observer(name, facts):
        seen.append((name, dict(facts)))
        return lambda: seen.append(("end", dict(facts)))

    observers(observer)
    with observed("request", method="GET") as facts:
        facts["status"] = 200
    assert seen == [
        ("request", {"method": "GET"}),
        ("end", {"method": "GET", "status": 200}),
    ]


def test_it_sees_the_class_of_an_error_and_not_its_message(observers):
    seen = []
    observers(lambda _, facts: lambda: seen.append(dict(facts)))
    with pytest.raises(LookupError, match="private"), observed("refresh"):
        raise LookupError("private")
    assert seen == [{"error": "LookupError"}]


def test_an_observer_that_fails_stops_nothing(observers, caplog):
    def fails(*_):
        raise RuntimeError("private")

    observers(fails)
    observers(lambda *_: fails)
    with observed("refresh"):
        done = True
    assert done
    assert caplog.text.count("An observer of calls to Everifin failed: RuntimeError.") == 2
    assert "private" not in caplog.text
