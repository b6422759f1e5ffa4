"""The single-page app of the guide, on another origin than the site."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.browser.pages import FRONT_END

pytestmark = pytest.mark.browser
GUIDE = Path(__file__).parents[2] / "docs/howto/api-frontends.md"
BLOCK = re.compile(r"^```js\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>App</title></head><body>
<h1>App</h1><button id="show">Show my accounts</button><p id="shown"></p>
<script>{script}
document.getElementById("show").onclick = async () => {{
  const found = await accounts();
  if (found) document.getElementById("shown").textContent = found.join(" ");
}};
</script></body></html>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def front_end(folder: Path) -> Iterator[str]:
    """Serve the app's one page, and give its origin."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def tab(new_profile: Any, serve: Any, front_end: str, folder: Path) -> Any:
    """A tab with the app open."""
    profile = new_profile(serve(**{FRONT_END: front_end}))
    *_, script = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    assert "authorize_url" in script
    text = script.replace("https://shop.example", profile.site)
    (folder / "index.html").write_text(PAGE.format(script=text), encoding="utf-8")
    return profile.tab(f"{front_end}/")


def test_it_logs_in_comes_back_and_shows_the_accounts(tab, front_end):
    tab.leave("Show my accounts")
    tab.log_in_there()
    tab.button("Yes").click()
    tab.page.wait_for_url(f"{front_end}/")
    tab.button("Show my accounts").click()
    tab.page.wait_for_function("document.getElementById('shown').textContent")
    assert len(tab.page.locator("#shown").inner_text().split()) == 3


def test_a_user_without_a_connection_connects_and_comes_back(tab, front_end):
    tab.open(f"/log-in-as/{tab.profile.person}/")
    tab.open(f"{front_end}/")
    tab.leave("Show my accounts")
    tab.log_in_there()
    tab.button("Yes").click()
    tab.page.wait_for_url(f"{front_end}/")
    tab.button("Show my accounts").click()
    tab.page.wait_for_function("document.getElementById('shown').textContent")
