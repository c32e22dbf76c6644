"""The model card: a README of what was trained, on what, how it scored and how to load it.

Names, labels and texts come from users and data sets, so they are escaped: in Markdown and HTML they are text.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Any

import yaml

from .progress import duration, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .trained import Trained

_LIMITS = """
- The pretrained model is not in this folder. It is loaded by its name and refused if its weights are others than those
  trained on.
- Early layers ran without dropout and without augmentation while this was trained.
- What the pretrained model got wrong or learned amiss, this model may too. It was scored on the data above and on nothing
  else.
"""


def model_card(trained: Trained, base: str, weights_bytes: int) -> str:
    """README.md of an export; `base`: the pretrained model's name, `weights_bytes`: of the file beside it."""
    producer, recipe = trained.producer, trained.recipe
    task, data, model = producer["task"], producer["data"], producer["model"]
    labels = ", ".join(map(escaped, task["labels"])) if task["labels"] else "a number"
    if task["kind"] == "retrieval":
        labels = "captions of a picture and pictures of a caption, by the products of their vectors"
    revision = f", revision {escaped(model['revision'])}" if model["revision"] else ""
    count = recipe.late.blocks
    late = f"last {'block' if count == 1 else f'{count} blocks'} {recipe.late_mode}" if count else "no late block"
    tuner = f", tuner {escaped(recipe.tuner.name)}" if recipe.tuner.name else ""
    parts = [
        _front_matter(base, task),
        f"# {escaped(recipe.name)} on {escaped(task['name'])}",
        "A frozen pretrained model with a trained fusion of its layers' states and a few late layers (SHERL, "
        "[arXiv:2407.07523](https://arxiv.org/abs/2407.07523)), trained from stored activations by sherl-cache.",
        "\n".join(
            [
                f"- **Pretrained model**: {escaped(_short(base))}{revision} ({escaped(model['model_type'])}, weights "
                f"{model['weights'][:12]}, {escaped(model['precision'])})",
                f"- **Task**: {escaped(task['kind'])}; answers: {labels}; inputs of at most {task['max_length']} tokens",
                f"- **Data**: {escaped(_short(data['name']))}{', synthetic' if data['synthetic'] else ''}",
                f"- **Method**: fusion {escaped(recipe.fusion.name)}, {late}{tuner}, seed {recipe.seed}",
                f"- **Weights here**: {size(weights_bytes)}, only what was trained",
            ]
        ),
        "## Scores",
        _scores(trained),
        "## Use",
        _usage(task),
        "## Limits",
        _LIMITS.strip(),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(value: object, most: int = 200) -> str:
    """A text as one line of Markdown that shows it and means nothing else: every sign that could be markup is written by
    its number.
    """
    text = " ".join(str(value).split())
    text = text if len(text) <= most else f"{text[:most]}..."
    return "".join(
        f"&#{ord(letter)};" if letter in _SIGNS else letter if letter.isprintable() else "\ufffd" for letter in text
    )


_SIGNS = frozenset(string.punctuation) - frozenset(",;-/")


def _front_matter(base: str, task: dict[str, Any]) -> str:
    facts: dict[str, Any] = {"library_name": "sherl-cache", "tags": ["sherl", "parameter-efficient-fine-tuning"]}
    if re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", base):
        facts["base_model"] = base
    if task["kind"] == "classification":
        facts["pipeline_tag"] = "text-classification"
    return f"---\n{yaml.safe_dump(facts, sort_keys=True, allow_unicode=False).rstrip()}\n---"


def _short(name: str) -> str:
    """A name on the hub as it is; of a path its last part, since the rest tells of a machine."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith((".", "/", "~")) or name.count("/") > 1 else name


def _scores(trained: Trained) -> str:
    result = trained.result
    if result is None:
        return "Not measured: the run was not finished, or the weights have changed since."
    told = []
    if result.get("best") is not None:
        told.append(
            f"Validation {escaped(result['metric'])} from the store: {result['best']:.4f}, in epoch "
            f"{result['best_epoch'] + 1} of {len(result['history'])}. That epoch was chosen by this very score, so it "
            "flatters a little."
        )
    told.append(
        f"{result['trained_parameters']:,} parameters were trained, {result['steps']:,} steps in "
        f"{duration(result['seconds'])}, with a peak memory of {size(result['peak_memory_bytes'])}."
    )
    if trained.evals:
        rows = [
            f"| {escaped(_short(record['data']))} | {escaped(record['split'])} | {record['examples']:,} | {what} | {value:.4f} |"
            for record in trained.evals
            for what, value in _values(record)
        ]
        head = ["| data | split | rows | score | value |", "|---|---|---|---|---|"]
        told += ["On raw text, with the whole model:", "\n".join([*head, *rows])]
    if trained.producer["data"]["synthetic"]:
        told.append("The data are synthetic: these numbers say nothing about real texts.")
    return "\n\n".join(told)


def _values(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    metric = escaped(record["metric"])
    if "label_scoring" not in record:
        return [(metric, record["value"])]
    return [
        (f"{metric} of generated answers", record["value"]),
        (f"{metric} by label scoring", record["label_scoring"]),
        ("share of answers outside the labels", record["outside_label_set"]),
    ]


def _usage(task: dict[str, Any]) -> str:
    row = '("a text", "another text")' if len(task["columns"]) > 1 else '"a text"'
    call = f"model.predict([{row}])"
    if task["kind"] == "retrieval":
        call = 'model.rank(texts=["a caption"], pictures=["one.png", "another.png"])'
    return f"""```python
from sherl_cache import SherlModel

model = SherlModel.from_pretrained("THIS FOLDER, OR ITS NAME ON THE HUB")
{call}
```"""
