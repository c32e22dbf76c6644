"""Batch scripts: shellcheck is content, a user's values arrive as one word each, and what a cluster file says is asked for."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cli import call

from sherl_cache.pipeline.cluster.jobs import write_jobs
from sherl_cache.pipeline.cluster.settings import Cluster, parse_cluster
from sherl_cache.pipeline.recipe import load_recipe, parse_recipe
from sherl_cache.storage.errors import UsageError

SCHEMAS = json.loads((Path(__file__).parents[3] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
LEAST: dict[str, Any] = {"scheduler": "slurm", "wall_time": "4h", "cores": 4, "memory": "16GiB"}
RICH: dict[str, Any] = {
    **LEAST,
    "queue": "gpu",
    "account": "me",
    "gpus": 2,
    "workers": 2,
    "max_jobs": 8,
    "scratch": "$SCRATCH/it's",
    "setup": ["module() { true; }", "module load cuda"],
    "directives": ["--constraint=a100"],
    "python": "nice 'my python'",
    "train": {"nodes": 2, "wall_time": "12h", "gpus": 1},
}
NASTY = 'a folder of it\'s "own" $(touch oops) `id` #1 %j *'
RECIPE = load_recipe(None, (), **{"extract.model": "t5-base", "extract.data": "glue/sst2"})
# stands for srun: its options and NUL-separated words to a file, and an exit code by command
SRUN = """\
#!/bin/bash
printf '%s\\0' "$PWD" "$@" >> "$TOLD"
printf '\\n' >> "$TOLD"
for word; do case $word in copy) exit "${COPY:-0}";; extract|train) exit "${CODE:-0}";; esac; done
"""
SCONTROL = """\
#!/bin/bash
echo "$@" >> "$TOLD.scontrol"
"""


def cluster(**changed: Any) -> Cluster:
    return parse_cluster({**LEAST, **changed}, "my.yaml")


def written(tmp_path: Path, found: Cluster, **options: Any) -> dict[str, str]:
    result = write_jobs(RECIPE, found, str(tmp_path / "cache"), tmp_path / "jobs", **options)
    return {name: (tmp_path / "jobs" / name).read_text() for name in result["scripts"]}


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(
    "settings", [LEAST, RICH, {**RICH, "workers": 1, "train": {}}, {**LEAST, "scratch": "/local/x"}]
)
def test_shellcheck_finds_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = tmp_path / NASTY
    write_jobs(RECIPE, parse_cluster(settings, "x"), str(folder / "cache"), folder / "jobs", folder / "run")
    files = [str(folder / "jobs" / name) for name in ("extract.sbatch", "train.sbatch", "submit.sh")]
    done = subprocess.run(["shellcheck", "--severity=style", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_cluster_file_without_wishes_names_no_site(tmp_path: Path) -> None:
    told = written(tmp_path, cluster())
    assert directives(told["extract.sbatch"]) == [
        "--job-name=sherl-extract",
        "--array=1-4",
        "--output=logs/extract-%A_%a.log",
        "--time=4:00:00",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--mem=16384M",
        "--signal=USR1@120",
        "--requeue",
        "--open-mode=append",
    ]
    assert "TMPDIR" not in told["extract.sbatch"] + told["train.sbatch"]
    assert "copy" not in told["train.sbatch"]


def test_what_a_cluster_file_says_is_asked_for(tmp_path: Path) -> None:
    told = written(tmp_path, parse_cluster(RICH, "rich.yaml"), parts=64)
    extract, train = directives(told["extract.sbatch"]), directives(told["train.sbatch"])
    both = {
        "--partition=gpu",
        "--account=me",
        "--requeue",
        "--open-mode=append",
        "--signal=USR1@120",
        "--constraint=a100",
    }
    assert both <= set(extract)
    assert both <= set(train)
    assert {"--array=1-64%8", "--time=4:00:00", "--ntasks-per-node=2", "--cpus-per-task=2", "--gpus-per-task=1"} <= set(
        extract
    )
    assert {"--time=12:00:00", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4", "--gpus-per-node=1"} <= set(
        train
    )
    assert "--part slurm" in told["extract.sbatch"]  # two processes a task share its share
    for text in (told["extract.sbatch"], told["train.sbatch"]):
        lines = text.splitlines()
        assert lines.index("module load cuda") < lines.index("set -u")


def execute(folder: Path, script: str, work: Path, **environment: str) -> tuple[int, list[list[str]]]:
    """Run a script with a stand-in for srun; its exit code, and the words of each call after the folder it ran in."""
    tools = work / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    told = work / "told"
    told.unlink(missing_ok=True)
    fixed = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NUM_NODES": "1", "TOLD": str(told)}
    done = subprocess.run(
        ["bash", str(folder / script)],
        env={"PATH": f"{tools}:{os.environ['PATH']}", **fixed, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [line.split("\0")[:-1] for line in told.read_text().split("\n")[:-1]] if told.exists() else []
    return done.returncode, calls


def test_every_path_arrives_as_one_word_and_nothing_in_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / NASTY
    work.mkdir()
    monkeypatch.chdir(work)
    jobs = Path("my jobs")
    write_jobs(RECIPE, cluster(scratch="$SCRATCH/it's"), "the cache", jobs, Path("the 'run'"))
    code, [[folder, *words]] = execute(work / jobs, "extract.sbatch", tmp_path, SCRATCH=str(tmp_path / "disk 1"))
    assert code == 0
    assert folder == str(work)
    assert words[words.index("extract") :] == [
        *("extract", "--config", str(work / "my jobs" / "recipe.yaml")),
        *("--store", str(work / "the cache"), "--part", "3/4"),
    ]
    scratch = tmp_path / "disk 1" / "it's" / "sherl-cache-77" / "cache"
    code, [_, copy, train] = execute(work / jobs, "train.sbatch", tmp_path, SCRATCH=str(tmp_path / "disk 1"))
    assert code == 0
    assert copy[copy.index("--store") :] == ["--store", str(work / "the cache"), "--to", str(scratch)]
    assert train[train.index("--store") :] == ["--store", str(scratch), "--run", str(work / "the 'run'")]
    assert not scratch.parent.exists()  # removed at the end
    assert not list(tmp_path.rglob("oops"))


@pytest.mark.parametrize(
    ("copied", "code", "reads"), [("0", 0, "sherl-cache-77/cache"), ("6", 0, "cache"), ("5", 5, None), ("75", 75, None)]
)
def test_a_store_that_does_not_fit_on_the_node_is_read_where_it_is_and_other_errors_end_the_job(
    tmp_path: Path, copied: str, code: int, reads: str | None
) -> None:
    written(tmp_path, cluster(scratch=str(tmp_path / "local")))
    found, calls = execute(tmp_path / "jobs", "train.sbatch", tmp_path, COPY=copied)
    trains = [words for words in calls if "train" in words]
    assert found == code
    assert [words[words.index("--store") + 1] for words in trains] == (
        [] if reads is None else [str(tmp_path / ("local" if "77" in reads else "") / reads)]
    )


@pytest.mark.parametrize(
    ("code", "restarts", "queued"),
    [("0", "0", 0), ("75", "0", 1), ("75", "1", 1), ("75", "2", 0), ("3", "0", 0), ("1", "1", 0)],
)
def test_a_stopped_job_is_queued_again_so_often_and_no_other(
    tmp_path: Path, code: str, restarts: str, queued: int
) -> None:
    written(tmp_path, cluster(max_requeues=2))
    found, _ = execute(tmp_path / "jobs", "extract.sbatch", tmp_path, CODE=code, SLURM_RESTART_COUNT=restarts)
    assert found == int(code)
    told = tmp_path / "told.scontrol"
    assert (told.read_text().splitlines() if told.exists() else []) == ["requeue 77"] * queued


def test_scripts_read_the_recipe_as_it_was_when_they_were_written(tmp_path: Path) -> None:
    told = written(tmp_path, cluster())
    assert parse_recipe(yaml.safe_load(told["recipe.yaml"]), "recipe.yaml") == RECIPE


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        ({"scheduler": "pbs"}, {}, "this cluster has pbs"),
        ({}, {"parts": 1001}, "at most 1000 tasks"),
        ({}, {"run": Path("a\nb")}, "control characters"),
    ],
)
def test_what_no_script_can_do_is_refused(
    tmp_path: Path, changed: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        written(tmp_path, cluster(**changed), **options)


def test_the_command_writes_them_and_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("sbatch", "probe", "--model", "t5-base", "--data", "glue/sst2", "--parts", 16)
    result = call(*words, "--set", "train.epochs=2")
    jsonschema.validate(result, SCHEMAS["sbatch"])
    assert result["scripts"] == ["recipe.yaml", "extract.sbatch", "train.sbatch", "submit.sh"]
    recipe = yaml.safe_load((tmp_path / "jobs" / "recipe.yaml").read_text())
    assert (recipe["name"], recipe["train"]["epochs"], recipe["extract"]["model"]) == ("probe", 2, "t5-base")
    assert "extract.model" in call("sbatch", "probe", "--data", "glue/sst2", code=2)
    monkeypatch.setenv(
        "PATH", os.path.dirname(shutil.which("bash") or "") if shutil.which("sbatch") is None else "/none"
    )
    assert "submit" in call(*words, "--submit", code=2)
