"""A cluster file: what a job may ask of one cluster, said once by someone who knows it; nothing about a site is guessed.

A cluster file is a shipped name (`slurm`, `pbs`, `lsf`, `sge`) or a YAML file. A job is one node, unless `train` asks for more.
Times and bytes are written with their unit (`4h`, `16GiB`). Reading one imports neither torch nor dask.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError, model_validator

from ...storage.errors import RecipeError
from ...storage.nearest import instead
from ..recipe_sections import Section
from ..validation import explain_validation

_CLOCK: Final = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<min>[0-5]\d):(?P<s>[0-5]\d)")
_UNITS: Final = re.compile(r"(?:(?P<d>\d+) ?d)? ?(?:(?P<h>\d+) ?h)? ?(?:(?P<min>\d+) ?min)? ?(?:(?P<s>\d+) ?s)?")
_SECONDS: Final = {"d": 86400, "h": 3600, "min": 60, "s": 1}
_OTHER_NAMES: Final = {
    "partition": "queue",
    "project": "account",
    "time": "wall_time",
    "mem": "memory",
    "cpus": "cores",
    "processes": "workers",
    "tmp": "scratch",
}
"""What schedulers and libraries call some settings, for a message about an unknown key."""
_LEAST_MEMORY: Final = 64 * 2**20
_SCRATCH: Final = re.compile(r"(?:\$\{?(?P<variable>[A-Za-z_][A-Za-z0-9_]*)\}?)?(?P<rest>(?:/.*)?)", re.DOTALL)


def seconds_of(value: Any) -> int:
    """Seconds from `4h`, `1h30min`, `90 s`, `4:00:00` or `1-12:00:00`."""
    if not isinstance(value, str):
        raise ValueError("a time is written with its unit, as in 4h or 90min, or in quotes as in '4:00:00'")
    found = _CLOCK.fullmatch(value.strip()) or _UNITS.fullmatch(value.strip())
    if not value.strip() or found is None:
        raise ValueError("a time is written as 4h, 1h30min or '4:00:00'")
    return sum(int(found[name] or 0) * seconds for name, seconds in _SECONDS.items())


def _one_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("one line of printable text is wanted")
    return value


def _word(value: str) -> str:
    if re.fullmatch(r"[^\s'\"\\#]+", _one_line(value)) is None:
        raise ValueError("a name without spaces, quotes and # is wanted")
    return value


def _directive(value: str) -> str:
    if not _one_line(value).startswith("-"):
        raise ValueError("a directive is what follows the scheduler's mark, as in --constraint=a100")
    return value


def _enough(value: ByteSize) -> ByteSize:
    if value < _LEAST_MEMORY:
        raise ValueError("memory is written with its unit, as in 16GiB, and is at least 64MiB")
    return value


def _folder(value: str) -> str:
    found = _SCRATCH.fullmatch(value)
    if not _one_line(value) or found is None or not (found["variable"] or found["rest"]):
        raise ValueError("scratch is an absolute folder, or begins with a variable as in $TMPDIR or ${TMPDIR}/mine")
    return value


Line = Annotated[str, AfterValidator(_one_line)]
Word = Annotated[str, AfterValidator(_word)]
Directives = tuple[Annotated[str, AfterValidator(_directive)], ...]
WallTime = Annotated[
    int,
    BeforeValidator(seconds_of, json_schema_input_type=str),
    Field(ge=60, description="longest time of a job, as in 4h, 1h30min or '4:00:00'; held in seconds"),
]
Memory = Annotated[ByteSize, AfterValidator(_enough)]


class TrainJob(Section):
    """Where a training job asks for something else than the other jobs do; null: what they ask for."""

    queue: Word | None = Field(default=None, description="partition or queue")
    wall_time: WallTime | None = Field(default=None, description="longest time of the job")
    nodes: int = Field(default=1, ge=1, description="nodes of the job; cores, memory and GPUs are those of one node")
    cores: Annotated[int, Field(ge=1)] | None = Field(default=None, description="CPU cores of a node")
    memory: Memory | None = Field(default=None, description="memory of a node")
    gpus: Annotated[int, Field(ge=0)] | None = Field(default=None, description="GPUs of a node; one rank each")
    directives: Directives | None = Field(default=None, description="instead of the cluster's own")


class Cluster(Section):
    """One cluster, as jobs see it."""

    scheduler: Literal["slurm", "pbs", "lsf", "sge"] = Field(description="which one hands out the machines")
    queue: Word | None = Field(default=None, description="partition or queue; null: the scheduler's own default")
    account: Word | None = Field(default=None, description="account, project or bank that pays; null: the default one")
    wall_time: WallTime
    cores: int = Field(ge=1, description="CPU cores of a job, which is one node or a part of one")
    memory: Memory = Field(description="memory of a job, as in 16GiB")
    gpus: int = Field(default=0, ge=0, description="GPUs of a job")
    workers: int = Field(
        default=1, ge=1, description="processes of a job that extract, each with its share of the cores and GPUs"
    )
    min_jobs: int = Field(default=0, ge=0, description="jobs kept while there is work (extract --cluster)")
    max_jobs: int = Field(
        default=4, ge=1, description="jobs at a time, and the parts of an array unless asked otherwise"
    )
    scratch: Annotated[str, AfterValidator(_folder)] | None = Field(
        default=None, description="folder on a node's own disk, as in /local/scratch or $TMPDIR; null: none is used"
    )
    setup: tuple[Line, ...] = Field(
        default=(), description="lines of shell that run first on a node, as in module load cuda"
    )
    directives: Directives = Field(
        default=(), description="further directives, without the scheduler's mark, as in --constraint=a100"
    )
    python: Line | None = Field(
        default=None,
        description="words that start Python on a node after setup; null: the Python that submits, by its path",
    )
    interface: Line | None = Field(
        default=None, description="network interface of workers, as in ib0; null: the default"
    )
    stop_seconds: int = Field(
        default=120, ge=1, description="how long before the wall time a job is told to stop, save and exit"
    )
    max_requeues: int = Field(default=20, ge=0, description="how often a job that was stopped is queued again")
    train: TrainJob = TrainJob()

    @model_validator(mode="after")
    def _consistent(self) -> Cluster:
        if self.min_jobs > self.max_jobs:
            raise ValueError(f"min_jobs is {self.min_jobs}, more than max_jobs, which is {self.max_jobs}")
        if self.workers > self.cores:
            raise ValueError(f"workers is {self.workers}, and a job has {self.cores} cores; each worker needs one")
        if self.gpus % self.workers and self.gpus:
            raise ValueError(f"gpus is {self.gpus}, which {self.workers} workers cannot share evenly")
        for wall_time in (self.wall_time, self.train.wall_time):
            if wall_time is not None and wall_time <= 2 * self.stop_seconds:
                raise ValueError(f"wall_time of {wall_time} s leaves no time for work before stop_seconds")
        return self

    @property
    def for_training(self) -> Cluster:
        """The same cluster as a training job sees it: one process a GPU, at least one."""
        asked = self.train.model_dump(exclude={"nodes"}, exclude_none=True)
        gpus = self.gpus if self.train.gpus is None else self.train.gpus
        return self.model_copy(update={**asked, "workers": max(1, gpus)})

    @property
    def cores_a_worker(self) -> int:
        """CPU cores of each process of a job."""
        return max(1, self.cores // self.workers)

    @property
    def python_words(self) -> tuple[str, ...]:
        """Words of a command line that start Python on a node."""
        return (sys.executable,) if self.python is None else tuple(shlex.split(self.python))

    @property
    def scratch_word(self) -> str | None:
        """`scratch` as one word of a shell script; a variable at its beginning is looked up on the node."""
        if self.scratch is None:
            return None
        found = _SCRATCH.fullmatch(self.scratch)
        assert found is not None
        variable = f'"${{{found["variable"]}:?is not set on this node}}"' if found["variable"] else ""
        return variable + (shell_word(found["rest"]) if found["rest"] else "")


def shell_word(text: str) -> str:
    """`text` as one word of a shell script, in which nothing is looked up or run."""
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text):
        return text
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'


def clock(seconds: int) -> str:
    """`H:MM:SS`, which every scheduler reads; hours may be more than 24."""
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def shipped_clusters() -> tuple[str, ...]:
    """Names of the cluster files that come with the package."""
    folder = resources.files("sherl_cache.configs") / "clusters"
    return tuple(sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_cluster(name: str) -> Cluster:
    """The cluster that a file or a shipped name says. Raises RecipeError naming the key."""
    path = Path(name).expanduser()
    if name in shipped_clusters():
        text = (resources.files("sherl_cache.configs") / "clusters" / f"{name}.yaml").read_text("utf-8")
    elif path.is_file():
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{name}: cannot be read as a cluster file ({error})") from None
    else:
        hint = instead(Path(name).stem, shipped_clusters(), "shipped ones are")
        raise RecipeError(f"no cluster {name!r}: neither a file nor a shipped cluster; {hint}")
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not YAML ({' '.join(str(error).split())})") from None
    return parse_cluster(document, name)


def parse_cluster(document: Any, where: str) -> Cluster:
    """A checked cluster from plain YAML values. Raises RecipeError that names every wrong key."""
    if not isinstance(document, dict):
        raise RecipeError(f"{where}: a cluster file is a mapping of settings, not {type(document).__name__}")
    try:
        return Cluster.model_validate(document)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(f"{where}: {line}" for line in explain_validation(error, Cluster, _OTHER_NAMES))
        ) from None
