"""What a notebook shows of a store, a plan and a run, read back as a browser would: every text is text."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline.run import Run
from sherl_cache.storage import Store
from sherl_cache.storage.notebook import bytes_text, facts_html, table_html, taps_text

EVIL = "<script>alert('x')</script> & \"quoted\" \x1b[31m\x00\u202e</td>"
ALLOWED = {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


class Page(HTMLParser):
    """Tags and cells of a page; an unclosed or unexpected tag is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        assert {name for name, _ in attrs} <= {"style", "scope"}
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a finished run; the data and the run lie in folders that are named like markup."""
    folder = tmp_path_factory.mktemp("notebook") / "<b>&'"
    (folder / "data").mkdir(parents=True)
    tiny_bert(folder / "model")
    data = ("--data", write_csv(folder / "data" / "<i>train.csv", 64), "--splits", "holdout:16")
    call("extract", "--model", folder / "model", *data, "--store", folder / "cache")
    call("train", "--store", folder / "cache", "--run", folder / "run", "--epochs", 2)
    return folder


def test_a_store_shows_what_info_says(place: Path) -> None:
    said = call("info", "--store", place / "cache")
    page = Page(Store.open(place / "cache")._repr_html_())
    facts = dict(row for row in page.rows if len(row) == 2)
    assert str(place / "cache") in page.text
    assert facts["model"] == said["model"]
    assert facts["data"] == said["data"] == str(place / "data" / "<i>train.csv")
    assert facts["state"] == "complete"
    assert facts["size"] == bytes_text(said["bytes"])
    assert facts["digest"] == said["digest"]
    assert facts["encoding"] == "bfloat16"
    shown = {row[0]: row for row in page.rows if len(row) == 6}
    assert {name: shown[name][1] for name in said["splits"]} == {name: str(n) for name, n in said["splits"].items()}
    assert shown["train"][3] == taps_text(said["taps"]["encoder"]) == "h00 to h04"


def test_a_store_that_is_not_complete_says_so(place: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(place / "cache", tmp_path / "partial")
    for path in (tmp_path / "partial" / "sherl").glob("manifest-*.json"):
        path.unlink()
    page = Page(Store.open(tmp_path / "partial", allow_partial=True)._repr_html_())
    facts = dict(row for row in page.rows if len(row) == 2)
    assert facts["state"] == "units are missing"
    assert "digest" not in facts


def test_a_run_shows_its_scores(place: Path) -> None:
    run = Run.open(place / "run")
    result = run.result()
    assert result is not None
    page = Page(run._repr_html_())
    facts = dict(row for row in page.rows if len(row) == 2)
    assert facts["recipe"] == "sherl"
    assert facts["state"] == "finished"
    assert facts["steps"] == str(result["steps"])
    scores = [row for row in page.rows if len(row) == 3][1:]
    assert [row[0] for row in scores] == [str(record["step"]) for record in result["history"]]
    assert [float(row[2]) for row in scores] == pytest.approx(
        [record["value"] for record in result["history"]], rel=1e-3
    )


def test_text_is_text_whatever_stands_in_it(place: Path, tmp_path: Path) -> None:
    page = Page(facts_html(EVIL, [(EVIL, EVIL), ("nothing", None)], table_html([EVIL], [[EVIL], [3], [0.25], [True]])))
    assert "<script>alert('x')</script> & \"quoted\"" in page.text
    assert not [character for character in page.text if not character.isprintable()]
    assert "nothing" not in page.text
    assert [row for row in page.rows if len(row) == 1][2:] == [["3"], ["0.25"], ["True"]]
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "run.json"):
        (run / name).write_bytes((place / "run" / name).read_bytes())
    facts = json.loads((run / "run.json").read_text())
    facts["producer"]["model"]["name"] = EVIL
    (run / "run.json").write_text(json.dumps(facts))
    page = Page(Run.open(run)._repr_html_())
    assert "<script>alert" in page.text
    assert dict(row for row in page.rows if len(row) == 2)["state"] == "not finished"


def test_taps_and_long_texts_are_short() -> None:
    assert [taps_text(taps) for taps in ((0, 1, 2, 3), (0, 2), (0, 1, 3), (5,))] == [
        "h00 to h03",
        "h00, h02",
        "h00, h01, h03",
        "h05",
    ]
    assert len(Page(facts_html("x" * 10_000, [])).text) < 250
