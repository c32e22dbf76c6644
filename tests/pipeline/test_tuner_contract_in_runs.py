"""What the contract of tuners carries for methods to come, each shown by a small tuner that is dropped in as a file: a look at
examples before training (masks by Fisher information), and the task of each row (parts generated for a task)."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from cli import call
from model_cases import cached, loaded_model, producer_of
from reviews_csv import write_csv
from safetensors.torch import load_file
from tiny import tiny_bert, tiny_causal
from transformers import AutoModel, AutoTokenizer

from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.training import Training, stage_two
from sherl_cache.stages import inputs as inputs_module
from sherl_cache.stages import prepare as prepare_module
from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import TokenBatch
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.methods import tuner as tuner_package
from sherl_cache.stages.torch_dataset import StoreDataset
from sherl_cache.storage import Store
from sherl_cache.storage.errors import DataError, RecipeError

FISHER = '''
"""A few entries of each weight, those with the most Fisher information."""

import torch
from pydantic import Field
from torch import Tensor, nn

from sherl_cache.stages.methods.contract import Op, OpOptions, OpPart, OpTuner, TunerPreparation


class FisherConfig(OpOptions):
    entries: int = Field(default=5, ge=1, description="Entries of each weight that train.")
    examples: int = Field(default=64, ge=1, description="Examples that are looked at.")


class FisherPart(OpPart):
    places: Tensor

    def __init__(self, config: FisherConfig, op: Op) -> None:
        super().__init__(config, op)
        self.shape = (op.out_width, op.in_width)
        self.values = nn.Parameter(torch.zeros(config.entries))
        self.register_buffer("places", torch.arange(config.entries))

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        flat = self.values.new_zeros(self.shape[0] * self.shape[1]).index_add(0, self.places, self.values)
        return y + x @ flat.view(self.shape).T


class Fisher(OpTuner):
    """Trains the entries of each weight whose squared gradients over single examples are the largest."""

    Config = FisherConfig
    part = FisherPart
    default_ops = ("query", "ffn_in")
    starts_as_identity = True

    @classmethod
    def prepares(cls, options: object) -> bool:
        return True

    @torch.no_grad()
    def prepare(self, preparation: TunerPreparation) -> None:
        total = {}
        for found in preparation.gradients([op for op, _ in self.placed], self.config.examples):
            for name, gradient in found.items():
                total[name] = total.get(name, 0.0) + gradient.square()
        for op, part in self.placed:
            part.places.copy_(total[op.name].flatten().topk(self.config.entries).indices.sort().values)
'''
GENERATED = '''
"""Parts that one network makes for each task."""

import torch
from torch import Tensor, nn

from sherl_cache.stages.methods.contract import LateOps, Op, OpOptions, OpPart, OpTuner, Part, SegmentTasks


class GeneratedPart(OpPart):
    """y * (1 + G e_t), t the task of the segment."""

    def __init__(self, config: OpOptions, op: Op, tasks: SegmentTasks, of_task: nn.Embedding) -> None:
        super().__init__(config, op)
        self.tasks, self.of_task = tasks, of_task
        self.generator = nn.Linear(of_task.embedding_dim, op.out_width, bias=False)

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y * (1 + self.generator(self.of_task(self.tasks.of(x))).unsqueeze(1))


class Generated(OpTuner):
    """A scale of the outputs of each op, made from an embedding of the task that all ops share."""

    default_ops = ("value", "ffn_out")
    starts_as_identity = False
    reads_tasks = True

    def __init__(self, config: OpOptions, ops: LateOps) -> None:
        self.count = len(ops.tasks)
        super().__init__(config, ops)

    def share(self, ops: tuple[Op, ...]) -> None:
        self.of_task = nn.Embedding(self.count, 3)

    def build(self, op: Op) -> Part:
        return GeneratedPart(self.config, op, self.tasks, self.of_task)
'''


@pytest.fixture(autouse=True)
def dropped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "methods"
    folder.mkdir()
    for name, text in (("fisher_entries", FISHER), ("generated", GENERATED)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(tuner_package, "__path__", [*tuner_package.__path__, str(folder)])
    yield
    for name in ("fisher_entries", "generated"):
        sys.modules.pop(f"{tuner_package.__name__}.{name}", None)


def test_a_tuner_that_looks_at_examples_gets_the_librarys_own_gradients(tmp_path: Path) -> None:
    """Oracle: squared gradients of the library's model and the run's first head, one example after another. The query is a
    share of a fused projection that is held transposed. The choice is kept in the run, and the live model has it."""
    data, validation = write_csv(tmp_path / "train.csv", 24), write_csv(tmp_path / "validation.csv", 20, seed=1)
    words = ("--model", tiny_causal(tmp_path / "model"), "--data", data, "--validation", validation)
    call("extract", *words, "--encoding", "float32", "--store", tmp_path / "cache")
    chosen = ["tuner.name=fisher_entries", "data.batch_examples=8", "train.learning_rate=3e-2", "train.device=cpu"]
    settings = [word for item in chosen for word in ("--set", item)]
    run = tmp_path / "run"
    trained = call(
        "train",
        "--store",
        tmp_path / "cache",
        "--run",
        run,
        "--config",
        "last",
        "--set",
        "late.mode=null",
        *settings,
        "--epochs",
        1,
    )

    first = load_file(run / "first_values.safetensors")
    store = Store.open(tmp_path / "cache")
    recipe = load_recipe("last", ["late.mode=null", *chosen])
    head = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).head
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    weights = {"query": model.h[3].attn.c_attn.weight, "ffn_in": model.h[3].mlp.c_fc.weight}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for line in data.read_text().splitlines()[1:]:
        text, label = line.rsplit(",", 1)
        state = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[:, -1]
        loss = torch.nn.functional.cross_entropy(
            head.linear(state), torch.tensor([["negative", "positive"].index(label)])
        )
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += gradient.square()
    for name, of_op in (("query", total["query"].T[:32]), ("ffn_in", total["ffn_in"].T)):
        expected = of_op.flatten().topk(5).indices.sort().values
        assert torch.equal(first[f"tuner.decoder.3.{name}.places"], expected)
        assert not torch.equal(expected, torch.arange(5))

    prepared = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["prepared"]
    assert set(prepared) == {"seconds", "peak_memory_bytes"}
    assert trained["trained_parameters"] == 2 * 5 + 2 * 32 + 2
    assert call("eval", "--run", run)["value"] == pytest.approx(trained["best"], abs=1e-12)
    again = (
        "train",
        "--store",
        tmp_path / "cache",
        "--run",
        tmp_path / "again",
        "--config",
        "last",
        "--set",
        "late.mode=null",
        *settings,
        "--epochs",
        1,
    )
    assert call(*again)["weights_digest"] == trained["weights_digest"]


def test_gradients_leave_the_model_as_it_was_and_name_ops_without_a_weight(tmp_path: Path) -> None:
    from sherl_cache.stages.tuner_preparation import RunTunerPreparation

    data = write_csv(tmp_path / "train.csv", 12)
    call("extract", "--model", tiny_bert(tmp_path / "model"), "--data", data, "--store", tmp_path / "cache")
    recipe = load_recipe("last", ["late.mode=null", "tuner.name=fisher_entries", "train.device=cpu"])
    training = Training.of(recipe, Store.open(tmp_path / "cache"))
    model = training.model
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    preparation = RunTunerPreparation(2, 0, training.batches, lambda: None, model, training.objective)
    ops = [op for op, _ in model.tuner.placed]
    single = [dict(found) for found in preparation.gradients(ops, 12)]
    (whole,) = preparation.gradients(ops, 12, together=12)
    assert len(single) == 12
    for name, gradient in whole.items():
        mean = torch.stack([found[name] for found in single]).mean(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6)
    assert next(iter(preparation.gradients(ops, 12))).keys() == whole.keys()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad is before[name][1]
        assert value.grad is None
    assert model.training
    block = replace(ops[0], role="block", kind="block")
    with pytest.raises(RecipeError, match="has no weight of its own"):
        next(preparation.gradients([block], 1))


def tasked(family: str) -> tuple[Any, LiveModel]:
    """Stage two with generated parts for two tasks, and the live model."""
    loaded = loaded_model(family, "float64")
    producer = producer_of(loaded)
    producer["task"]["tasks"] = ["first", "second"]
    recipe = StageTwoRecipe(fusion="last", late=2, tuner="generated", head=None)
    model = build_stage_two(producer, late_weights(loaded, 2).__getitem__, recipe, 0, dtype=torch.float64)
    return model.eval(), LiveModel(loaded, model)


def texts_of(family: str, count: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(5, 200, (1 + 3 * (row % 9),), generator=generator).tolist() for row in range(count)]
    answers = [[[5, 9, 1], [7, 1]][: 1 + row % 2] for row in range(count)]
    return TokenBatch(ids, None, answers if family == "t5" else None, tasks=[row % 2 for row in range(count)])


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_every_segment_is_tuned_by_its_own_task_from_the_store_and_live(family: str) -> None:
    """Oracle: the same batch with all segments of one task. Segments of like length run together, in another order."""
    model, live = tasked(family)
    batch = texts_of(family, 20)
    taps = cached(live.loaded, model, [batch])
    counts = torch.tensor(batch.candidates) if batch.targets else torch.ones(20, dtype=torch.int64)
    numbers = torch.tensor(batch.tasks)

    def found(tasks: torch.Tensor) -> torch.Tensor:
        given = {
            name: replace(packed, tasks=tasks if name != model.exit_stream else tasks.repeat_interleave(counts))
            for name, packed in taps.items()
        }
        with torch.no_grad():
            return model(given, segments=counts)

    mixed, alone = found(numbers), [found(torch.full_like(numbers, task)) for task in (0, 1)]
    rows = numbers
    if family == "t5":
        rows = numbers.repeat_interleave(counts).repeat_interleave(taps["decoder"].lengths)
    for task in (0, 1):
        torch.testing.assert_close(mixed[rows == task], alone[task][rows == task], rtol=0, atol=1e-10)
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    torch.testing.assert_close(live.logits(batch), mixed, rtol=0, atol=1e-10)
    with pytest.raises(DataError, match="several tasks"):
        live.logits(replace(batch, tasks=None))


def test_beams_of_a_text_have_its_task() -> None:
    _, live = tasked("t5")
    batch = replace(texts_of("t5", 6), targets=None)
    together = live.generate(batch, 4, num_beams=3)
    alone = [
        live.generate(TokenBatch([ids], tasks=[task]), 4, num_beams=3)[0]
        for ids, task in zip(batch.input_ids, batch.tasks, strict=True)
    ]
    assert together == alone
    other = live.generate(replace(batch, tasks=[1 - task for task in batch.tasks]), 4, num_beams=3)
    assert other != together


def test_the_column_of_tasks_reaches_the_tuner_in_training_and_in_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of two tasks in turn: the run's score from the store is that of the live model, which is told the tasks too."""
    encode, block = inputs_module.encode, prepare_module.producer_block

    def in_turn(*arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in encode(*arguments, **options):
            names = [("first", "second")[int(row) % 2] for row in batch.column("source_id").to_pylist()]
            yield batch.set_column(batch.schema.get_field_index("task"), batch.schema.field("task"), pa.array(names))

    def of_both(*arguments: Any, **options: Any) -> dict[str, Any]:
        found = block(*arguments, **options)
        return {**found, "task": {**found["task"], "tasks": ["first", "second"]}}

    monkeypatch.setattr(inputs_module, "encode", in_turn)
    monkeypatch.setattr(prepare_module, "producer_block", of_both)
    files = ("--data", write_csv(tmp_path / "train.csv", 32), "--validation", write_csv(tmp_path / "v.csv", 20, seed=1))
    call(
        "extract",
        "--model",
        tiny_bert(tmp_path / "model"),
        *files,
        "--encoding",
        "float32",
        "--store",
        tmp_path / "cache",
    )
    chosen = ("--config", "last", "--set", "late.mode=null", "--set", "tuner.name=generated", "--epochs", 1)
    trained = call(
        "train",
        "--store",
        tmp_path / "cache",
        "--run",
        tmp_path / "run",
        *chosen,
        "--set",
        "train.micro_batch_examples=5",
    )
    assert call("eval", "--run", tmp_path / "run")["value"] == pytest.approx(trained["best"], abs=1e-12)

    store = Store.open(tmp_path / "cache")
    recipe = load_recipe("last", ["late.mode=null", "tuner.name=generated"])
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}"))
    dataset = StoreDataset.for_model(tmp_path / "cache", model, batch_examples=8, split="validation")
    batches = list(dataset)
    column = store.examples("validation").column("task").to_pylist()
    expected = [["first", "second"].index(name) for name in column]
    assert torch.cat([batch["inputs"]["encoder"].tasks for batch in batches]).tolist() == expected
    model(batches[0]["inputs"]).square().sum().backward()
    assert model.tuner.of_task.weight.grad.abs().sum(1).min() > 0
