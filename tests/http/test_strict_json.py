"""JSON is taken in its strict form only."""

from decimal import Decimal

import pytest

from everifin_django.http.strict_json import strict_json
from tests.support.malicious_server import report


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": [1, "\xc5\xbe", true, null]}', {"a": [1, "ž", True, None]}),
        ('"ž"', "ž"),
        ("-0.10", Decimal("-0.10")),
        ("1e308", Decimal("1e308")),
        ("[]", []),
    ],
)
def test_json_is_decoded(text, value):
    assert strict_json(text) == value


def test_fractions_are_exact():
    assert str(strict_json("125.10")) == "125.10"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{} {}",
        "{'a': 1}",
        '{"a": 1, "a": 1}',
        '[{"b": {"a": 1, "a": 2}}]',
        "NaN",
        "[Infinity]",
        "-Infinity",
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        "1e309",
        "1e-400",
        "1e999999999",
        "-1e999999999999999999999999",
        "0e-99999999999999999999999",
        '"\n"',
        b"\xff",
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32-le"),
        b"\x00",
    ],
    ids=lambda text: f"{text[:12]!r}-{len(text)}",
)
def test_all_else_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        strict_json(text)


@pytest.mark.parametrize("number", ["1e309", "-1e999999999", "0e-99999", "1e-400", "9" * 5000])
def test_a_number_without_end_can_be_kept_as_text(number):
    decoded = strict_json(f'{{"a": {number}, "b": 1.50, "c": 7}}', numbers_as_text=True)
    assert decoded == {"a": number, "b": Decimal("1.50"), "c": 7}


@pytest.mark.parametrize(
    "nested",
    [
        lambda depth: "[" * depth + r'"\ud800"' + "]" * depth,
        lambda depth: '{"a":' * depth + r'"\ud800"' + "}" * depth,
        lambda depth: '[5, {"a": 5, "b": ' * (depth // 2) + r'"\ud800"' + "}]" * (depth // 2),
    ],
    ids=["lists", "objects", "both"],
)
def test_nesting_has_a_bound_that_no_recursion_meets(nested):
    assert strict_json(nested(100))
    for depth in (102, 600, 5000):
        with pytest.raises(ValueError, match=r"."):
            strict_json(nested(depth))


def test_an_error_does_not_carry_the_text():
    with pytest.raises(ValueError, match=r"JSON") as caught:
        strict_json("canary in clear")
    assert "canary" not in report(caught.value)
