"""The two commands of the README, word for word, against a hub on loopback: real names, real client libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli import call
from loopback_hub import LoopbackHub, write_glue_dataset, write_picture_dataset
from tiny import tiny_t5
from tiny_pictures import tiny_vit


def shell(command: str, environment: dict[str, str], folder: Path) -> dict[str, object]:
    words = command.replace("sherl-cache", f"{sys.executable} -m sherl_cache.pipeline").split()
    done = subprocess.run([*words, "--json"], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_the_two_commands_work_as_written_and_then_offline(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_model("google-t5/t5-base", tiny_t5(tmp_path / "served" / "t5"), alias="t5-base")
        hub.add_dataset("nyu-mll/glue", write_glue_dataset(tmp_path / "served" / "glue"))
        environment = hub.environment(tmp_path / "home")
        folder = tmp_path / "work"
        folder.mkdir()
        extracted = shell("sherl-cache extract --model t5-base --data glue/sst2", environment, folder)
        trained = shell("sherl-cache train --store ./cache", environment, folder)
        assert extracted["store"] == "cache"
        assert str(trained["run"]).startswith("runs/sherl-")
        assert trained["metric"] == "accuracy"
        before = len(hub.requests)
        offline = {**environment, "HF_HUB_OFFLINE": "1"}
        again = shell("sherl-cache extract --model t5-base --data glue/sst2", offline, folder)
        scored = shell(f"sherl-cache eval --run {trained['run']}", offline, folder)
        assert len(hub.requests) == before
    assert again["digest"] == extracted["digest"]
    # the default store is bfloat16, and a random model's answers are near ties: float32 scores are compared in test_main_job
    assert scored["examples"] == 12
    assert set(scored) >= {"label_scoring", "outside_label_set"}


@pytest.mark.slow
def test_a_hub_set_of_pictures_is_extracted_and_its_test_rows_are_scored(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_model("owner/model", tiny_vit(tmp_path / "served" / "model"))
        hub.add_dataset("owner/shapes", write_picture_dataset(tmp_path / "served" / "shapes"))
        environment = hub.environment(tmp_path / "home")
        extracted = shell("sherl-cache extract --model owner/model --data owner/shapes", environment, tmp_path)
    trained = call("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", "--epochs", 1)
    assert extracted["examples"] == 40 + 10
    assert trained["metric"] == "accuracy"
