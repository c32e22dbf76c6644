"""The ways to train one task: each gives what trains and one loss a batch, all in float32 on the same examples.

Stage two reads the store through the product's own stream; the others take token ids, padded to the longest of each
batch, and run the whole model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from .subject import Subject

Losses = "Iterator[tuple[list[torch.nn.Parameter], Callable[[], torch.Tensor]]]"
LORA_RANK = 8


def stage_two(subject: Subject, device: torch.device, *settings: str) -> Iterator[Any]:
    """SHERL from the store: the early layers are not loaded."""
    from sherl_cache.pipeline.recipe import load_recipe
    from sherl_cache.pipeline.training import Training
    from sherl_cache.storage import Store

    recipe = load_recipe("sherl", (f"data.batch_examples={subject.batch}", "data.read_budget=512MiB", *settings))
    training = Training.of(recipe, Store.open(subject.store))
    parameters = list(training.model.trained_parameters().values())
    for batch in training.batches.epoch(0):

        def loss(batch: Any = batch) -> torch.Tensor:
            found = training.objective(training.model(batch.inputs, batch.select, batch.segments), batch.targets)
            mean: torch.Tensor = found.sum / found.weight
            return mean

        yield parameters, loss, training.batches


def stage_two_cls(subject: Subject, device: torch.device) -> Iterator[Any]:
    """The same where the head reads the first row of a segment, and the last layer computes no other."""
    yield from stage_two(subject, device, "head.pooling=cls")


def live(subject: Subject, device: torch.device, *settings: str) -> Iterator[Any]:
    """A fusion and late layer hung into the live model: every step runs the early layers, without gradients there."""
    import torch

    from sherl_cache.pipeline.objectives import choose_objective
    from sherl_cache.pipeline.recipe import load_recipe
    from sherl_cache.pipeline.training import stage_two as build
    from sherl_cache.stages.late_weights import late_weights
    from sherl_cache.stages.live import LiveModel
    from sherl_cache.stages.load import load_pretrained
    from sherl_cache.stages.methods.contract import Targets
    from sherl_cache.stages.tokens import TokenBatch
    from sherl_cache.storage import Store

    loaded = load_pretrained(str(subject.model), device=str(device))
    store = Store.open(subject.store)
    recipe = load_recipe("sherl", settings)
    model = build(recipe, store.producer, late_weights(loaded, store.producer["late"]).__getitem__)
    objective = choose_objective(recipe, model, "classification")
    whole = LiveModel(loaded, model)
    parameters = list(model.trained_parameters().values())
    for inputs, answers, labels in token_batches(subject):

        def loss(inputs: Any = inputs, answers: Any = answers, labels: Any = labels) -> torch.Tensor:
            if answers is None:
                output = whole.forward(TokenBatch(inputs))
                targets = Targets(gold=torch.tensor(labels, device=device))
            else:
                output = whole.forward(TokenBatch(inputs, None, [[answer] for answer in answers]))
                targets = Targets(tokens=torch.tensor([token for answer in answers for token in answer], device=device))
            found = objective(output, targets)
            mean: torch.Tensor = found.sum / found.weight
            return mean

        yield parameters, loss, None


def ladder(subject: Subject, device: torch.device, *settings: str) -> Iterator[Any]:
    """Ladder side tuning (LST) beside the live model; no late layer."""
    yield from live(subject, device, "fusion.name=ladder", "late.blocks=0", *settings)


def lora(subject: Subject, device: torch.device) -> Iterator[Any]:
    """LoRA on queries and values of every layer (peft)."""
    from peft import LoraConfig, get_peft_model

    model = _task_model(subject, device)
    targets = ["q", "v"] if subject.kind == "encoder-decoder" else ["query", "value"]
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=targets, modules_to_save=["classifier"])
    yield from _whole(subject, get_peft_model(model, config), device)


def full(subject: Subject, device: torch.device) -> Iterator[Any]:
    """Every weight trains."""
    yield from _whole(subject, _task_model(subject, device), device)


WAYS = {
    "stage two, warm": stage_two,
    "stage two, cold": stage_two,
    "stage two, cls pooling": stage_two_cls,
    "live SHERL": live,
    "LST, live": ladder,
    "LoRA (peft)": lora,
    "full fine-tuning": full,
}


def token_batches(subject: Subject) -> Iterator[tuple[list[list[int]], list[list[int]] | None, list[int]]]:
    """Token ids of the training examples, of their right answers where answers are text, and class numbers."""
    from sherl_cache.storage import Store

    store = Store.open(subject.store)
    answers = store.producer["task"]["target_ids"] if subject.kind == "encoder-decoder" else None
    for table in store.examples("train").batches(["input_ids", "gold"]):
        for start in range(0, len(table), subject.batch):
            part = table.slice(start, subject.batch).to_pydict()
            yield part["input_ids"], None if answers is None else [answers[gold] for gold in part["gold"]], part["gold"]


def _task_model(subject: Subject, device: torch.device) -> Any:
    from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    kind = AutoModelForSeq2SeqLM if subject.kind == "encoder-decoder" else AutoModelForSequenceClassification
    return kind.from_pretrained(subject.model).to(device).train()


def _whole(subject: Subject, model: Any, device: torch.device) -> Iterator[Any]:
    import torch

    from sherl_cache.stages.packing import padded_ids

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for inputs, answers, golds in token_batches(subject):
        ids, lengths = padded_ids(inputs, 0, device)
        labels = torch.tensor(golds, device=device) if answers is None else padded_ids(answers, -100, device)[0]
        mask = (torch.arange(ids.shape[1], device=device) < lengths.to(device).unsqueeze(1)).long()

        def loss(ids: Any = ids, mask: Any = mask, labels: Any = labels) -> torch.Tensor:
            found: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            return found

        yield parameters, loss, None
