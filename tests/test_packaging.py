"""The wheel holds every folder, and nothing but sherl_cache reaches site-packages."""

import subprocess
import sys
import tomllib
from pathlib import Path

import sherl_cache

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("configs", "pipeline", "stages", "storage")
FRONT_DOOR = "pipeline/_root"
"""Holds `sherl_cache/__init__.py`."""


def test_every_folder_with_an_init_is_listed() -> None:
    """A folder that is not listed is missing from the wheel, silently, while editable installs work."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {
        ".".join(("sherl_cache", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(tool["packages"]) == found - {"sherl_cache.pipeline._root"} | {"sherl_cache"}
    assert tool["package-dir"] == {"sherl_cache": FRONT_DOOR, **{f"sherl_cache.{folder}": folder for folder in FOLDERS}}


def test_importing_the_package_imports_nothing_heavy_and_offers_its_names() -> None:
    code = (
        "import sys, sherl_cache\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'zarr', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert sherl_cache.__version__\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(getattr(sherl_cache, name) for name in sherl_cache.__all__)
    assert sherl_cache.SherlModel.__module__ == "sherl_cache.pipeline.pretrained"


def test_every_folder_of_python_has_an_init() -> None:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} would not be installed"


def test_every_recipe_and_only_yaml_ships() -> None:
    from sherl_cache.pipeline.recipe import load_recipe, shipped_recipes

    assert set(shipped_recipes()) >= {"sherl", "sherl-paper", "last", "lora", "probe"}
    for name in shipped_recipes():
        assert load_recipe(name).name == name


def test_every_recipe_starts_with_its_command() -> None:
    for path in sorted((ROOT / "configs" / "recipes").glob("*.yaml")):
        assert path.read_text("utf-8").startswith("# sherl-cache train --store ./cache --config "), path
