"""Every link of README and docs/ leads to a file that is there, and to a heading that it has."""

import re

import pytest
from doc_pages import DOCS, ROOT, anchors, links, name, pages


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_relative_link_leads_somewhere(page) -> None:
    wrong = []
    for line, link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, part = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            wrong.append(f"{name(page)}:{line}: {link} is not there")
        elif target.is_dir() and page.is_relative_to(DOCS):
            wrong.append(f"{name(page)}:{line}: {link} is a folder, which the site cannot show; link to a file of it")
        elif part and part not in anchors(target):
            wrong.append(
                f"{name(page)}:{line}: {link}: no such heading; there are {', '.join(sorted(anchors(target)))}"
            )
    assert not wrong, "\n".join(wrong)


def test_what_is_read_of_a_page_is_what_it_holds(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b.c`: d\n\n## Twice\n\n## Twice\n\n`[no](link)` [one](x.md#y) ![two](z.svg)\n\n```text\n[no](code)\n# no\n```\n"
    )
    assert anchors(page) == {"a-bc-d", "twice", "twice-1"}
    assert links(page) == [(7, "x.md#y"), (7, "z.svg")]
