"""Examine settings, keys, tables, and what Everifin answers."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from everifin_django.management.doctor import Finding, examine


class Command(BaseCommand):
    help = (
        "Examines the settings and keys of this site, and whether they fit what Everifin answers. "
        "Ends with exit code 1 if there is an error. Shows no secret."
    )
    # What the checks say is part of the report.
    requires_system_checks: tuple[str, ...] = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print a JSON list of findings")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = list(examine())
        if options["json"]:
            self.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            self._write(findings)
        if any(finding.level == "error" for finding in findings):
            sys.exit(1)

    def _write(self, findings: list[Finding]) -> None:
        styles = {
            "ok": self.style.SUCCESS,
            "warning": self.style.WARNING,
            "error": self.style.ERROR,
        }
        for finding in findings:
            level = styles[finding.level](f"{finding.level:<7}")
            self.stdout.write(f"{level} {finding.about}: {finding.message}")
            if finding.hint:
                self.stdout.write(f"        {finding.hint}")
