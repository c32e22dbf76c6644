"""A dask cluster for one extraction: processes here, a scheduler that is there, or jobs of a batch system.

Workers load what they are asked to run, so whoever reaches a scheduler can run code as its owner. What is started here is
bound to this machine or, for jobs, guarded by certificates that are made for the one run (TLS).
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import warnings
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import dask
from distributed import Client, Nanny, Scheduler, Security, SpecCluster

from ...storage.errors import UsageError
from ...storage.place import redacted
from .dispatch import LOSSES
from .keepers import JobKeeper, WorkerKeeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from .settings import Cluster

LOOPBACK: Final = "127.0.0.1"
THREADS: Final = 2
"""Tasks a worker has at a time: the model runs one, the other is committed."""
_CONNECT_SECONDS: Final = 300
_ANSWER_SECONDS: Final = 15
_GUESSED_UNIT: Final = "10 minutes"
"""What a unit is taken to last before one has ended, so that a queue is asked for enough jobs at once."""
_CLASSES: Final = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
_PAYS: Final = {"slurm": "account", "pbs": "account", "lsf": "project", "sge": "project"}
_OWN_NAME: Final = "sherl-cache"
_START_SECONDS: Final = 600
"""How long the first import on a slow file system may take."""
_SELDOM: Final = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}
"""Dask would look at threads 100, at event loops 50 and at processes 2 times a second, and a forward on all cores would wait."""


@dataclass(frozen=True)
class Connection:
    """A cluster that is there."""

    client: Client
    most_workers: int | None = None
    """Workers that it may grow to; None: those that are there."""
    one_job: bool = False
    """Whether driver and workers end together."""
    threads: int | None = None
    """Of a forward on a worker; None: as many as the worker was given."""
    bound: str = ""
    """Address that the dashboard listens on, where the scheduler is ours."""
    keep: Callable[[], None] = lambda: None
    """To be called now and then: starts again what ended and nobody else does."""

    @property
    def dashboard(self) -> str:
        """Where to look at it, in words."""
        try:
            address = urlsplit(str(self.client.dashboard_link))
        except KeyError:
            return "none"
        host = self.bound.rpartition(":")[0] or address.hostname  # dask names the scheduler's host, wherever it listens
        link = address._replace(netloc=f"{host}:{address.port}").geturl()
        return link if find_spec("bokeh") else f"{link} (its charts need bokeh: pip install bokeh)"


@contextmanager
def local(workers: int, threads: int, devices: Sequence[str], dashboard: str) -> Iterator[Connection]:
    """Worker processes on this machine, replaced where they die.

    threads: of a forward. devices: GPUs as CUDA_VISIBLE_DEVICES names them, one a worker; none: the CPU. dashboard: address
    that it is bound to.
    """
    with _temporary(tls=_can_encrypt()) as (security, folder):
        protocol = "tls://" if security.require_encryption else "tcp://"
        common = {"protocol": protocol, "security": security, "host": LOOPBACK}
        scheduler = {
            "cls": Scheduler,
            "options": {**common, "dashboard_address": dashboard, "allowed_failures": LOSSES},
        }
        environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        options = {
            **common,
            "nthreads": THREADS,
            "memory_limit": 0,  # what a unit takes is in the plan; to dask a model looks like a leak
            "local_directory": folder,
            "silence_logs": logging.CRITICAL,
            "dashboard": False,
            "preload": [f"{__package__}.signals"],
        }
        nannies = {
            number: {
                "cls": Nanny,
                "options": {
                    **options,
                    "env": {**environment, **({"CUDA_VISIBLE_DEVICES": devices[number]} if devices else {})},
                },
            }
            for number in range(workers)
        }
        with warnings.catch_warnings():
            # the address that is printed says which one it is then
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            warnings.filterwarnings("ignore", message="Creating scratch directories")
            cluster = SpecCluster(
                workers=nannies, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL, name=_OWN_NAME
            )
        with _closing(cluster), Client(cluster, set_as_default=False) as client:
            yield Connection(
                client, most_workers=workers, one_job=True, threads=threads, bound=dashboard, keep=WorkerKeeper(cluster)
            )


@contextmanager
def attached(address: str) -> Iterator[Connection]:
    """A scheduler that others started, by its address or by the file that it wrote; it and its workers are left running."""
    if "@" in address and not Path(address).is_file():  # dask would repeat it, as a host that it does not know
        raise UsageError(
            f"--scheduler {redacted(address)}: a scheduler's address has no user or password, as in tcp://10.0.0.1:8786"
        )
    where: dict[str, Any] = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        client = Client(**where, timeout=_ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--scheduler {address}: no dask scheduler answers ({str(error).splitlines()[0]}); give the address that `dask "
            "scheduler` prints, as in tcp://10.0.0.1:8786, or its --scheduler-file"
        ) from None
    with client:
        yield Connection(client)


@contextmanager
def jobs(file: Cluster, root: Path, dashboard: str) -> Iterator[Connection]:
    """Jobs of a batch system, as many as there is work for, between the file's `min_jobs` and `max_jobs`."""
    if find_spec("dask_jobqueue") is None or not _can_encrypt():
        raise UsageError("--cluster needs two more packages: pip install 'sherl-cache[cluster]'")
    classes = jobqueue()
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_scheduler_config()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            cluster = getattr(classes, _CLASSES[file.scheduler])(**job_options(file, root, dashboard))
        stack.callback(_remove_certificates, cluster)
        stack.enter_context(_closing(cluster))
        cluster.adapt(minimum_jobs=file.min_jobs, maximum_jobs=file.max_jobs)
        client = stack.enter_context(Client(cluster, set_as_default=False))
        yield Connection(
            client,
            most_workers=file.max_jobs * file.workers,
            threads=file.cores_a_worker,
            bound=dashboard,
            keep=JobKeeper(cluster),
        )


def jobqueue() -> ModuleType:
    """dask-jobqueue. Its import would have Ctrl-C end this process as if all were done: what was to happen then is put back."""
    before = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, before)
    return dask_jobqueue


@contextmanager
def _closing(cluster: SpecCluster) -> Iterator[None]:
    """Close it at the end. Workers that do not end in time are killed: what was committed is whole all the same."""
    try:
        yield
    finally:
        with suppress(TimeoutError):
            cluster.close()


def _remove_certificates(cluster: SpecCluster) -> None:
    """dask-jobqueue holds them as temporary files and leaves their removal to chance."""
    for file in vars(cluster).values():
        if isinstance(file, tempfile._TemporaryFileWrapper):
            file.close()


def job_options(file: Cluster, root: Path, dashboard: str) -> dict[str, Any]:
    """A cluster file in the words of dask-jobqueue."""
    arguments = ["--nthreads", str(THREADS), "--memory-limit", "0", "--no-dashboard"]
    if file.gpus and file.workers > 1:
        arguments += ["--preload-nanny", f"{__package__}.one_gpu"]
    exports = [f"export {name}={file.cores_a_worker}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    exports += [f"export {_variable('distributed.comm.timeouts.connect')}={_CONNECT_SECONDS}s"]
    exports += [f"export {_variable(key)}={value}" for key, value in _SELDOM.items()]
    return {
        "name": _OWN_NAME,
        "job_name": _OWN_NAME,
        "cores": file.cores,
        "memory": f"{int(file.memory)}B",
        "processes": file.workers,
        "walltime": _clock(file),
        "queue": file.queue,
        _PAYS[file.scheduler]: file.account,
        "interface": file.interface,
        "python": shlex.join(file.python_words),
        "job_script_prologue": [*file.setup, *exports],
        "job_extra_directives": [*_gpu_directives(file), *file.directives],
        **_resources(file),
        "local_directory": file.scratch_word,
        "log_directory": str(log_folder(root)),
        "death_timeout": _START_SECONDS,
        "worker_extra_args": arguments,
        "security": Security.temporary(),
        "shared_temp_directory": str(root.absolute().parent),
        "scheduler_options": {"dashboard_address": dashboard, "allowed_failures": LOSSES},
        "silence_logs": logging.CRITICAL,
    }


def log_folder(root: Path) -> Path:
    """Where jobs of an extraction write what they say: beside the store."""
    absolute = root.absolute()
    return absolute.with_name(f"{absolute.name}.logs")


def visible_devices(count: int) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: the first `count`."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def _clock(file: Cluster) -> str:
    from .settings import clock

    return clock(file.wall_time).rpartition(":")[0] if file.scheduler == "lsf" else clock(file.wall_time)


def _gpu_directives(file: Cluster) -> list[str]:
    """How a job asks for GPUs, where the batch system has one way of its own."""
    if not file.gpus:
        return []
    return {"slurm": [f"--gpus-per-node={file.gpus}"], "lsf": [f'-gpu "num={file.gpus}"']}.get(file.scheduler, [])


def _resources(file: Cluster) -> dict[str, str]:
    if file.scheduler == "pbs" and file.gpus:
        memory = int(file.memory) // 2**20
        return {"resource_spec": f"select=1:ncpus={file.cores}:mem={memory}mb:ngpus={file.gpus}"}
    return {}


def _can_encrypt() -> bool:
    return find_spec("cryptography") is not None


def _variable(key: str) -> str:
    """The environment variable that dask reads a setting from."""
    return "DASK_" + key.replace(".", "__").replace("-", "_").upper()


def _scheduler_config() -> dict[str, Any]:
    return {
        **_SELDOM,
        "distributed.comm.timeouts.connect": f"{_CONNECT_SECONDS}s",
        "distributed.scheduler.default-task-durations": {"extract": _GUESSED_UNIT},
    }


@contextmanager
def _temporary(tls: bool) -> Iterator[tuple[Security, str]]:
    """Certificates of one run, and a folder for what workers put down; dask's settings for the while."""
    if not tls:
        print(
            "warning: without the package cryptography other users of this machine could reach the workers; "
            "pip install cryptography guards them",
            file=sys.stderr,
        )
    security = Security.temporary() if tls else Security()
    config = _scheduler_config() | {"distributed.nanny.pre-spawn-environ": {}}
    with (
        dask.config.set(config),
        tempfile.TemporaryDirectory(prefix="sherl-cache-", ignore_cleanup_errors=True) as folder,
    ):
        yield security, folder
