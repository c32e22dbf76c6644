"""Which variables make a process one of several ranks, and what they are taken for."""

import pytest
import torch

from sherl_cache.pipeline.launch import Launch, first_of_nodes
from sherl_cache.pipeline.together import rank_device
from sherl_cache.storage.errors import UsageError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}
BATCH_SCRIPT = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def test_torchrun_says_everything() -> None:
    assert Launch.of(TORCHRUN) == Launch(3, 4, 1, "node1", 29500, "x/2", hosted=True)
    assert Launch.of(SRUN | TORCHRUN) == Launch.of(TORCHRUN)  # torchrun started by srun, one a node


def test_slurm_says_where_the_first_task_is() -> None:
    found = Launch.of(SRUN)
    assert found is not None
    assert (found.rank, found.count, found.local_rank, found.address) == (2, 4, 0, "gpu03")
    assert not found.hosted
    other = Launch.of(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "1"})
    assert other is not None
    assert (other.port, other.attempt) == (found.port, found.attempt)
    one_node = Launch.of(SRUN | {"SLURM_STEP_NUM_NODES": "1"})
    assert one_node is not None
    assert one_node.address == "127.0.0.1"
    told = Launch.of(SRUN | {"MASTER_ADDR": "here", "MASTER_PORT": "1234"})
    assert told is not None
    assert (told.address, told.port) == ("here", 1234)


@pytest.mark.parametrize("steps", [("0", "1"), ("1", "2")])
def test_two_steps_of_a_job_meet_at_two_ports(steps: tuple[str, str]) -> None:
    first, second = (Launch.of(SRUN | {"SLURM_STEP_ID": step}) for step in steps)
    assert first is not None
    assert second is not None
    assert first.port != second.port


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH_SCRIPT,  # a batch script is one process, however many tasks its job may start
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        {"WORLD_SIZE": "1"},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
    ],
)
def test_one_process_is_no_rank(environment: dict[str, str]) -> None:
    assert Launch.of(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        (TORCHRUN | {"RANK": "4"}, "rank 4 of 4: ranks are numbered from 0"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (SRUN | {"SLURM_STEP_NODELIST": ""}, "set MASTER_ADDR"),
    ],
)
def test_what_is_half_said_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Launch.of(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[9,11]", "gpu9"),
        ("a[1-2]b[3-4]", "a1b3"),
        ("", ""),
    ],
)
def test_the_first_name_of_a_node_list(nodes: str, first: str) -> None:
    assert first_of_nodes(nodes) == first


def test_ranks_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(3, 4, 1, "node1", 29500)
    assert rank_device("cpu", launch) == torch.device("cpu")
    with pytest.raises(UsageError, match="4 ranks take a GPU each"):
        rank_device("cuda:1", launch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="0 GPUs are seen"):
        rank_device("auto", launch)
