"""Methods are found by file name or entry point, one at a time, and every mistake is named."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from sherl_cache.stages import plugins
from sherl_cache.stages.methods import fusion as fusion_package
from sherl_cache.stages.methods.fusion.last import Last
from sherl_cache.storage.errors import RecipeError

METHOD = '''
"""A method from elsewhere."""
from sherl_cache.stages.methods.contract import Objective, Loss

class Elsewhere(Objective):
    """Sums the output.

    And more.
    """
    source = "nobody"
    kinds = ("classification",)
    output = "classes"

    def forward(self, output, targets):
        return Loss(output.sum(), output.new_ones(()), {})
'''


@pytest.fixture
def fusion_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files are fusions as those of the package itself are."""
    monkeypatch.setattr(fusion_package, "__path__", [*fusion_package.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(fusion_package.__name__):
            del sys.modules[name]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    """What pip leaves behind of a package with entry points."""
    metadata = folder / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(folder))


def test_listing_names_imports_neither_torch_nor_a_method() -> None:
    code = (
        "import sys; from sherl_cache.stages import plugins\n"
        "assert all(plugins.names(axis) for axis in plugins.AXES)\n"
        "loaded = [name for name in sys.modules if name == 'torch' or name.endswith('.fusion.last')]\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_method_is_found_by_the_name_of_its_file() -> None:
    assert plugins.find("fusion", "last") is Last
    assert {"sherl", "weighted_sum", "last"} <= set(plugins.names("fusion"))
    assert Last.method_name() == "last"


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r"fusion\.name.*'weighted_sun'.*did you mean weighted_sum\?"):
        plugins.find("fusion", "weighted_sun")
    with pytest.raises(RecipeError, match=r"there are head2toe, .*, sherl, .*, weighted_sum"):
        plugins.find("fusion", "../../etc/passwd")


def test_a_new_file_is_a_method_and_a_broken_neighbour_hurts_nobody(fusion_folder: Path) -> None:
    (fusion_folder / "broken.py").write_text("this is no python")
    (fusion_folder / "mine.py").write_text(
        "from ..contract import Block, TokenwiseFusion\n"
        "class MineBlock(Block):\n    def forward(self, taps):\n        return taps.mean(0)\n"
        "class Mine(TokenwiseFusion):\n    block = MineBlock\n"
    )
    assert {"broken", "mine"} <= set(plugins.names("fusion"))
    assert plugins.find("fusion", "mine").method_name() == "mine"
    assert plugins.find("fusion", "last") is Last
    with pytest.raises(RecipeError, match=r"fusion\.name: 'broken' cannot be imported.*SyntaxError"):
        plugins.find("fusion", "broken")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("from ..contract import Block, Fusion, TokenwiseFusion\n", 0),
        ("from .last import Last\n", 0),
        ("from .last import Last\nclass A(Last): pass\nclass B(Last): pass\n", 2),
    ],
)
def test_a_file_holds_exactly_one_method(fusion_folder: Path, text: str, count: int) -> None:
    (fusion_folder / "several.py").write_text(text)
    with pytest.raises(RecipeError, match=f"holds {count} subclasses of Fusion"):
        plugins.find("fusion", "several")


def test_other_packages_join_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere_method.py").write_text(METHOD)
    points = (
        "[sherl_cache.objective]\nby_module = elsewhere_method\nby_class = elsewhere_method:Elsewhere\n"
        "absent = elsewhere_method:Absent\nclassification = elsewhere_method\n"
    )
    install(tmp_path, monkeypatch, points)
    assert {"by_module", "by_class", "classification"} <= set(plugins.names("objective"))
    found = plugins.find("objective", "by_module")
    assert found.__name__ == "Elsewhere"
    assert plugins.find("objective", "by_class") is found
    assert plugins.find("objective", "classification").__name__ == "Classification"
    assert plugins.describe("objective", "by_class").summary == "Sums the output."
    with pytest.raises(RecipeError, match="holds 0 subclasses of Objective"):
        plugins.find("objective", "absent")


def test_a_description_has_summary_source_and_every_option() -> None:
    described = plugins.describe("fusion", "weighted_sum")
    assert described.summary == "One learned weight a layer, the same for every token."
    assert "1802.05365" in described.source
    assert [(option.name, option.type, option.default) for option in described.options] == [
        ("taps", "str | None", None),
        ("layer_norm", "bool", False),
    ]
    pooling = plugins.describe("head", "classifier").options[0]
    assert pooling.type == "'mean' | 'cls' | 'last' | None"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = 0.1
    inner: Inner | None = None
    needed: int


def test_every_wrong_option_is_named_with_what_would_be_right() -> None:
    with pytest.raises(RecipeError) as caught:
        plugins.validate_options(Outer, {"raet": 1, "rate": "much"}, where="head", owner="outer")
    lines = str(caught.value).splitlines()
    assert lines == [
        "head.rate: should be a valid number, unable to parse string as a number, not 'much'",
        "head.needed: outer needs this option",
        "head.raet: unknown option of outer (did you mean rate?); it has rate, inner, needed",
    ]


def test_right_options_come_back_as_the_model() -> None:
    options = {"needed": 3, "inner": {"rank": 2}}
    assert plugins.validate_options(Outer, options, where="head", owner="outer") == Outer(needed=3, inner=Inner(rank=2))
