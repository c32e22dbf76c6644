"""Completion by click's own protocol, as each shell's script asks for it; in bash by the script itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli import ENVIRONMENT

from sherl_cache.pipeline.cli import cli
from sherl_cache.pipeline.recipe import shipped_recipes
from sherl_cache.pipeline.reporting import tracker_names
from sherl_cache.stages import plugins

METHODS = sorted({name for axis in plugins.AXES for name in plugins.names(axis)})


def offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What is offered for the last word, `type,value` each, as bash's script reads it."""
    monkeypatch.setenv("_SHERL_CACHE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["sherl-cache", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit) as ended:
        cli.main(prog_name="sherl-cache", standalone_mode=False)
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("tr",), ["plain,train"]),
        (("recipe", "s"), ["plain,schema", "plain,show"]),
        (("train", "--epo"), ["plain,--epochs"]),
        (("train", "--config", "sherl"), ["plain,sherl", "plain,sherl-paper"]),
        (("train", "--config", "./mine"), ["file,./mine"]),
        (("recipe", "show", "vq"), ["plain,vqt"]),
        (("sweep", "sherl", "las"), ["plain,last"]),
        (("train", "--store", "ca"), ["dir,ca"]),
        (("train", "--set", "train.epo"), ["plain,train.epochs="]),
        (("train", "--set", "train.schedule=c"), ["plain,train.schedule=cosine", "plain,train.schedule=constant"]),
        (("train", "--set", "fusion.name=uni"), ["plain,fusion.name=unipt"]),
        (("train", "--set", "train.compile="), ["plain,train.compile=true", "plain,train.compile=false"]),
        (("train", "--device", "c"), ["plain,cpu", "plain,cuda"]),
        (("train", "--report-to", "wandb,ten"), ["plain,wandb,tensorboard"]),
        (("extract", "--encoding", "bf"), ["plain,bfloat16"]),
        (("extract", "--task", "sst"), ["plain,sst2"]),
        (("extract", "--data", "builtin/r"), ["plain,builtin/reviews", "file,builtin/r"]),
        (("extract", "--model", "builtin/m"), ["plain,builtin/minilm", "dir,builtin/m"]),
        (("methods", "u_"), [f"plain,{name}" for name in METHODS if name.startswith("u_")]),
    ],
)
def test_the_last_word_is_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: list[str]
) -> None:
    assert offered(monkeypatch, capsys, *words) == expected


def test_everything_is_offered_where_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [line.removeprefix("plain,") for line in offered(monkeypatch, capsys, "")]
    assert {"extract", "train", "methods", "explain-stale"} <= set(commands)
    recipes = offered(monkeypatch, capsys, "train", "--config", "")
    assert recipes == [f"plain,{name}" for name in shipped_recipes()]
    assert offered(monkeypatch, capsys, "methods", "") == [f"plain,{name}" for name in METHODS]
    trackers = offered(monkeypatch, capsys, "train", "--report-to", "")
    assert trackers == [f"plain,{name}" for name in tracker_names()] != []


def test_no_completion_imports_torch() -> None:
    """Every kind of word in one fresh process."""
    code = (
        "import os, sys\n"
        "from sherl_cache.pipeline.cli import cli\n"
        "for words in (['tr'], ['train', '--set', 'fus'], ['methods', ''], ['plan', '--task', ''], ['plan', '--encoding', '']):\n"
        "    os.environ.update(COMP_WORDS=' '.join(['sherl-cache', *words]), COMP_CWORD=str(len(words)))\n"
        "    try: cli.main(prog_name='sherl-cache', standalone_mode=False)\n"
        "    except SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'dask', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**ENVIRONMENT, "_SHERL_CACHE_COMPLETE": "bash_complete"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "plain,train" in done.stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered_in_their_own_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    """Their scripts are click's; neither shell needs to be here."""
    monkeypatch.setenv("_SHERL_CACHE_COMPLETE", f"{shell}_source")
    with pytest.raises(SystemExit):
        cli.main(prog_name="sherl-cache", standalone_mode=False)
    assert f"_SHERL_CACHE_COMPLETE={shell}_complete" in capsys.readouterr().out
    monkeypatch.setenv("_SHERL_CACHE_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "sherl-cache methods" if shell == "fish" else "sherl-cache methods vq")
    monkeypatch.setenv("COMP_CWORD", "vq" if shell == "fish" else "2")
    with pytest.raises(SystemExit):
        cli.main(prog_name="sherl-cache", standalone_mode=False)
    said = capsys.readouterr().out
    assert "vqt" in said
    assert "fusion" in said  # both show an item's help


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(tmp_path: Path) -> None:
    """The script that a user sources, and the function that it gives to bash's `complete`."""
    command = tmp_path / "sherl-cache"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sherl_cache.pipeline "$@"\n')
    command.chmod(0o755)
    script = """
        eval "$(_SHERL_CACHE_COMPLETE=bash_source sherl-cache)"
        COMP_WORDS=(sherl-cache train --config las) COMP_CWORD=3
        _sherl_cache_completion sherl-cache
        echo "${COMPREPLY[@]}"
        complete -p sherl-cache
    """
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    if "older than 4.4" in done.stderr:
        pytest.skip("this bash is older than click's script asks for")
    assert done.returncode == 0, done.stderr
    words, complete = done.stdout.splitlines()
    assert words == "last"
    assert "_sherl_cache_completion" in complete
