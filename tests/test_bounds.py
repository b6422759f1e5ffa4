"""docs/reference/bounds.md has every column, setting and claim that is read, and each is held."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from everifin_django.conf import SETTINGS, conf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "everifin_django"
TEXT = (ROOT / "docs" / "reference" / "bounds.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([\w.]+)` \| (.{5,}) \|$", TEXT, re.MULTILINE))
COLUMNS = {name for name in ROWS if "." in name}
READ_FROM = {"claims", "header", "decoded", "jwk", "events"}
"""What an answer or token is called where it is read."""


def columns() -> Iterator[str]:
    for model in apps.get_app_config("everifin_django").get_models():
        yield from (f"{model.__name__}.{field.attname}" for field in model._meta.concrete_fields)


def test_every_column_has_its_bound():
    assert set(columns()) == COLUMNS


def members() -> Iterator[str]:
    """Give the name of each claim or other member that the package reads."""
    for folder in ("oauth", "web", "connections", "."):
        for file in (PACKAGE / folder).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                yield from member_of(node)


def member_of(node: ast.AST) -> Iterator[str]:
    match node:
        case (
            ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="get"),
                args=[ast.Constant(value=str(member)), *_],
            )
            | ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(member)))
        ) if name in READ_FROM:
            yield member
        case ast.Compare(left=ast.Constant(value=str(member)), comparators=[ast.Name(id=name)]) if (
            name in READ_FROM
        ):
            yield member
        case ast.keyword(arg="require", value=ast.Tuple(elts=elements)):
            yield from (str(one.value) for one in elements if isinstance(one, ast.Constant))


def test_every_claim_that_is_read_has_its_bound():
    assert set(members()) - set(ROWS) == set()


ODD = [
    "x" * 5000,
    "https://" + "x" * 5000 + ".example",
    "/a\nb",
    "\0",
    10**400,
    -1,
    float("nan"),
    float("inf"),
    ["x"] * 5000,
    {str(number): "x" for number in range(5000)},
    {"x": {}},
    b"x",
    object(),
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_takes_a_value_beyond_its_bound(settings, name, value):
    assert SETTINGS[name].bounds
    setattr(settings, name, value)
    with pytest.raises(ImproperlyConfigured, match=name):
        getattr(conf, name.removeprefix("EVERIFIN_").lower())


def test_an_issuer_that_no_column_holds_is_a_wrong_setting(settings):
    settings.EVERIFIN_IDP_URL = "https://idp.example/" + "x" * 250
    with pytest.raises(ImproperlyConfigured, match="EVERIFIN_ISSUER"):
        _ = conf.issuer
