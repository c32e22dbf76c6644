"""Who may import whom, read from the sources; and that no backbone's name leaks out of its folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("storage", "stages", "pipeline")  # each may import those before it


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[tuple[str, ...]]:
    """Absolute dotted parts of what a file imports; relative imports resolved against its folder."""
    package = path.relative_to(ROOT).parts[:-1]
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = base + tuple((node.module or "").split(".") if node.module else ())
            found |= {(*stem, alias.name) for alias in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {parts[0] for parts in imports(path)}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_only_what_is_below(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for path in modules(layer):
        assert not tops(path) & above, f"{path} imports from {tops(path) & above}"


def test_imports_inside_the_package_are_relative() -> None:
    for layer in LAYERS:
        for path in modules(layer):
            if path.parent.name == "_root":  # sherl_cache/__init__.py, which is not where its place says
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                assert not {name.split(".")[0] for name in names} & {"sherl_cache", *LAYERS, "configs"}, path


def test_storage_imports_neither_torch_nor_dask_nor_transformers() -> None:
    for path in modules("storage"):
        assert not tops(path) & {"torch", "dask", "distributed", "transformers", "datasets"}, path


def test_a_method_file_imports_torch_and_its_contract_only() -> None:
    allowed = {"torch", "pydantic", *sys.stdlib_module_names}
    for axis in ("fusion", "tuner", "head", "objective"):
        for path in modules(f"stages/methods/{axis}"):
            for parts in imports(path):
                ours = parts[:3] == ("stages", "methods", "contract")
                ours |= parts[:3] == ("stages", "methods", axis) and parts[3].startswith("_")  # its own, split off
                assert parts[0] in allowed or ours, f"{path} imports {'.'.join(parts)}"


def test_a_backbone_file_imports_torch_transformers_and_its_contract_only() -> None:
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for path in modules("stages/backbones"):
        if path.name in ("contract.py", "__init__.py"):
            continue
        for parts in imports(path):
            ours = parts[:3] == ("stages", "backbones", "contract")
            assert parts[0] in allowed or ours, f"{path} imports {'.'.join(parts)}"


def test_dask_stays_in_its_rooms() -> None:
    for layer in LAYERS:
        for path in modules(layer):
            if "cluster" not in path.parts and path.stem != "analyze":
                assert not tops(path) & {"dask", "distributed", "dask_jobqueue"}, path


def test_no_family_name_outside_backbones() -> None:
    """Code (names and strings, not prose) that knows a model family belongs into stages/backbones/."""
    from sherl_cache.stages.backbones.contract import all_tables

    families = set(all_tables())
    for layer in LAYERS:
        for path in modules(layer):
            if "backbones" in path.parts:
                continue
            tree = ast.parse(path.read_text("utf-8"))
            # NumPy has a mode "clip"
            modes = {item.value for item in ast.walk(tree) if isinstance(item, ast.keyword) and item.arg == "mode"}
            for node in ast.walk(tree):
                words = set()
                if node in modes:
                    continue
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                    words = {node.value.lower()}
                elif isinstance(node, ast.Name):
                    words = {node.id.lower()}
                assert not words & families, f"{path}:{node.lineno} names a model family"


def test_no_help_imports_more_than_the_command_line() -> None:
    """The help of every command, in one process; modules are counted, since seconds depend on the machine."""
    code = """
import contextlib, io, sys
import click
from sherl_cache.pipeline.cli import cli, main

def every(group, words=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*words, name)
        if isinstance(command, click.Group):
            yield from every(command, (*words, name))

commands = [(), *every(cli)]
said = io.StringIO()
with contextlib.redirect_stdout(said):
    for words in commands:
        assert main([*words, "--help"]) == 0, words
heavy = {"torch", "transformers", "datasets", "dask", "distributed", "zarr", "numpy", "pyarrow", "pydantic", "rich", "yaml"}
heavy |= {"tensorboard", "wandb", "mlflow", "jinja2", "scipy", "sklearn"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
for words in commands[1:]:
    assert "Usage: sherl-cache " + " ".join(words) in said.getvalue(), words
print(len(commands), len([name for name in sys.modules if not name.startswith("sherl_cache")]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands, imported = map(int, done.stdout.split())
    assert commands > 15
    assert imported < 300, "what the help of a command needs is click and a little of the standard library"


def test_nothing_can_run_code_from_a_file() -> None:
    """No pickle, eval, exec or unsafe loader anywhere in the package."""
    banned_modules = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    for layer in LAYERS:
        for path in modules(layer):
            assert not tops(path) & banned_modules, path
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in ("eval", "exec", "torch.load", "yaml.load", "np.load", "numpy.load"), path
                if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                    assert ast.unparse(node.value) == "False", path
