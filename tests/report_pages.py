"""Pages of `report`, read back as a browser would."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
from cli import call

SCHEMAS = json.loads((Path(__file__).parents[1] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]


class Parsed(HTMLParser):
    """Tags with their attributes, anchors, and the text outside of the style sheet."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def sections(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.tags if tag == "section"]


def reported(root: Path, *words: object) -> tuple[dict[str, Any], Parsed, str]:
    out = root / "page.html"
    result = call("report", *words, "--out", out)
    jsonschema.validate(result, SCHEMAS["report"])
    text = out.read_text("utf-8")
    assert len(text.encode()) == result["bytes"] < 5 << 20
    return result, Parsed(text), text


def asks_for_nothing(page: Parsed, text: str) -> None:
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not set(attributes) & {"src", "srcset", "onload", "onerror", "onclick", "style"}, tag
        assert str(attributes.get("href", "#")).startswith("#")
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"'sha256-{digest}'" in policy
    assert not re.search(r"url\(|@import", style[0])
