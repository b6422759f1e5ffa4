"""
Write docs/reference/settings.md from the settings' declarations: ``python -m
tests.support.settings_reference``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everifin_django.conf import SECTIONS, Setting

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
INTRODUCTION = """\
<!-- Made from everifin_django/conf.py by `python -m tests.support.settings_reference`. -->

# Settings

Write these into your site's settings module. Three have to be set: `EVERIFIN_CLIENT_ID`,
`EVERIFIN_CLIENT_SECRET` and `EVERIFIN_ENCRYPTION_KEYS`. All others have a safe default.

- Settings are read when they are needed and are not cached, so `override_settings` works in tests.
- `manage.py check` reports a wrong value by the id that stands with the setting. At run time a
  wrong value is Django's `ImproperlyConfigured`. Neither shows the value.
- A setting that begins with `EVERIFIN_` and is not listed here, such as a misspelt one, is reported
  as `everifin_django.W001`.
- `everifin_django.conf.SETTINGS` is this page as a mapping, for a site that reads its settings from
  the environment: by name, with the type as `kind`.
"""


def render() -> str:
    """Return the page."""
    sections = [
        "\n".join([f"## {section.__doc__}\n", *map(_entry, _settings_of(section))])
        for section in SECTIONS
    ]
    return "\n".join([INTRODUCTION, *sections])


def _settings_of(section: type) -> list[Setting[Any]]:
    return [setting for setting in vars(section).values() if isinstance(setting, Setting)]


def _entry(setting: Setting[Any]) -> str:
    return (
        f"### {setting.name}\n\n{setting.meaning}\n\n"
        f"- Type: `{setting.kind}`, {setting.bounds}\n"
        f"- Default: {setting.default_shown}\n"
        f"- Check: `everifin_django.{setting.check_id}`\n"
    )


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
