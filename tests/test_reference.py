"""The reference is complete and true: each name it lists exists, and each public name is listed."""

import ast
import importlib
import inspect
import re
import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.dispatch import Signal
from django.template import engines
from django.urls import reverse

from everifin_django import exceptions, signals
from everifin_django.bank import accounts, payments
from everifin_django.conf import SETTINGS
from everifin_django.connections import refresh
from everifin_django.connections.grants import Everifin
from everifin_django.models import BankToken
from everifin_django.testing import plugin
from everifin_django.urls import urlpatterns

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "everifin_django"
REFERENCE = ROOT / "docs" / "reference"
SHAPES = (
    accounts.Account,
    accounts.Balance,
    accounts.Transaction,
    accounts.Bank,
    payments.PaymentDetail,
    payments.BulkPaymentDetail,
)


def text_of(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    found: str
    (found,) = re.findall(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL
    )
    return found


def first_cells(text: str) -> list[str]:
    """What stands in backticks at the beginning of each row of the tables."""
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def public(namespace: object) -> set[str]:
    return {name for name in vars(namespace) if not name.startswith("_")}


CALLS = sorted(
    {name for one in Everifin.__mro__[:-1] for name in vars(one) if not name.startswith("_")}
)
SYNC_CALLS = [name for name in CALLS if f"a{name}" in CALLS]


def test_every_call_has_its_row_and_no_other():
    rows = [cell.partition("(")[0] for cell in first_cells(text_of("client")) if "(" in cell]
    assert sorted(rows) == SYNC_CALLS


@pytest.mark.parametrize("name", SYNC_CALLS)
def test_a_row_has_the_arguments_of_the_call(name):
    (row,) = re.findall(rf"^\| `{name}\((.*?)\)` \|", text_of("client"), re.MULTILINE)
    documented = re.findall(r"(?:^|, )(\w+)", re.sub(r"\([^)]*\)", "", row))
    assert documented == [*inspect.signature(getattr(Everifin, name)).parameters][1:]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_every_field_has_its_row_with_its_type(shape):
    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]+)`", section(text_of("client"), shape.__name__), re.MULTILINE
    )
    documented = {name: kind.replace("\\|", "|") for name, kind in rows}
    assert documented == {field.name: field.type for field in fields(shape)}


def test_every_error_has_its_row_or_is_named():
    names = {name for name in public(exceptions) if name.endswith("Error")}
    assert names <= set(re.findall(r"`(\w+Error)`", text_of("errors")))
    assert {name for name in first_cells(text_of("errors")) if name.endswith("Error")} <= names


def test_every_signal_has_its_row_and_no_other():
    names = {name for name in public(signals) if isinstance(getattr(signals, name), Signal)}
    assert set(first_cells(text_of("signals"))) == names


def test_every_command_and_option_it_names_exists():
    ours = {name for name, app in get_commands().items() if app == "everifin_django"}
    assert set(first_cells(text_of("commands"))) == ours
    for name in ours:
        page = text_of("sandbox" if name == "everifin_sandbox" else "commands")
        options = load_command_class("everifin_django", name).create_parser("manage.py", name)
        (row,) = re.findall(rf"^\| `{name}` .*$", text_of("commands"), re.MULTILINE)
        named = re.findall(r"`(--[\w-]+)", page if name == "everifin_sandbox" else row)
        assert set(named) <= set(options._option_string_actions)


def test_every_view_has_its_row_and_no_other():
    rows = [cell for cell in first_cells(text_of("views")) if cell.startswith("everifin_django:")]
    assert sorted(rows) == sorted(f"everifin_django:{one.name}" for one in urlpatterns)
    arguments: dict[str, list[Any]] = {"payment": [uuid.uuid4()], "payment_return": ["value"]}
    assert all(reverse(row, args=arguments.get(row.partition(":")[2])) for row in rows)


def test_every_template_tag_has_its_row():
    engine: Any = engines["django"]
    library = engine.engine.template_libraries["everifin"]
    rows = [cell.split()[1] for cell in first_cells(text_of("templates"))]
    assert sorted(rows) == sorted(library.tags)


def test_every_state_has_its_row():
    page = text_of("states")
    assert first_cells(section(page, "Health")) == BankToken.Health.values
    reasons = first_cells(section(page, "Why a connection needs to be made again"))
    ours = {refresh.ANSWER_LOST, refresh.USER_CHANGED, "identity_changed"}
    known = {*refresh.ENDING_ERRORS.values(), *ours}
    assert set(reasons) == known
    statuses = re.findall(r"^\| `(\w+)` \| (yes|no)", section(page, "Payments"), re.MULTILINE)
    assert [name for name, _ in statuses] == [*payments.PaymentStatus]
    finals = {payments.PaymentStatus(name) for name, is_final in statuses if is_final == "yes"}
    assert finals == {one for one in payments.PaymentStatus if one.is_final}


def test_every_fixture_of_the_plugin_has_its_row():
    rows = first_cells(section(text_of("testing"), "Fixtures"))
    assert all(hasattr(plugin, name) for name in rows)


PUBLIC = re.findall(
    r"^\| `(everifin_django[\w.]*)` \| (.*) \|$", text_of("public-api"), re.MULTILINE
)


@pytest.mark.parametrize(("module", "names"), PUBLIC, ids=[module for module, _ in PUBLIC])
def test_a_public_module_lists_the_same_names_as_the_page(module, names):
    assert sorted(importlib.import_module(module).__all__) == sorted(re.findall(r"`(\w+)`", names))


def test_no_module_has_public_names_that_the_page_leaves_out():
    listed = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^__all__ =", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert listed == {module for module, _ in PUBLIC}


def constants() -> list[str]:
    """Every string of the package's code, the pieces of an f-string joined by an ellipsis."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [one.value if isinstance(one, ast.Constant) else "…" for one in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_of_the_troubleshooting_page_is_one_of_ours():
    page = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [
        part
        for row in re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
        for quoted in re.findall(r'"([^"]+)"', row)
        for part in re.split(r"…|\([\w…]+\)", quoted)
        if part.strip(" '")
    ]
    assert len(messages) > 10
    everything = "\n".join(constants())
    assert [part for part in messages if part.strip(" '") not in everything] == []


def test_every_setting_is_listed():
    assert set(re.findall(r"EVERIFIN_[A-Z_]+", text_of("settings"))) >= SETTINGS.keys()


def test_every_check_is_listed():
    source = (PACKAGE / "checks.py").read_text(encoding="utf-8")
    ids = set(re.findall(r'"(?:everifin_django\.)?([EW]\d{3})"', source))
    ids |= {setting.check_id for setting in SETTINGS.values()}
    pages = text_of("checks") + text_of("settings")
    assert ids <= set(re.findall(r"\b([EW]\d{3})\b", pages))
