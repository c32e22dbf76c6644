"""A run's folder: what was asked, what came of it, and checkpoints to go on from.

    <run>/recipe.yaml        the resolved recipe
          run.json           store keys, what the live model needs, versions, threads
          metrics.jsonl      one line a step, one a validation
          checkpoints/step-<n>/{model.safetensors, optimizer.safetensors, state.json}
          best.safetensors   the best weights so far; the answer, once result.json is there
          predictions.parquet  answers on the validation rows at the best epoch
          layer_weights.json   how the fusion weighed its taps there, of all rows and of each class
          result.json        written last; a finished run
          evals.json         what `eval` said of it, one record for each thing that was asked

A checkpoint is made in a temporary folder and renamed whole; state.json holds the digests of its neighbours, so a
torn one is recognised and the one before it is used. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from ..storage import commit
from ..storage.errors import RecipeError, StoreCorrupt, UsageError
from ..storage.nearest import folder_meant
from ..storage.notebook import facts_html, table_html
from .recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from ..stages.evaluate import Evaluation
    from ..stages.train import TrainingLoop
    from ..storage import ExampleTable

KEEP_CHECKPOINTS = 2


class Run:
    """One training run on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listener: Callable[[Mapping[str, Any]], None] | None = None
        """Told of every record once metrics.jsonl holds it."""
        self._metrics_bytes = 0

    @classmethod
    def find(cls, root: Path, recipe: Recipe, facts: Mapping[str, Any]) -> Run | None:
        """The same run, begun before; None where `root` holds none. Nothing is written.

        Raises RecipeError when `root` holds the run of another recipe or store, UsageError when it is no folder.
        """
        if root.exists() and not root.is_dir():
            raise UsageError(f"{root} is a file: a run goes into a folder; give another --run")
        if not (root / "run.json").exists():
            return None
        run = cls(root)
        known, asked = run.facts(), _all_facts(recipe, facts)
        for key in ("recipe_identity", "store_fingerprint"):
            if known.get(key) != asked[key]:
                raise RecipeError(
                    f"{root} holds another run ({_first_difference(known.get(key), asked[key], key)}); "
                    "give another --run, or leave it out to get a folder of its own"
                )
        return run

    @classmethod
    def create(cls, root: Path, recipe: Recipe, facts: Mapping[str, Any]) -> Run:
        """A new run's folder, or the same run again. Raises as `find` does."""
        run = cls.find(root, recipe, facts)
        if run is None:
            root.mkdir(parents=True, exist_ok=True)
            run = cls(root)
            commit.replace(root / "recipe.yaml", recipe.to_yaml().encode())
            commit.replace(root / "run.json", _json(_all_facts(recipe, facts)))
        return run

    @classmethod
    def open(cls, root: Path) -> Run:
        """An existing run. Raises UsageError when the folder holds none."""
        if not root.exists():
            raise UsageError(
                f"{root} is not there{folder_meant(root)}; give the folder of a run, which `sherl-cache train` prints"
            )
        if not (root / "run.json").is_file():
            raise UsageError(f"{root} holds no run: it has no run.json; `sherl-cache train` prints the folder it made")
        return cls(root)

    def facts(self) -> dict[str, Any]:
        """run.json."""
        return self._read_json(self.root / "run.json")

    def recipe(self) -> Recipe:
        import yaml

        path = self.root / "recipe.yaml"
        return parse_recipe(yaml.safe_load(path.read_text("utf-8")), where=str(path))

    def result(self) -> dict[str, Any] | None:
        """result.json, or None while the run is not finished."""
        path = self.root / "result.json"
        return self._read_json(path) if path.is_file() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        commit.replace(self.root / "result.json", _json(result))

    def evals(self) -> list[dict[str, Any]]:
        """What `eval` said, one record for each data, split, limit and number of beams."""
        path = self.root / "evals.json"
        return list(self._read_json(path)["evals"]) if path.is_file() else []

    def add_eval(self, record: Mapping[str, Any]) -> None:
        """Keep what `eval` said, instead of what it said of the same before."""
        asked = ("data", "split", "limit", "num_beams")
        others = [old for old in self.evals() if any(old.get(key) != record[key] for key in asked)]
        commit.replace(self.root / "evals.json", _json({"evals": [*others, dict(record)]}))

    def _repr_html_(self) -> str:
        facts, result = self.facts(), self.result()
        producer = facts.get("producer", {})
        state = "not finished" if result is None else "finished"
        shown = {
            "recipe": self.recipe().name,
            "model": producer.get("model", {}).get("name"),
            "data": producer.get("data", {}).get("name"),
            "state": state,
            **{key: (result or {}).get(key) for key in ("steps", "metric", "best", "best_epoch", "trained_parameters")},
        }
        scores = [
            record["validation"] | {"step": record["step"]} for record in self.metrics() if "validation" in record
        ]
        rows = [(score["step"], score.get("metric", ""), score.get("value", "")) for score in scores]
        return facts_html(self.root, shown.items(), table_html(("step", "metric", "value"), rows))

    # --- what a training loop tells (stages.train.Recorder) ---

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        line = (json.dumps(record, allow_nan=False, default=str) + "\n").encode()
        with (self.root / "metrics.jsonl").open("ab") as file:
            file.write(line)
        self._metrics_bytes += len(line)
        if self.listener is not None:
            self.listener(record)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Records of metrics.jsonl, up to a line that a kill left unfinished."""
        path = self.root / "metrics.jsonl"
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    return

    def better(self, loop: TrainingLoop) -> None:
        """Keep the weights of the best epoch so far."""
        commit.replace(self.root / "best.safetensors", as_safetensors(loop.model.trainable_state_dict()))

    def save_predictions(self, table: ExampleTable, found: Evaluation) -> None:
        """Answers on the validation rows, one row an example: where it comes from (source_id, and content, by which a row is
        known again), label, prediction, and the probability of a prediction that is a class.
        """
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        from ..stages.row_texts import marks_of

        columns = {
            "source_id": table.column("source_id"),
            "content": marks_of(table),
            "label": table.label,
            "prediction": found.predictions,
            "probability": found.probabilities,
        }
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, compression="zstd")
        commit.replace(self.root / "predictions.parquet", sink.getvalue())

    def save_layer_weights(self, epoch: int, found: Evaluation, reads: Mapping[str, Sequence[int]]) -> None:
        """How the fusion weighed its taps on the validation rows, see stages/layer_weights.py; nothing where it does not."""
        streams = {
            name: {"taps": list(reads[name])[: len(weights["mean"])], **weights}
            for name, weights in found.layer_weights.items()
        }
        if streams:
            commit.replace(self.root / "layer_weights.json", _json({"epoch": epoch, "streams": streams}))

    def layer_weights(self) -> dict[str, Any] | None:
        """layer_weights.json: by stream the taps that were weighed, and the numbers of all rows and of each class; None where
        the fusion does not weigh row by row.
        """
        path = self.root / "layer_weights.json"
        return self._read_json(path) if path.is_file() else None

    def checkpoint(self, loop: TrainingLoop) -> None:
        """Write one checkpoint whole, then drop all but the newest few."""
        folder = self.root / "checkpoints"
        final = folder / f"step-{loop.at.step:08d}-epoch-{loop.at.epoch:04d}"
        work = folder / f".{final.name}.{os.getpid()}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        blobs = {
            "model.safetensors": as_safetensors(loop.model.trainable_state_dict()),
            "optimizer.safetensors": as_safetensors(loop.optimizer_tensors()),
        }
        for name, blob in blobs.items():
            commit.replace(work / name, blob)
        state = {
            "at": loop.at.to_json(),
            "metrics_bytes": self._metrics_bytes,
            "sha256": {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()},
        }
        commit.replace(work / "state.json", _json(state))
        if final.exists():  # left torn or whole by a process that was killed here; what we hold is the same or better
            shutil.rmtree(final)
        work.rename(final)
        commit.sync_folder(folder)
        for old in self._checkpoints()[KEEP_CHECKPOINTS:]:
            shutil.rmtree(old, ignore_errors=True)

    def resume(self, loop: TrainingLoop) -> bool:
        """Put `loop` where the newest valid checkpoint stands; False when there is none."""
        from safetensors.torch import load

        for left in (self.root / "checkpoints").glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        for folder in self._checkpoints():
            try:
                state = self._read_json(folder / "state.json")
                blobs = {name: (folder / name).read_bytes() for name in state["sha256"]}
            except (OSError, StoreCorrupt, KeyError):
                continue
            if any(hashlib.sha256(blob).hexdigest() != state["sha256"][name] for name, blob in blobs.items()):
                continue
            loop.restore(load(blobs["model.safetensors"]), load(blobs["optimizer.safetensors"]), state["at"])
            self._cut_metrics(state["metrics_bytes"])
            return True
        self._cut_metrics(0)
        return False

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best epoch. Raises StoreCorrupt when the file does not parse."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.root / "best.safetensors"
        try:
            return load(path.read_bytes())
        except FileNotFoundError:
            raise UsageError(
                f"{self.root} has no trained weights yet; run `sherl-cache train` to its end first"
            ) from None
        except SafetensorError as error:
            raise StoreCorrupt(f"{path} is damaged ({error}); train again with --restart") from None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.root / "checkpoints").glob("step-*"), reverse=True)

    def _cut_metrics(self, length: int) -> None:
        """Forget the lines after a checkpoint: the steps they tell of are taken again."""
        self._metrics_bytes = length
        path = self.root / "metrics.jsonl"
        if path.exists():
            os.truncate(path, min(length, path.stat().st_size))

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            document = json.loads(path.read_text("utf-8"))
        except (ValueError, UnicodeDecodeError) as error:
            raise StoreCorrupt(f"{path} is damaged ({error})") from None
        if not isinstance(document, dict):
            raise StoreCorrupt(f"{path} is damaged (a JSON object is expected)")
        return document


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    from safetensors.torch import save

    data: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return data


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes in sorted order."""
    from safetensors.torch import save

    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(save({name: tensors[name].detach().cpu().contiguous()}))
    return digest.hexdigest()


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _all_facts(recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts, "recipe_identity": recipe.identity()}


def _first_difference(known: Any, asked: Any, path: str) -> str:
    if isinstance(known, dict) and isinstance(asked, dict):
        for key in sorted({*known, *asked}):
            if known.get(key) != asked.get(key):
                return _first_difference(known.get(key), asked.get(key), f"{path}.{key}")
    return f"{path.removeprefix('recipe_identity.')}: {known!r} there, {asked!r} asked for"
