"""A secret is never shown, however it is printed, copied or stored, nor by an error."""

import copy
import dataclasses
import gc
import json
import logging
import pickle
import weakref
from collections.abc import Iterator
from contextlib import suppress
from traceback import extract_tb, walk_tb
from typing import Any

import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.template import Context, Template

from everifin_django.exceptions import APIError
from everifin_django.secret import Secret, hides_frames
from tests.support.malicious_server import report

CANARY = "canary-2f8e41"


@pytest.fixture
def secret() -> Secret:
    return Secret(CANARY)


def test_reveal_gives_the_string(secret):
    assert secret.reveal() == CANARY


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        format,
        ascii,
        lambda secret: f"{secret}",
        lambda secret: f"{secret!r:>40}",
        lambda secret: f"{secret:>40}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 - one of the ways to print
        "{0} {0!r}".format,
        lambda secret: repr([secret, {"token": secret}]),
        lambda secret: repr(vars(ValueError(secret)) or ValueError(secret)),
        lambda secret: json.dumps({"token": secret}, default=str),
    ],
)
def test_printed_strings_are_masked(secret, show):
    assert CANARY not in show(secret)
    assert "**********" in show(secret)


def test_templates_show_a_mask(secret):
    shown = Template("{{ token }}").render(Context({"token": secret}))
    assert shown == "Secret(**********)"


def test_templates_cannot_reveal(secret):
    shown = Template("[{{ token.reveal }}{{ token.reveal.upper }}]").render(
        Context({"token": secret})
    )
    assert shown == "[]"


def test_logs_show_a_mask(secret, caplog):
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("site").debug("token %s %r", secret, {"token": secret})
    assert CANARY not in caplog.text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_refused(secret, protocol):
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        pickle.dumps(secret, protocol)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copying_is_refused(secret, duplicate):
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        duplicate(secret)


def test_dataclasses_do_not_take_it_apart(secret):
    @dataclasses.dataclass
    class Holder:
        token: Secret

    assert CANARY not in repr(Holder(secret))
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        dataclasses.asdict(Holder(secret))


@pytest.mark.parametrize("encoder", [json.JSONEncoder, DjangoJSONEncoder])
def test_json_is_refused(secret, encoder):
    with pytest.raises(TypeError, match="not JSON serializable"):
        json.dumps({"token": secret}, cls=encoder)


def test_no_attribute_is_open(secret):
    with pytest.raises(TypeError, match="__dict__"):
        vars(secret)
    with pytest.raises(AttributeError):
        secret.extra = 1


def test_equal_secrets_have_equal_strings(secret):
    assert secret == Secret(CANARY)
    assert secret != Secret(CANARY + "x")
    assert secret != Secret("")


def test_a_secret_equals_no_plain_string(secret):
    assert secret != CANARY
    assert secret.__eq__(CANARY) is NotImplemented


def test_every_string_can_be_compared():
    assert Secret("ž€") == Secret("ž€")
    assert Secret("\ud800") != Secret("?")


def test_comparison_is_left_to_hmac(secret, monkeypatch):
    """The time that it takes does not tell how much of the string was right."""
    monkeypatch.setattr("hmac.compare_digest", lambda *pair: pair)
    assert (secret == Secret("other")) == (CANARY.encode(), b"other")


def test_a_secret_has_no_hash(secret):
    with pytest.raises(TypeError, match="unhashable"):
        hash(secret)


def fail_with(token: str, error: BaseException) -> None:
    opened = f"{token} in clear"
    try:
        json.loads(opened)
    except ValueError as cause:
        raise error from cause


def raised_by(function: Any, *args: Any, **kwargs: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - the test looks at what it is
        function(*args, **kwargs)
    return caught.value


class TestHidesFrames:
    @pytest.mark.parametrize("kind", [ValueError, OSError, KeyboardInterrupt, SystemExit])
    def test_the_error_leaves_without_frames_cause_and_context(self, kind):
        error = kind("a message")
        assert raised_by(hides_frames(fail_with), CANARY, error=error) is error
        assert (error.__cause__, error.__context__) == (None, None)
        assert "fail_with" not in [frame.name for frame in extract_tb(error.__traceback__)]

    def test_its_own_frame_holds_no_argument(self):
        error = raised_by(hides_frames(fail_with), CANARY, error=ValueError("a message"))
        last = [frame for frame, _ in walk_tb(error.__traceback__)][-1]
        assert last.f_code.co_name == "wrapper"
        assert CANARY not in repr(last.f_locals)

    def test_the_whole_report_shows_no_secret(self):
        assert CANARY in report(raised_by(fail_with, CANARY, ValueError("a message")))
        error = raised_by(hides_frames(fail_with), CANARY, ValueError("a message"))
        assert CANARY not in report(error)

    def test_class_message_and_attributes_stay(self):
        error = APIError("a message", method="GET", status=500)
        assert raised_by(hides_frames(fail_with), CANARY, error) is error
        assert (str(error), error.method, error.status) == ("a message", "GET", 500)

    def test_a_cause_that_the_caller_names_stays(self):
        def translate() -> None:
            try:
                hides_frames(fail_with)(CANARY, ValueError("inner"))
            except ValueError as error:
                raise OSError("outer") from error

        error = raised_by(translate)
        assert str(error.__cause__) == "inner"
        assert CANARY not in report(error)

    def test_nothing_keeps_the_frames_alive(self):
        """Arguments that an error left behind would be secrets that wait for a heap dump."""

        class Argument:
            pass

        def fail(argument: Argument) -> None:
            raise ValueError("a message")

        argument = Argument()
        left = weakref.ref(argument)
        with suppress(ValueError):
            hides_frames(fail)(argument)
        gc.disable()
        try:
            del argument
            assert left() is None
        finally:
            gc.enable()

    def test_methods_keep_their_object_and_every_function_its_name_and_result(self):
        class Box:
            @hides_frames
            def double(self, number: int, *, plus: int = 0) -> int:
                """Return twice the number."""
                return 2 * number + plus

            @staticmethod
            @hides_frames
            def half(number: int) -> int:
                return number // 2

        assert (Box().double(4, plus=1), Box.half(8)) == (9, 4)
        assert (Box.double.__name__, Box.double.__doc__) == ("double", "Return twice the number.")

    def test_a_function_whose_body_runs_later_is_refused(self):
        async def coroutine() -> None: ...

        def generator() -> Iterator[int]:
            yield 1

        for function in (coroutine, generator):
            with pytest.raises(TypeError, match="when they return"):
                hides_frames(function)
