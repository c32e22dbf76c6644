"""Cluster files: what they may say, what is refused and in which words, and what scripts get from them."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sherl_cache.pipeline.cluster.settings import Cluster, clock, load_cluster, parse_cluster, shipped_clusters
from sherl_cache.storage.errors import RecipeError

LEAST = {"scheduler": "slurm", "wall_time": "4h", "cores": 4, "memory": "16GiB"}


def cluster(**changed: Any) -> Cluster:
    return parse_cluster({**LEAST, **changed}, "my.yaml")


def refused(**changed: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        cluster(**changed)
    return str(caught.value)


@pytest.mark.parametrize("name", ["slurm", "pbs", "lsf", "sge"])
def test_every_shipped_file_is_valid_says_its_scheduler_and_guesses_nothing(name: str) -> None:
    found = load_cluster(name)
    assert found.scheduler == name
    assert (found.queue, found.account, found.scratch, found.setup, found.directives) == (None, None, None, (), ())


def test_the_shipped_slurm_file_shows_every_setting_that_jobs_of_slurm_read() -> None:
    path = Path(__file__).parents[3] / "configs" / "clusters" / "slurm.yaml"
    shown = set(yaml.safe_load(path.read_text("utf-8")))
    assert set(Cluster.model_fields) - shown == {"python", "interface"}
    assert set(shipped_clusters()) == {file.stem for file in path.parent.glob("*.yaml")}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4h", 14400),
        ("1h30min", 5400),
        ("90 min", 5400),
        ("600s", 600),
        ("2d 1h", 176400),
        ("4:00:00", 14400),
        ("1-12:00:05", 129605),
        ("00:10:00", 600),
    ],
)
def test_times_are_read_with_their_unit(text: str, seconds: int) -> None:
    assert cluster(wall_time=text).wall_time == seconds


@pytest.mark.parametrize("value", [240, 14400.0, "240", "30:00", "", "h", "-1h", None, "4 hours"])
def test_times_without_unit_are_refused_with_the_right_form(value: object) -> None:
    assert "my.yaml: wall_time: " in refused(wall_time=value)
    assert "as 4h" in refused(wall_time=value) or "as in 4h" in refused(wall_time=value)


def test_yaml_reads_a_bare_clock_as_a_number_which_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("scheduler: slurm\nwall_time: 4:00:00\ncores: 1\nmemory: 1GiB\n")
    with pytest.raises(RecipeError, match="in quotes as in '4:00:00'"):
        load_cluster(str(tmp_path / "c.yaml"))


def test_a_clock_is_written_as_every_scheduler_reads_it() -> None:
    assert [clock(s) for s in (60, 5400, 129605)] == ["0:01:00", "1:30:00", "36:00:05"]


def test_unknown_keys_are_refused_with_the_nearest_right_one() -> None:
    assert refused(walltime="4h") == "my.yaml: unknown key walltime; did you mean wall_time?"
    assert refused(partition="gpu") == "my.yaml: unknown key partition; did you mean queue?"
    assert refused(colour="red").startswith("my.yaml: unknown key colour; it has scheduler, queue, account")
    assert refused(train={"gpu": 1}) == "my.yaml: unknown key train.gpu; did you mean train.gpus?"


def test_what_cannot_be_guessed_is_asked_for() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_cluster({"scheduler": "slurm"}, "my.yaml")
    assert [line.partition(": ")[2].partition(":")[0] for line in str(caught.value).splitlines()] == [
        "wall_time",
        "cores",
        "memory",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"memory": 16}, "memory is written with its unit"),
        ({"scheduler": "torque"}, "scheduler: input should be 'slurm', 'pbs', 'lsf' or 'sge'"),
        ({"queue": "a\nb"}, "one line of printable text"),
        ({"directives": ["constraint=a100"]}, "--constraint=a100"),
        ({"directives": ["--a\n#SBATCH --b"]}, "one line of printable text"),
        ({"scratch": "here"}, "an absolute folder"),
        ({"scratch": "/x\n"}, "one line"),
        ({"min_jobs": 9}, "more than max_jobs"),
        ({"workers": 5}, "each worker needs one"),
        ({"workers": 2, "gpus": 3}, "cannot share evenly"),
        ({"wall_time": "4min"}, "leaves no time for work"),
    ],
)
def test_what_cannot_be_is_refused_in_words_that_say_what_can(changed: dict[str, Any], said: str) -> None:
    assert said in refused(**changed)


def test_a_training_job_asks_for_what_it_says_and_else_for_what_the_others_do() -> None:
    found = cluster(queue="short", gpus=1, train={"wall_time": "12h", "gpus": 2, "directives": ["--exclusive"]})
    train = found.for_training
    assert (train.wall_time, train.gpus, train.workers, train.directives) == (43200, 2, 2, ("--exclusive",))
    assert (train.queue, train.cores, train.memory) == ("short", 4, 16 * 2**30)
    assert (found.wall_time, found.gpus, found.workers) == (14400, 1, 1)


@pytest.mark.parametrize(
    ("scratch", "folder"),
    [
        ("/local/with space/it's", "/local/with space/it's"),
        ("$NODE", "/nvme 1"),
        ("${NODE}/x y", "/nvme 1/x y"),
        ("$NODE/$(id)`id`", "/nvme 1/$(id)`id`"),
    ],
)
def test_a_scratch_folder_is_one_word_of_the_shell_and_only_its_first_variable_is_looked_up(
    scratch: str, folder: str
) -> None:
    word = cluster(scratch=scratch).scratch_word
    done = subprocess.run(
        ["bash", "-euc", f"printf %s {word}"], env={"NODE": "/nvme 1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == folder


def test_a_scratch_variable_that_is_not_set_is_named() -> None:
    word = cluster(scratch="$NOT_THERE/x").scratch_word
    done = subprocess.run(["bash", "-c", f"echo {word}"], env={}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "NOT_THERE: is not set on this node" in done.stderr


def test_python_is_the_one_that_submits_or_the_words_that_are_given() -> None:
    import sys

    assert cluster().python_words == (sys.executable,)
    assert cluster(python="singularity exec 'my image.sif' python").python_words[-2:] == ("my image.sif", "python")
