"""The Python of README and the documentation, as modules that a type checker can read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# The code of the jobs page is a project of the tests, where it is read with its models.
WITH_A_PROJECT = ROOT / "docs/howto/jobs.md"
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md")} - {WITH_A_PROJECT})
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PREAMBLE = """\
import os
import base64
from datetime import date, datetime, timedelta
from decimal import Decimal
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.test import Client
from django.urls import include, path, reverse
from django.utils import timezone
from everifin_django.backends import EverifinBackend
from everifin_django.decorators import everifin_required
from everifin_django.request import EverifinRequest
"""
"""What a block takes for granted, because its page has imported it before."""

TYPES = {"request": "EverifinRequest", "client": "Client"}
"""The types of arguments that a page leaves unannotated."""


def modules() -> Iterator[tuple[str, str]]:
    """The name and source of a module for each block of Python."""
    for page in PAGES:
        for number, (indent, source) in enumerate(BLOCK.findall(page.read_text("utf-8"))):
            name = re.sub(r"\W+", "_", f"{page.relative_to(ROOT).with_suffix('')}_{number}")
            yield name.lower(), f"{PREAMBLE}\n{_annotated(re.sub(f'(?m)^{indent}', '', source))}"


def _annotated(source: str) -> str:
    tree = ast.parse(source)
    for argument in (node for node in ast.walk(tree) if isinstance(node, ast.arg)):
        if argument.annotation is None and argument.arg in TYPES:
            argument.annotation = ast.Name(TYPES[argument.arg])
    return ast.unparse(tree)
