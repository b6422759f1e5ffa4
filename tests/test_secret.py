"""A secret never shows, whoever prints, copies or stores it."""

import copy
import dataclasses
import json
import logging
import pickle

import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.template import Context, Template

from everifin_django.secret import Secret

CANARY = "canary-2f8e41"


@pytest.fixture
def secret() -> Secret:
    return Secret(CANARY)


def test_reveal_gives_the_text(secret):
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
def test_printed_text_is_masked(secret, show):
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


def test_no_attributes_lie_open(secret):
    with pytest.raises(TypeError, match="__dict__"):
        vars(secret)
    with pytest.raises(AttributeError):
        secret.extra = 1


def test_equal_secrets_have_equal_texts(secret):
    assert secret == Secret(CANARY)
    assert secret != Secret(CANARY + "x")
    assert secret != Secret("")


def test_a_secret_equals_no_plain_text(secret):
    assert secret != CANARY
    assert secret.__eq__(CANARY) is NotImplemented


def test_comparison_takes_every_text():
    assert Secret("ž€") == Secret("ž€")
    assert Secret("\ud800") != Secret("?")


def test_comparison_is_left_to_hmac(secret, monkeypatch):
    """Whose time does not tell how much of the text was right."""
    monkeypatch.setattr("hmac.compare_digest", lambda *texts: texts)
    assert (secret == Secret("other")) == (CANARY.encode(), b"other")


def test_a_secret_has_no_hash(secret):
    with pytest.raises(TypeError, match="unhashable"):
        hash(secret)
