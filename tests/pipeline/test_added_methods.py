"""The methods of docs/add-a-method.md: dropped in as files, and in a package of their own, they train and answer."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reviews_csv import write_csv
from tiny import tiny_bert

import sherl_cache.storage

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text("utf-8")
FUSION, TUNER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PACKAGE = Path(sherl_cache.storage.__file__).parents[1]


def run(place: Path, *arguments: Any) -> str:
    """One command, in a process of its own that finds packages in `place` first."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "sherl_cache.pipeline", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def dropped_in(place: Path) -> None:
    """A copy of the package with the two files in it, and nothing else changed."""
    for folder in ("pipeline", "stages", "storage", "configs"):
        shutil.copytree(PACKAGE / folder, place / "sherl_cache" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in PACKAGE.glob("*.py"):
        shutil.copy(file, place / "sherl_cache")
    methods = place / "sherl_cache" / "stages" / "methods"
    (methods / "fusion" / "scaled_mean.py").write_text(FUSION)
    (methods / "tuner" / "output_scale.py").write_text(TUNER)


def a_package_of_its_own(place: Path) -> None:
    """What pip leaves behind of a package with the page's entry points."""
    (place / "my_package").mkdir(parents=True)
    (place / "my_package" / "__init__.py").touch()
    (place / "my_package" / "scaled_mean.py").write_text(FUSION)
    (place / "my_package" / "output_scale.py").write_text(TUNER)
    metadata = place / "my_package-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    points = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "([\w.]+)"', PAGE)
    assert [group for group, _, _ in points] == ["sherl_cache.fusion", "sherl_cache.tuner"]
    text = "".join(f"[{group}]\n{name} = {module}\n" for group, name, module in points)
    (metadata / "entry_points.txt").write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("added", [dropped_in, a_package_of_its_own])
def test_the_pages_methods_train_without_touching_anything_else(tmp_path: Path, added: Any) -> None:
    place = tmp_path / "place"
    added(place)
    model, data = tiny_bert(tmp_path / "model"), write_csv(tmp_path / "train.csv", 60)
    extract = ("--data", data, "--splits", "holdout:20", "--store", tmp_path / "cache")
    run(place, "extract", "--model", model, *extract)
    described = run(place, "methods", "scaled_mean")
    assert "Mean of the taps, each scaled by one trained number." in described
    settings = ("--set", "fusion.name=scaled_mean", "--set", "fusion.taps=every:2", "--set", "tuner.name=output_scale")
    trained = run(place, "train", "--store", tmp_path / "cache", "--run", tmp_path / "run", "--epochs", 1, *settings)
    assert "trained parameters" in trained
    run(place, "predict", "--run", tmp_path / "run", "a fine film")
