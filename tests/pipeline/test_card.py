"""The model card: markup in names and labels stays text."""

import re

import torch
import yaml
from markdown_it import MarkdownIt

from sherl_cache.pipeline.card import escaped, model_card
from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.trained import Trained

EVIL = (
    "<script>alert(1)</script>",
    "[a](javascript:alert(1))",
    "![a](https://example.org/x.png)",
    "`code` **bold** _it_ # h",
    "a | b\n\n# heading\n\n- item",
    "https://example.org www.example.org",
    "&lt;b&gt;",
    "---\nlicense: mit\n---",
)


def trained(text: str) -> Trained:
    producer = {
        "model": {
            "name": text,
            "revision": text,
            "model_type": text,
            "weights": "0" * 64,
            "precision": text,
        },
        "task": {"name": text, "kind": "classification", "labels": [text, "b"], "columns": ["text"], "max_length": 8},
        "data": {"name": text, "synthetic": True},
        "late": 1,
    }
    result = {"metric": text, "best": 0.5, "best_epoch": 0, "history": [{}], "trained_parameters": 1, "steps": 1}
    result |= {"seconds": 1.0, "peak_memory_bytes": 1}
    evals = [{"data": text, "split": text, "examples": 1, "metric": text, "value": 0.5}]
    return Trained("here", producer, load_recipe("last"), {"head.weight": torch.zeros(1)}, result, evals)


def tags(card: str) -> list[str]:
    """Every tag of the page without the front matter, in order."""
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(card.split("\n---\n", 1)[1])
    return re.findall(r"<[^>]*>", html)


def test_markup_in_names_and_labels_makes_no_tag() -> None:
    plain = tags(model_card(trained("plain"), "plain", 1))
    for text in EVIL:
        assert tags(model_card(trained(text), text, 1)) == plain, text


def test_escaped_text_shows_as_it_was() -> None:
    for text in EVIL:
        html = MarkdownIt().renderInline(escaped(text))
        for number, letter in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
            html = html.replace(number, letter)
        assert html == " ".join(text.split())


def test_front_matter_is_one_mapping_whatever_the_names_hold() -> None:
    for text in EVIL:
        front = model_card(trained(text), text, 1).split("---\n")[1]
        facts = yaml.safe_load(front)
        assert set(facts) <= {"library_name", "tags", "base_model", "pipeline_tag"}


def test_paths_do_not_reach_the_card() -> None:
    known = trained("plain")
    for part in ("model", "data"):
        known.producer[part]["name"] = f"/home/someone/{part}"
    card = model_card(known, "/home/someone/model", 1)
    assert "someone" not in card
    assert "**Pretrained model**: model," in card
