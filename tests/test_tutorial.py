"""A reader who follows the tutorial to the letter gets what it promises."""

import os
import subprocess
import sys

import pytest

from tests.support import tutorial


@pytest.mark.exhaustive
def test_it_leads_from_an_empty_folder_to_a_page_of_transactions(tmp_path):
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTEST_", "DJANGO_", "COV"))
    }
    run = subprocess.run(
        [sys.executable, tutorial.__file__, str(tmp_path)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
