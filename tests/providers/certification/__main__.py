"""Play all cases, print the table, and write it into docs/evidence/certification.md."""

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import django


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from django.db import connection
    from django.test.utils import (
        setup_databases,
        setup_test_environment,
        teardown_databases,
        teardown_test_environment,
    )

    from tests.providers.certification import matrix

    # What the sites log about the provider's lies is part of neither table nor page.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as directory:
        if connection.vendor == "sqlite":
            connection.settings_dict["TEST"]["NAME"] = str(Path(directory) / "test.sqlite3")
        setup_test_environment()
        databases = setup_databases(verbosity=0, interactive=False)
        try:
            rows = matrix.run()
        finally:
            teardown_databases(databases, verbosity=0)
            teardown_test_environment()
    sys.stdout.write(matrix.table(rows))
    matrix.DOCUMENT.write_text(matrix.document(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
