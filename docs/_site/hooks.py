"""What the site has beyond the Markdown of docs/: pages made from the code, from the notebook, and of files that pages link to.

mkdocs calls the `on_...` functions while it builds.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import command_page
import method_page
import notebook_page
import recipe_page
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[2]
LINK: Final = re.compile(r"(\]\()((?:\.\./)+[\w./-]+)((?:#[\w-]+)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file holds."""
    for name, page in {"commands": command_page, "recipe": recipe_page, "methods": method_page}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page.page()))
    for found in [each for each in files if each.src_uri.endswith(".ipynb")]:
        text = notebook_page.page(ROOT / "docs" / found.src_uri, run=bool(config.extra["run_notebooks"]))
        files.append(File.generated(config, found.src_uri.removesuffix(".ipynb") + ".md", content=text))
    for target in sorted({target for page in files.documentation_pages() for target in _outside(page)}):
        shown = File.generated(config, _home(target), content=_shown(target), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(shown)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the repository, which are beside the pages on GitHub, to the site's copy of them."""

    def replaced(match: re.Match[str]) -> str:
        target = _target(page.file, match[2])
        if target is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(_home(target), posixpath.dirname(page.file.src_uri))})"

    return LINK.sub(replaced, markdown)


def _outside(page: File) -> list[str]:
    """Files of the repository that a page links to and docs/ does not hold."""
    found = (_target(page, match[2]) for match in LINK.finditer(page.content_string))
    return [target for target in found if target is not None]


def _target(page: File, link: str) -> str | None:
    """The file that a link names, from the top of the repository; None below docs/. Raises PluginError for none."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), link))
    if path.startswith("docs/"):
        return None
    if not (ROOT / path).is_file():
        raise PluginError(f"{page.src_uri} links to {link}, which is no file of the repository; link to one")
    return path


def _home(target: str) -> str:
    return f"repository/{target}.md"


def _shown(target: str) -> str:
    """A page with the file as it is."""
    language = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".toml": "toml"}.get(Path(target).suffix, "text")
    content = (ROOT / target).read_text("utf-8")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", content))])
    return f"# {target}\n\n{fence}{language}\n{content}{fence}\n"
