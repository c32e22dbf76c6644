"""Batch scripts of SLURM: an array job that extracts, a job that trains after it, and what submits both.

Plain text from a cluster file and a few paths; every value of a user's is one quoted word. No path stands in a directive:
scripts are submitted from their own folder, and go to the user's folder themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .settings import Cluster, clock, shell_word

if TYPE_CHECKING:
    from pathlib import Path

RECIPE: Final = "recipe.yaml"
EXTRACT: Final = "extract.sbatch"
TRAIN: Final = "train.sbatch"
SUBMIT: Final = "submit.sh"
LOGS: Final = "logs"

_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Jobs:
    """A run as jobs of one cluster. Paths are absolute, and on disks that every node sees.

    name: of the recipe. folder: where the scripts lie. work: the folder that relative names of the recipe start from. run:
    the run's folder; None: the usual one. parts: tasks of the array.
    """

    cluster: Cluster
    name: str
    folder: Path
    work: Path
    store: Path
    run: Path | None
    parts: int


def scripts(jobs: Jobs) -> dict[str, str]:
    """Text of every script by its name in the folder."""
    return {EXTRACT: _extract(jobs), TRAIN: _train(jobs), SUBMIT: _submit(jobs)}


def _extract(jobs: Jobs) -> str:
    cluster = jobs.cluster
    limit = f"%{cluster.max_jobs}" if jobs.parts > cluster.max_jobs else ""
    share = f'"$SLURM_ARRAY_TASK_ID/{jobs.parts}"' if cluster.workers == 1 else "slurm"
    directives = [
        f"--job-name={jobs.name}-extract",
        f"--array=1-{jobs.parts}{limit}",
        f"--output={LOGS}/extract-%A_%a.log",
        *_resources(cluster, 1),
        *([f"--gpus-per-task={cluster.gpus // cluster.workers}"] if cluster.gpus else []),
    ]
    about = [
        f"Stage one: each of {jobs.parts} tasks extracts its share of what is missing; a share again: sbatch --array=3 {EXTRACT}"
    ]
    return _script(
        directives,
        about,
        jobs,
        cluster,
        1,
        [
            f"store={_word(jobs.store)}",
            f'{_sherl_cache(cluster, "extract")} --config {_word(jobs.folder / RECIPE)} --store "$store" --part {share}',
            "finish $?",
        ],
    )


def _train(jobs: Jobs) -> str:
    cluster, nodes = jobs.cluster.for_training, jobs.cluster.train.nodes
    directives = [
        f"--job-name={jobs.name}-train",
        f"--output={LOGS}/train-%j.log",
        *_resources(cluster, nodes),
        *([f"--gpus-per-node={cluster.gpus}"] if cluster.gpus else []),
    ]
    run = "" if jobs.run is None else f" --run {_word(jobs.run)}"
    lines = [
        f"store={_word(jobs.store)}",
        f'{_sherl_cache(cluster, "finalize", "--nodes=1 --ntasks=1 --ntasks-per-node=1")} --store "$store" || finish $?',
    ]
    if cluster.scratch is not None:
        lines += [
            "",
            "# read from the node's own disk where the store fits there (6 says that it does not)",
            f"{_sherl_cache(cluster, 'copy', f'--ntasks={nodes} --ntasks-per-node=1')} "
            '--store "$store" --to "$TMPDIR/cache"',
            "code=$?",
            'if [ "$code" -eq 0 ]; then store=$TMPDIR/cache; elif [ "$code" -ne 6 ]; then finish "$code"; fi',
        ]
    lines += [
        "",
        f"{_sherl_cache(cluster, 'train', '--kill-on-bad-exit=1')} --config {_word(jobs.folder / RECIPE)} "
        f'--store "$store"{run}',
        "finish $?",
    ]
    about = ["Stage two: train from the store that the array job made."]
    return _script(directives, about, jobs, cluster, nodes, lines)


def _submit(jobs: Jobs) -> str:
    return f"""\
#!/bin/bash
# Submits the array job, and training once all of its tasks have succeeded. Prints the numbers of both.
set -eu
cd -- {_word(jobs.folder)}
extract=$(sbatch --parsable {EXTRACT})
extract=${{extract%%;*}}
train=$(sbatch --parsable --dependency="afterok:$extract" --kill-on-invalid-dep=yes {TRAIN})
echo "extract $extract"
echo "train ${{train%%;*}}"
"""


def _resources(cluster: Cluster, nodes: int) -> list[str]:
    asked = [
        f"--time={clock(cluster.wall_time)}",
        f"--nodes={nodes}",
        f"--ntasks-per-node={cluster.workers}",
        f"--cpus-per-task={cluster.cores_a_worker}",
        f"--mem={-(-cluster.memory // _MIB)}M",
    ]
    if cluster.queue is not None:
        asked.insert(0, f"--partition={cluster.queue}")
    if cluster.account is not None:
        asked.insert(0, f"--account={cluster.account}")
    return asked


def _script(directives: list[str], about: list[str], jobs: Jobs, cluster: Cluster, nodes: int, lines: list[str]) -> str:
    stopping = [f"--signal=USR1@{cluster.stop_seconds}", "--requeue", "--open-mode=append"]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"# {line}" for line in about),
            f"# Written by sherl-cache sbatch; {SUBMIT} submits it. By hand: sbatch it from the folder that it lies in.",
            *(f"#SBATCH {line}" for line in [*directives, *stopping, *cluster.directives]),
            "",
            f"cd -- {_word(jobs.work)} || exit 1",
            *cluster.setup,
            "set -u",
            'export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # sherl-cache fetch brings model and data',
            f"export OMP_NUM_THREADS={cluster.cores_a_worker}",
            *_scratch(cluster, nodes),
            "",
            _FINISH.format(requeues=cluster.max_requeues),
            *lines,
            "",
        ]
    )


def _scratch(cluster: Cluster, nodes: int) -> list[str]:
    """Lines that make a folder of the job's own on the disk of each of its nodes, and remove it at the end."""
    if cluster.scratch is None:
        return []
    each = "" if nodes == 1 else f"srun --ntasks={nodes} --ntasks-per-node=1 "
    return [
        f'TMPDIR={cluster.scratch_word}/"sherl-cache-$SLURM_JOB_ID"',
        "export TMPDIR",
        f'{each}mkdir -p -- "$TMPDIR" || exit 1',
        f"""trap '{each}rm -rf -- "$TMPDIR"' EXIT""",
    ]


_FINISH: Final = """\
# 75: stopped before the time limit, what was done is kept, and the same command goes on. SLURM itself queues a job again that
# it pre-empts; one that is cancelled stays so.
cancelled=0
trap 'cancelled=1' TERM
finish() {{
    if [ "$1" -eq 75 ] && [ "$cancelled" -eq 0 ]; then
        if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
            echo "queued again after stop $((${{SLURM_RESTART_COUNT:-0}} + 1)) of at most {requeues}"
            scontrol requeue "$SLURM_JOB_ID"
        else
            echo "stopped more than {requeues} times; submit it again, or raise wall_time or max_requeues" >&2
        fi
    fi
    exit "$1"
}}
"""


def _sherl_cache(cluster: Cluster, command: str, options: str = "") -> str:
    """A command on the job's nodes; its processes get the signal, and as many cores as the job has for each."""
    words = ["srun", f"--cpus-per-task={cluster.cores_a_worker}", *options.split()]
    return " ".join(map(shell_word, [*words, *cluster.python_words, "-m", "sherl_cache.pipeline", command]))


def _word(path: Path) -> str:
    return shell_word(str(path))
