"""`sherl-cache methods`: every plug-in with all that a person asks of it, those of other packages among them."""

import contextlib
import io
import textwrap
from pathlib import Path

import pytest
from cli import call

from sherl_cache.pipeline.cli import main
from sherl_cache.stages import plugins

ELSEWHERE = '''
from pydantic import Field
from sherl_cache.stages.methods.contract import Loss, Objective, Options

class Choice(Options):
    needed: int = Field(description="What it cannot do without.")

class Elsewhere(Objective):
    """Sums the output.

        L = sum of y

    And more, over a line that is long enough to be filled anew where a terminal has eighty columns and no more.
    """
    Config = Choice
    source = "nobody"
    kinds = ("classification",)
    output = "classes"

    def forward(self, output, targets):
        return Loss(output.sum(), output.new_ones(()), {})
'''


@pytest.fixture
def two_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip leaves behind: a method that works and one whose file does not."""
    (tmp_path / "elsewhere_method.py").write_text(ELSEWHERE)
    (tmp_path / "broken_method.py").write_text("raise OSError('no licence')\n")
    metadata = tmp_path / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    points = "[sherl_cache.objective]\nours = elsewhere_method\nbroken = broken_method\n"
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))


def printed(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(list(words)) == 0
    return out.getvalue()


def test_every_page_has_paper_formula_and_options_on_eighty_columns() -> None:
    listed = printed("methods")
    for axis in plugins.AXES:
        for name in plugins.names(axis):
            assert name in listed
            page = printed("methods", name)
            described = plugins.describe(axis, name)
            flat = " ".join(page.split())
            for said in (described.summary, described.source, described.trains):
                assert said, (axis, name)
                assert " ".join(said.split()) in flat, (axis, name)
            for option in described.options:
                assert f"{option.name}: {option.type}" in flat
                assert " ".join(option.help.split()) in flat
            assert max(map(len, page.splitlines())) <= 80, name
            assert all(line == line.rstrip() for line in page.splitlines())
    assert max(map(len, listed.splitlines())) <= 80


def test_a_name_on_two_axes_shows_both() -> None:
    both = [item["axis"] for item in call("methods", "regression")["methods"]]
    assert both == ["head", "objective"]


def test_methods_of_other_packages_are_listed_and_shown(two_of_another_package: None) -> None:
    listed = " ".join(printed("methods").split())
    assert "ours Sums the output. [elsewhere]" in listed
    assert "broken cannot be used: objective.name: 'broken' cannot be imported from broken_method" in listed
    page = printed("methods", "ours")
    assert page == textwrap.dedent("""\
        objective: {name: ours}, of the package elsewhere

        Sums the output.

            L = sum of y

        And more, over a line that is long enough to be filled anew where a terminal has
        eighty columns and no more.

        source   nobody
        reads    classes; for classification
        trains   0

        options
          needed: int = required
              What it cannot do without.
        """)
    (item,) = call("methods", "ours")["methods"]
    assert (item["package"], item["trained"]) == ("elsewhere", None)
    (item,) = call("methods", "broken")["methods"]
    assert "no licence" in item["problem"]
