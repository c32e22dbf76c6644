"""Live training of the whole model, as transformers offers it for the task: LoRA on every layer, or every weight."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...stages.backbones.contract import Share, table_for
from ...stages.data import TargetTable
from ...stages.device import choose_device
from ...stages.load import LoadedModel, load_config, load_readers, quiet_transformers, resolved
from ...stages.loading_errors import explained
from ...stages.methods.contract import Pair, Targets
from ...stages.packing import padded_ids
from ...stages.plugins import find
from ...stages.tokens import TokenBatch, stream_input
from ...storage.errors import ModelError, UsageError
from .inputs import LiveInputs
from .way import Way, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from ...stages.backbones.contract import BackboneTable, OpPath
    from ...storage import Store
    from ..recipe import Recipe
    from .examples import Examples

_ADAPTED = ("query", "value", "cross_query", "cross_value")
"""Ops of every layer that LoRA is put on, by the roles of the backbones' tables."""


def whole(recipe: Recipe, store: Store, batches: Sequence[Examples], lora_rank: int | None) -> Way:
    """lora_rank: None trains every weight. Raises ModelError."""
    device = choose_device(recipe.train.device)
    loaded, new = load_for_task(store.producer, lora_rank is None, device)
    model: Any = loaded.model
    facts = {"number format of full fine-tuning" if lora_rank is None else "number format below LoRA": loaded.precision}
    if lora_rank is not None:
        targets = adapted_modules(loaded)
        model = with_lora(model, targets, new, lora_rank)
        facts |= {
            "peft": version("peft"),
            "LoRA rank": str(lora_rank),
            "LoRA alpha": str(2 * lora_rank),
            "LoRA on": f"{len(targets)} modules: {', '.join(sorted({name.rpartition('.')[2] for name in targets}))}",
        }
    model.train()
    inputs = LiveInputs(store, loaded, _answers_in_text(loaded.table))
    task = store.producer["task"]
    output = "pair" if loaded.table.reads_pairs else "score" if task["kind"] == "regression" else "classes"
    streams = [stream.name for stream in loaded.table.streams]
    known = TargetTable(store.examples("train"), task, output, streams)

    def loss_of(examples: Examples) -> Callable[[], Tensor]:
        arguments = model_arguments(loaded, inputs, examples, known.of(examples, "gold", device))
        return lambda: _loss(model, arguments)

    def losses() -> Iterator[list[tuple[float, Callable[[], Tensor]]]]:
        for examples in batches:
            yield [(share, loss_of(part)) for share, part in inputs.parts(examples, recipe.train.micro_batch_examples)]

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Way((model,), parameters, steps_of(parameters, losses(), recipe.train, device), facts=facts)


def require_peft() -> None:
    """Raises UsageError."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UsageError(
            "LoRA is measured with peft, which is not installed: pip install 'sherl-cache[bench]'"
        ) from None


def load_for_task(producer: Mapping[str, Any], trains: bool, device: torch.device) -> tuple[LoadedModel, list[str]]:
    """The model of a store's producer in the class that transformers has for the task, and the names of its modules that
    the checkpoint does not hold: a new head, where that class has one.

    trains: all of it in at least float32, in which weights are trained; else in the number format of the store's forward.
    Raises ModelError.
    """
    import transformers

    known, task = producer["model"], producer["task"]
    name, revision = known["name"], known["revision"]
    source = resolved(name)
    config = load_config(name, source, revision)
    table = table_for(config, known.get("answers"))
    table = table.only(known["streams"]) if "streams" in known else table
    options: dict[str, Any] = {}
    class_name: str = table.auto_class
    if not _answers_in_text(table) and not table.reads_pairs:
        pictures = table.reads_pictures
        class_name = "AutoModelForImageClassification" if pictures else "AutoModelForSequenceClassification"
        config.num_labels = max(len(task.get("labels") or ()), 1)
        config.problem_type = "regression" if task["kind"] == "regression" else "single_label_classification"
        if not pictures and config.pad_token_id is None:
            config.pad_token_id = 0  # what texts are padded with here, where the model names nothing
    else:
        options = dict(table.options)
    precision = getattr(torch, known["precision"])
    with quiet_transformers(), explained(name, revision, "weights"):
        try:
            model, report = getattr(transformers, class_name).from_pretrained(
                source,
                config=config,
                revision=revision,
                dtype=torch.promote_types(precision, torch.float32) if trains else precision,
                attn_implementation=table.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise ModelError(
                f"transformers has no {class_name} for a {config.model_type}, so it is not measured"
            ) from None
    tokenizer, processor = load_readers(name, source, revision, table)
    new = sorted({key.rpartition(".")[0] for key in report["missing_keys"]})
    return LoadedModel(name, model.to(device), tokenizer, table, revision, known["weights"], processor), new


def model_arguments(loaded: LoadedModel, inputs: LiveInputs, examples: Examples, targets: Targets) -> dict[str, Any]:
    """Keyword arguments of the model's forward for some examples, with what they should be answered as `labels`, or as
    `targets` where the model has no loss of its own."""
    table, device = loaded.table, loaded.device
    batch = inputs.batch(examples)
    if table.text_form == "continuation":  # the library's class shifts by itself
        answers = inputs.answers(examples)
        ids = [[*text, *answer] for text, answer in zip(batch.input_ids, answers, strict=True)]
        labels = [[-100] * len(text) + answer for text, answer in zip(batch.input_ids, answers, strict=True)]
        given = stream_input(table.streams[0], loaded.config, TokenBatch(ids), device, loaded.dtype)
        return {**given.arguments, "labels": padded_ids(labels, -100, device)[0]}
    arguments: dict[str, Any] = {}
    for stream in table.streams:
        if not stream.answers:
            arguments |= stream_input(stream, loaded.config, batch, device, loaded.dtype).arguments
    if table.reads_pairs:
        return {**arguments, "targets": targets}
    if _answers_in_text(table):
        return {**arguments, "labels": padded_ids(inputs.answers(examples), -100, device)[0]}
    return {**arguments, "labels": targets.gold if targets.score is None else targets.score}


def adapted_modules(loaded: LoadedModel) -> list[str]:
    """Names of the modules of every layer that hold queries and values. Raises ModelError where the table names none."""
    ends = {
        f"{stream.layers}.{index}.{path}"
        for stream in loaded.table.streams
        for index in range(loaded.table.depth(loaded.config, stream.name))
        for role in _ADAPTED
        for path in _paths(stream.ops.get(role, ()))
    }
    names = (name for name, _ in loaded.model.named_modules())
    found = [name for name in names if ends & {name[at:] for at in _starts(name)}]
    if not found:
        raise ModelError(
            f"no layer of a {loaded.config.model_type} has queries and values by its backbone's table, on which LoRA would be"
        )
    return found


def _starts(name: str) -> list[int]:
    """Where the parts of a dotted name begin."""
    return [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]


def _paths(path: OpPath) -> tuple[str, ...]:
    if isinstance(path, Share):
        return (path.path,)
    return (path,) if isinstance(path, str) else path if isinstance(path, tuple) else ()


def with_lora(model: Any, targets: Sequence[str], new: Sequence[str], rank: int) -> Any:
    """The model with LoRA on some modules, alpha twice the rank; modules that are new train whole."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets),
        modules_to_save=list(new) or None,
        # layers that are no nn.Linear hold [in, out]
        fan_in_fan_out=not all(isinstance(model.get_submodule(name), nn.Linear) for name in targets),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what peft asks transformers for
        return get_peft_model(model, config)


def _answers_in_text(table: BackboneTable) -> bool:
    return table.text_form in ("text_to_text", "continuation")


def _loss(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    if "targets" not in arguments:
        own: Tensor = model(**arguments).loss
        return own
    output = model(**{name: value for name, value in arguments.items() if name != "targets"})
    scale = model.get_parameter(
        next(name for name, _ in model.named_parameters() if name.endswith("logit_scale"))
    ).exp()
    objective: Any = find("objective", "contrastive")
    found = objective.from_options({})(Pair(output.image_embeds, output.text_embeds, scale), arguments["targets"])
    mean: Tensor = found.sum / found.weight
    return mean
