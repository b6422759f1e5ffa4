"""
The app speaks each of its languages wholly: every text that people see is marked, every marked one
is translated.

After a change of words, in everifin_django/: django-admin makemessages -l sk -l cs -l de
--no-location --no-wrap --ignore 'testing/*', then django-admin compilemessages.
"""

import ast
import re
import struct
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.template import Template
from django.templatetags.i18n import BlockTranslateNode, TranslateNode
from django.utils import translation
from django.utils.functional import Promise
from django.utils.translation import ngettext
from django.utils.translation.trans_real import DjangoTranslation

import everifin_django
from everifin_django.models import BankToken
from everifin_django.templatetags.everifin import LABELS
from everifin_django.web.notices import NOTICES

PACKAGE = Path(everifin_django.__file__).parent
MODULES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if not {"migrations", "testing"} & set(path.relative_to(PACKAGE).parts)
)
TEMPLATES = sorted((PACKAGE / "templates").rglob("*.html"))
LANGUAGES = {
    "sk": ("Prihlásiť sa cez Everifin", "Tento odkaz sa nedá použiť", "Bankové prepojenia"),
    "cs": ("Přihlásit se přes Everifin", "Tento odkaz nelze použít", "Bankovní propojení"),
    "de": ("Mit Everifin anmelden", "Dieser Link kann nicht verwendet werden", "Verbindungen"),
}

MARKS = {"gettext": 1, "ngettext": 2, "pgettext": 2, "npgettext": 3}
"""How many of its arguments each marking function takes words or context from."""
SHOWN_BY = {"Notice", "Action", "Page", "log_change", "message_user"}
"""Calls whose every argument a person may read."""
SHOWN_AS = {"description", "help_text", "search_help_text", "verbose_name", "verbose_name_plural"}
"""Keyword arguments and class attributes that a person may read."""
NAMES = {"Everifin", "IBAN"}
"""The words that are the same in every language."""


def key(mark: str, words: list[str]) -> str:
    """The name of a message in a .mo file: context EOT singular NUL plural."""
    context = words.pop(0) + "\4" if "pgettext" in mark else ""
    return context + "\0".join(words)


def called(node: ast.Call, imported: dict[str, str]) -> str:
    """The name of the function that is called, as its own module has it."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return imported.get(node.func.id, node.func.id) if isinstance(node.func, ast.Name) else ""


def calls(source: str) -> list[tuple[str, ast.Call]]:
    nodes = list(ast.walk(ast.parse(source)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = {name.asname or name.name: name.name for line in imports for name in line.names}
    return [(called(node, imported), node) for node in nodes if isinstance(node, ast.Call)]


def marked_in_python(source: str) -> set[str]:
    """The messages marked in *source*. Errors: ValueError for one that is not a literal."""
    found = set()
    for name, node in calls(source):
        mark = name.removesuffix("_lazy").removesuffix("_noop")
        if mark in MARKS:
            found.add(key(mark, [ast.literal_eval(word) for word in node.args[: MARKS[mark]]]))
    return found


def unmarked_in_python(source: str) -> list[str]:
    """The texts written where people read them, and not marked."""
    shown = [
        argument
        for name, node in calls(source)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]
        if name in SHOWN_BY
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in SHOWN_AS:
            shown.append(node.value)
        if isinstance(node, ast.Assign) and {ast.unparse(to) for to in node.targets} & SHOWN_AS:
            shown.append(node.value)
    texts = [part for part in shown if isinstance(part, ast.Constant | ast.JoinedStr)]
    return [ast.unparse(text) for text in texts if not isinstance(getattr(text, "value", ""), int)]


def marked_in_template(source: str) -> set[str]:
    found = set()
    nodelist: Any = Template(source).nodelist
    for node in nodelist.get_nodes_by_type(TranslateNode):
        words = [node.filter_expression.var.literal]
        found.add(with_context(node, words))
    for node in nodelist.get_nodes_by_type(BlockTranslateNode):
        forms = filter(None, [node.singular, node.plural])
        found.add(with_context(node, [node.render_token_list(form)[0] for form in forms]))
    return found | {words for _, words in re.findall(r"""\b_\((["'])(.*?)\1\)""", source)}


def with_context(node: TranslateNode | BlockTranslateNode, words: list[str]) -> str:
    context = node.message_context
    return key("pgettext", [context.var, *words]) if context else key("gettext", words)


class Readable(HTMLParser):
    """Collects what a page says, aloud or to the eye."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.inside = ""
        self.feed(re.sub(r"{%.*?%}|{{.*?}}|{#.*?#}", "", source, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        read = {"alt", "aria-description", "aria-label", "placeholder", "title"}
        self.said += [value for name, value in attrs if name in read and value]

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in {"script", "style"}:
            self.said.append(data)


def unmarked_in_template(source: str) -> set[str]:
    source = re.sub(r"({% blocktrans).*?({% endblocktrans)", r"\1 %}\2", source, flags=re.DOTALL)
    return set(re.findall(r"\w+", " ".join(Readable(source).said))) - NAMES


def read_po(language: str) -> dict[str, str]:
    """
    The messages of a .po file, named and written as a .mo file has them; "" is the header.

    Errors: ValueError for a fuzzy message.
    """
    messages = {}
    text = (PACKAGE / f"locale/{language}/LC_MESSAGES/django.po").read_text(encoding="utf-8")
    for block in re.split(r"\n{2,}", text.strip()):
        if re.search(r"^#,.*fuzzy", block, re.MULTILINE):
            raise ValueError(block)
        fields: dict[str, str] = {}
        field = ""
        for name, quoted in re.findall(r'^(msg\w+(?:\[\d\])?)? ?(".*")$', block, re.MULTILINE):
            field = name or field
            fields[field] = fields.get(field, "") + ast.literal_eval(quoted)
        context = [fields[name] for name in ["msgctxt"] if name in fields]
        words = [fields[name] for name in ["msgid", "msgid_plural"] if name in fields]
        forms = [form for name, form in fields.items() if name.startswith("msgstr")]
        if words:  # else the block holds what is no longer used
            messages["\4".join([*context, "\0".join(words)])] = "\0".join(forms)
    return messages


def read_mo(language: str) -> dict[str, str]:
    """Source: the GNU gettext manual, "The Format of GNU MO Files"."""
    data = (PACKAGE / f"locale/{language}/LC_MESSAGES/django.mo").read_bytes()
    count, names, texts = struct.unpack_from("<3I", data, 8)

    def string(table: int, index: int) -> str:
        length, start = struct.unpack_from("<2I", data, table + 8 * index)
        return data[start : start + length].decode()

    return {string(names, index): string(texts, index) for index in range(count)}


@pytest.fixture(scope="module")
def marked() -> set[str]:
    in_python = [marked_in_python(path.read_text(encoding="utf-8")) for path in MODULES]
    in_templates = [marked_in_template(path.read_text(encoding="utf-8")) for path in TEMPLATES]
    return set().union(*in_python, *in_templates)


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


class TestCatalogues:
    def test_they_are_for_these_languages(self):
        assert {path.name for path in (PACKAGE / "locale").iterdir()} == set(LANGUAGES)

    def test_every_marked_text_is_there_and_no_other(self, language, marked):
        assert len(marked) > 50
        assert read_po(language).keys() - {""} == marked

    def test_every_form_is_written_with_the_same_placeholders(self, language):
        messages = read_po(language)
        header = messages.pop("")
        plurals = int(header.split("nplurals=")[1][0])
        for name, text in messages.items():
            singular, *plural = name.split("\4")[-1].split("\0")
            forms = text.split("\0")
            assert len(forms) == (plurals if plural else 1), name
            assert all(form.strip() for form in forms), name
            for form in forms:
                assert placeholders(form) == placeholders(singular), name

    def test_what_is_compiled_is_what_is_written(self, language):
        written, compiled = read_po(language), read_mo(language)
        assert f"Language: {language}\n" in written[""]
        # msgfmt leaves out the date of the template.
        assert set(compiled.pop("").splitlines()) <= set(written.pop("").splitlines())
        assert compiled == written

    def test_plurals_are_counted_as_django_counts_them(self, language):
        """With another rule Django would look every text up in one more catalogue."""
        django = DjangoTranslation(language, domain="django")
        plural = [line for line in read_po(language)[""].splitlines() if "Plural-Forms" in line]
        assert plural == [f"Plural-Forms: {django.info()['plural-forms']}"]


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"%\(\w+\)\w|%\w", text))


class TestMarks:
    @pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
    def test_no_module_shows_a_text_without_a_mark(self, path):
        assert not unmarked_in_python(path.read_text(encoding="utf-8"))

    @pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
    def test_no_template_shows_a_text_without_a_mark(self, path):
        assert not unmarked_in_template(path.read_text(encoding="utf-8"))

    def test_notices_labels_and_states_wait_for_the_language(self):
        choices = chain(BankToken.Status, BankToken.Health)
        texts = [
            *chain.from_iterable((notice.title, notice.text) for notice in NOTICES.values()),
            *LABELS.values(),
            *(choice.label for choice in choices),
        ]
        assert [text for text in texts if not isinstance(text, Promise)] == []

    def test_models_and_the_fields_the_admin_shows_wait_for_the_language(self):
        for model in apps.get_app_config("everifin_django").get_models():
            names = [model._meta.verbose_name, model._meta.verbose_name_plural]
            model_admin: Any = admin.site._registry.get(model)
            if model_admin is not None:
                named = flatten_fieldsets(model_admin.get_fieldsets(None))
                shown = {*model_admin.list_display, *named, *model_admin.list_filter}
                fields = [field for field in model._meta.fields if field.name in shown]
                assert fields
                names += [field.verbose_name for field in fields]
            assert [name for name in names if not isinstance(name, Promise)] == []

    @pytest.mark.parametrize(
        "source",
        [
            'Action("Again", url)',
            'Notice(title=_("Oh"), text="It failed")',
            'self.message_user(request, f"{n} ended", SUCCESS)',
            'class A:\n    verbose_name = "Everifin"',
            'models.CharField(verbose_name="scope")',
        ],
    )
    def test_a_module_with_an_unmarked_text_would_be_found(self, source):
        assert unmarked_in_python(source)

    @pytest.mark.parametrize(
        "source", ["<p>Hello {{ user }}</p>", '<img alt="A lock">', "{% if a %}Yes{% endif %}"]
    )
    def test_a_template_with_an_unmarked_text_would_be_found(self, source):
        assert unmarked_in_template(source)

    def test_a_text_is_found_however_it_is_marked(self):
        python = """
            from django.utils.translation import gettext_lazy as _, npgettext, ngettext as many
            a = _("one " "text"), many("1 b", "%d bs", n), npgettext("c", "1 d", "%d ds", n)
        """
        template = """{% load i18n %}{% if a %}{% translate "a" %}{% endif %}
            {% translate "b" context "c" %}{{ _("d") }}
            {% blocktranslate count n=n %}1 e{% plural %}{{ n }} es{% endblocktranslate %}"""
        assert marked_in_python(ast.unparse(ast.parse(f"if 1:{python}"))) == {
            "one text",
            "1 b\0%d bs",
            "c\x041 d\0%d ds",
        }
        assert marked_in_template(template) == {"a", "c\4b", "d", "1 e\0%(n)s es"}
        assert not unmarked_in_template(template)


@pytest.mark.django_db
class TestPages:
    @pytest.fixture(autouse=True)
    def _languages(self, settings):
        where = settings.MIDDLEWARE.index("django.middleware.common.CommonMiddleware")
        settings.MIDDLEWARE = [*settings.MIDDLEWARE]
        settings.MIDDLEWARE.insert(where, "django.middleware.locale.LocaleMiddleware")
        # The middleware leaves its language to the thread, which here is that of all tests.
        with translation.override("en", deactivate=True):
            yield

    def test_the_login_page(self, client, language):
        headers = {"accept-language": f"{language}-AT"}
        page = client.get("/everifin/login/", headers=headers).content.decode()
        assert f'<html lang="{language}" dir="ltr">' in page
        assert f"<h1>{LANGUAGES[language][0]}</h1>" in page
        assert page.count(LANGUAGES[language][0]) == 3  # title, heading and button

    def test_the_page_that_says_what_went_wrong(self, client, language):
        response = client.get("/everifin/callback/", headers={"accept-language": language})
        page = response.content.decode()
        assert response.status_code == 400
        assert f'<html lang="{language}"' in page
        assert f"<h1>{LANGUAGES[language][1]}</h1>" in page

    def test_the_admin(self, admin_client, language):
        page = admin_client.get("/admin/", headers={"accept-language": language}).content.decode()
        assert LANGUAGES[language][2] in page

    @pytest.mark.parametrize(
        ("count", "words"),
        [
            (1, "1 prepojenie bolo ukončené."),
            (2, "2 prepojenia boli ukončené."),
            (5, "5 prepojení bolo ukončených."),
        ],
    )
    def test_a_count_takes_its_form(self, count, words):
        one, many = "%(count)d connection was ended.", "%(count)d connections were ended."
        with translation.override("sk"):
            assert ngettext(one, many, count) % {"count": count} == words
