"""The guide's example of a site's own backend, taken from there."""

import re
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model

from everifin_django.backends import EverifinBackend

GUIDE = Path(__file__).parents[3] / "docs" / "howto" / "users.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)

names: dict[str, Any] = {"EverifinBackend": EverifinBackend, "get_user_model": get_user_model}
exec(next(code for code in EXAMPLES if "class StaffBackend" in code), names)  # noqa: S102 - our own guide
StaffBackend = names["StaffBackend"]
