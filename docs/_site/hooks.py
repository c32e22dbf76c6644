"""What the site has beyond the Markdown of docs/: pages made from the code, from notebooks, and of files that pages link to.

mkdocs calls the `on_...` functions while it builds. README and the pages link to each other, and to files beside docs/, as GitHub
shows them; here such a file is a page below repository/, and links lead there.
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
MADE: Final = {"commands": command_page, "recipe": recipe_page, "methods": method_page}
LINK: Final = re.compile(r"(\]\()([\w./-]+\.\w+)((?:#[\w-]+)?\))")
ELSEWHERE: Final = "repository/"
LANGUAGES: Final = {".py": "python", ".toml": "toml", ".yaml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not hold."""
    for name, made in MADE.items():
        files.append(File.generated(config, f"reference/{name}.md", content=made.page()))
    for notebook in [each for each in files if each.src_uri.endswith(".ipynb")]:
        text = notebook_page.page(ROOT / "docs" / notebook.src_uri, run=bool(config.extra["run_notebooks"]))
        files.append(File.generated(config, notebook.src_uri.removesuffix(".ipynb") + ".md", content=text))
    waiting = [path for page in files.documentation_pages() for path in _beside(page.src_uri, page.content_string)]
    known: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path not in known:
            known.add(path)
            text = _shown(path)
            files.append(File.generated(config, _place(path), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
            waiting += _beside(_place(path), text)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where the site has what they name: the page of a notebook, of a file beside docs/."""
    here = page.file.src_uri

    def led(link: re.Match[str]) -> str:
        place = _place(_path(here, link[2]))
        if place == here:  # a notebook's page leads to the notebook
            return link[0]
        return f"{link[1]}{posixpath.relpath(place, posixpath.dirname(here))}{link[3]}"

    return LINK.sub(led, markdown)


def _beside(here: str, text: str) -> list[str]:
    """Files beside docs/ that a page of the site links to, from the top of the repository. Raises PluginError for no file."""
    paths = [_path(here, link[2]) for link in LINK.finditer(text)]
    for path in paths:
        if not path.startswith("docs/") and not (ROOT / path).is_file():
            raise PluginError(
                f"{here} links to {path}, which is no file of the repository; link to one, not to a folder"
            )
    return [path for path in paths if not path.startswith("docs/")]


def _path(here: str, link: str) -> str:
    """What a link of a page of the site names, from the top of the repository."""
    home = here.removeprefix(ELSEWHERE) if here.startswith(ELSEWHERE) else f"docs/{here}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), link))


def _place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return f"{ELSEWHERE}{path}" if path.endswith(".md") else f"{ELSEWHERE}{path}.md"


def _shown(path: str) -> str:
    """A page with a file: Markdown as it is read, all else as code."""
    content = (ROOT / path).read_text("utf-8")
    if path.endswith(".md"):
        return content
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", content))])
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{content}{fence}\n"
