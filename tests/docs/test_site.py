"""The site: built strictly, with every public name in its reference; opened in a real browser, page by page."""

import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import markdown
import pytest
from browser import CHROMIUM, Browser
from doc_pages import CODE, DOCS, ROOT, name, pages, split
from markdown_it import MarkdownIt

import sherl_cache
import sherl_cache.stages.methods.contract
import sherl_cache.storage

OFFERED = (sherl_cache, sherl_cache.storage, sherl_cache.stages.methods.contract)


def test_the_reference_has_every_public_name_once_and_no_other() -> None:
    text = "".join(page.read_text("utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    public = {f"{module.__name__}.{name}" for module in OFFERED for name in module.__all__ if name != "__version__"}
    assert Counter(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)) == Counter(public)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_nothing_in_a_page_is_taken_for_markup(page: Path) -> None:
    """`<i>` outside of code turns the rest of a page italic."""
    prose = "\n".join(line for _, line in split(page)[1] if not line.startswith("    "))
    bare = [CODE.sub("", paragraph) for paragraph in prose.split("\n\n")]
    assert not re.findall(r"</?[A-Za-z][^>]*>", "\n".join(bare))


@pytest.mark.parametrize("page", pages(), ids=name)
def test_a_page_has_the_same_parts_on_github_and_in_the_site(page: Path) -> None:
    """The two read Markdown by different rules: the site wants an empty line before a list, and deeper ones further in."""
    text = page.read_text("utf-8")
    github = MarkdownIt("commonmark").enable("table").render(text)
    site = markdown.markdown(text, extensions=["tables", "pymdownx.superfences", "attr_list", "toc", "admonition"])
    for tag in ("h1", "h2", "h3", "h4", "ul", "ol", "li", "table", "tr", "pre", "blockquote", "img"):
        opened = f"<{tag}[ >]"
        assert len(re.findall(opened, github)) == len(re.findall(opened, site)), f"{name(page)}: {tag}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a link that leads nowhere, or a page that no menu names, ends the build."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "RUN_NOTEBOOKS": "true", "NO_MKDOCS_2_WARNING": "1"}
    words = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_asks_nobody_else(site: Path) -> None:
    found = {page.relative_to(site).parent.as_posix(): page.read_text("utf-8") for page in site.rglob("index.html")}
    assert {"reference/commands", "reference/methods", "reference/recipe", "errors", "design"} <= set(found)
    for place, text in found.items():
        assert re.search(r"<h1[ >]", text), f"{place} has no heading"
        asked = re.findall(r"<(?:script|img|iframe|source)\b[^>]*? src=\"([^\"]+)\"", text)
        asked += re.findall(r"<link\b[^>]*? href=\"([^\"]+)\"", text)
        assert asked
        assert not [address for address in asked if re.match(r"(?:\w+:)?//", address)], place
    commands = found["reference/commands"]
    for told in ("sherl-cache extract", "sherl-cache recipe show", "--unit-memory", "Where the store goes."):
        assert told in commands
    assert "by how little they repeat one another" in found["reference/methods"]
    assert "of initialisation and dropout" in found["reference/recipe"]
    for module in OFFERED:
        for offered in set(module.__all__) - {"__version__"}:
            assert any(f'id="{module.__name__}.{offered}"' in text for text in found.values()), offered
    assert "wall_time" in found["repository/configs/clusters/slurm.yaml"], "a file that a page links to"
    assert 'id="what-you-can-do"' in found["repository"]
    assert found["guide/notebook"].count("<polyline") >= 5, "the picture of the notebook is in the page"


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site, served on loopback."""
    handler = partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, without a line a request."""

    def log_message(self, *arguments: object) -> None: ...


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_every_page_opens_in_a_browser_at_two_widths_light_and_dark(site: Path, address: str, tmp_path: Path) -> None:
    """No complaint, no request to another host, a heading and a menu, nothing that makes the page scroll sideways."""
    places = sorted(page.relative_to(site).parent.as_posix() for page in site.rglob("index.html"))
    shots = tmp_path / "shots"
    shots.mkdir()
    wrong = []
    with Browser(tmp_path / "profile") as browser:
        for found in places:
            for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
                visit = browser.open(f"{address}/{found}/" if found != "." else f"{address}/", width, dark)
                place = f"{found} at {width}, {'dark' if dark else 'light'}"
                wrong += [f"{place}: {complaint}" for complaint in visit.complaints]
                wrong += [
                    f"{place}: asks for {url}" for url in visit.requests if not url.startswith((address, "data:"))
                ]
                assert visit.requests, "what a page asks for is seen"
                if not browser.evaluate("document.querySelector('article h1')?.innerText.trim().length > 0"):
                    wrong.append(f"{place}: no heading")
                if not browser.evaluate("document.querySelectorAll('nav a[href]').length > 5"):
                    wrong.append(f"{place}: no menu")
                over = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                if over > 0:
                    wrong.append(f"{place}: scrolls {over} pixels sideways")
                light = browser.evaluate("getComputedStyle(document.body).backgroundColor")
                if (light == "rgb(255, 255, 255)") is dark:
                    wrong.append(f"{place}: the background is {light}")
                browser.screenshot(shots / f"{found.replace('/', '-')}-{width}-{'dark' if dark else 'light'}.png")
        assert not wrong, "\n".join(wrong)
        browser.open(f"{address}/", 1280)
        search = """new Promise(done => {
            const field = document.querySelector('.md-search__input')
            field.focus(); field.value = 'receipt'; field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}))
            field.dispatchEvent(new Event('input', {bubbles: true}))
            const look = () => {
                const found = document.querySelectorAll('.md-search-result__item').length
                found > 0 ? done(found) : setTimeout(look, 50)
            }
            look(); setTimeout(() => done(0), 20000)
        })"""
        assert browser.evaluate(search) > 0, "the search finds a word of these pages"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_page_that_complains_asks_around_or_scrolls_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<p style='width: 3000px'>wide</p><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('heard'); setTimeout(() => { throw Error('thrown') }, 1)</script>"
    )
    with Browser(tmp_path / "profile") as browser:
        visit = browser.open(page.as_uri(), 1280)
        assert "http://127.0.0.1:9/x.png" in visit.requests
        assert any("heard" in complaint for complaint in visit.complaints)
        assert any("thrown" in complaint for complaint in visit.complaints)
        assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") > 1000
