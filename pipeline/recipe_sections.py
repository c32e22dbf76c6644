"""The sections of a recipe and their keys; every key with what it means and its default.

The options of a method stay raw here: the plug-in that is chosen validates them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator

from ..stages.augment import Augment
from ..stages.maps import MapForm
from ..storage import encoding
from ..storage.errors import InvalidInput


class Section(BaseModel):
    """A part of a recipe: frozen, and no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Method(BaseModel):
    """A plug-in by its file name; every other key is an option of that plug-in and is checked by it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str | None = Field(
        default=None, description="file name of the method; null: what the task and the backbone call for"
    )

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class ObjectiveTerm(Method):
    """One term of the objective."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="factor of this term in the sum")


class Extract(Section):
    """What stage one computes. Every field has a flag of the same name."""

    model: str | None = Field(default=None, description="name, folder or builtin/minilm")
    revision: str | None = Field(default=None, description="revision of the model: branch, tag or commit")
    data_revision: str | None = Field(default=None, description="revision of a data set of the hub")
    data: str | None = Field(default=None, description="data set name, file, folder, builtin/reviews or builtin/digits")
    task: str | None = Field(default=None, description="GLUE task of a folder of GLUE files")
    validation: str | None = Field(default=None, description="file of validation rows, for data given as a file")
    text_columns: tuple[str, ...] = Field(
        default=(), description="text columns, in order, or those of pictures and of captions"
    )
    label_column: str | None = Field(default=None, description="column of the label")
    splits: str = Field(default="official", description="official, paper, holdout:N, or train: no other rows")
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="first N training rows; validation stays whole"
    )
    taps: str | None = Field(
        default=None, description='which hidden states, as in "0,2,-1", "every:2", "encoder:0,2;decoder:0"'
    )
    late: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="late blocks whose weights the store holds; null: 2, or one fewer than the model has; as many as the "
        "model has: every block of every stream, for fusions that call early ones",
    )
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="tokens an example; longer is cut and counted; null: what tokenizer and model take, at most 1,024",
    )
    answers: Literal["head", "text"] | None = Field(
        default=None,
        description="text: a causal decoder answers in text, behind the text it reads; head: a head on its last token; null: "
        "in text for encoder-decoders, by a head for all others",
    )
    views: int = Field(
        default=1,
        ge=1,
        description="views of each training picture; the first is the picture, augment makes the others",
    )
    augment: str = Field(
        default="flip+crop:0.5",
        description="how views beyond the first are drawn: flip (left and right), crop:SHARE (a part of at least that "
        "share of the area), or both with a plus between",
    )
    maps: str | None = Field(
        default=None,
        description="what is stored of the maps of a convolutional network: max+average or average, pooled to the size of the "
        "deepest map, or to a square grid, as in average:1; null: max+average",
    )
    encoding: str = Field(
        default="bfloat16",
        description="how values are stored: float64, float32, float16, bfloat16 or int8, then +bitround:BITS (float32, "
        "float16) and +zstd[:LEVEL], as in float32+bitround:10+zstd:3",
    )
    precision: Literal["float64", "float32", "float16", "bfloat16"] | None = Field(
        default=None, description="number format of the forward; null: the checkpoint's own"
    )
    batch_tokens: int = Field(default=4096, ge=1, description="padded tokens of one forward batch")
    unit_memory: ByteSize = Field(
        default=ByteSize(512 * 2**20), description="bytes of one unit in all taps; two are held"
    )
    chunk_bytes: ByteSize = Field(
        default=ByteSize(2**20),
        description="smallest bytes of a chunk, the rows of one row group in one tap; the largest is four times that",
    )
    seed: int = Field(default=0, ge=0, description="seed of the order in which examples are written")
    stream_weights: bool = Field(
        default=False,
        description="one block's weights in memory at a time; a unit runs through the model block by block",
    )

    @field_validator("model", "data", "validation")
    @classmethod
    def _no_address(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError(
                "nothing is loaded from an address: give a name of the hub, a file or a folder of this machine"
            )
        return value

    @field_validator("augment")
    @classmethod
    def _canonical_augment(cls, value: str) -> str:
        try:
            return Augment.parse(value).name
        except InvalidInput as error:
            raise ValueError(str(error)) from None

    @field_validator("maps")
    @classmethod
    def _canonical_maps(cls, value: str | None) -> str | None:
        try:
            return None if value is None else MapForm.parse(value).name
        except InvalidInput as error:
            raise ValueError(str(error)) from None

    @field_validator("encoding")
    @classmethod
    def _canonical_encoding(cls, value: str) -> str:
        try:
            return encoding(value).name
        except InvalidInput as error:
            raise ValueError(str(error)) from None


class Late(Section):
    """The late blocks that run after the fusion."""

    blocks: int = Field(default=1, ge=0, description="how many late blocks run; 0: the head reads the fused state")
    mode: Literal["frozen", "full"] | None = Field(
        default=None,
        description="frozen, or full: trained with learning_rate; null: full without a tuner, frozen with one",
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="of the late blocks, when mode is full")


class Dropout(Section):
    """Dropout probabilities in training; the cached early layers ran without."""

    features: float = Field(default=0.0, ge=0, lt=1, description="on the cached taps as they are read")
    late: bool = Field(default=False, description="run the late blocks with the dropout their own config names")
    head: float = Field(default=0.0, ge=0, lt=1, description="on the pooled state before the head")


class Data(Section):
    """How the store is read."""

    seed: int = Field(default=0, ge=0, description="seed of the order of batches")
    batch_examples: Annotated[int, Field(ge=1)] | None = Field(
        default=32, description="examples a batch; null where batch_tokens is given"
    )
    batch_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="padded tokens a batch, instead of batch_examples: examples of like length then share a batch",
    )
    window: int = Field(
        default=16, ge=1, description="row groups shuffled together; more mixes wider and needs more memory"
    )
    read_budget: ByteSize = Field(
        default=ByteSize(2**30), description="bytes that reading may hold; never changes the order"
    )
    threads: int = Field(
        default=1, ge=0, description="threads that read ahead, 0: read when needed; never change the order"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_size(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("batch_tokens") is not None and "batch_examples" not in value:
            return {**value, "batch_examples": None}
        return value

    @model_validator(mode="after")
    def _exactly_one_size(self) -> Data:
        if (self.batch_examples is None) == (self.batch_tokens is None):
            raise ValueError("a batch is cut by batch_examples or by batch_tokens: set one and the other to null")
        return self


class Train(Section):
    """The optimisation: AdamW, warm-up, decay, clipping."""

    epochs: int = Field(default=4, ge=1, description="passes over the training split")
    learning_rate: float = Field(default=1e-3, gt=0, description="of the fusion, the tuner, the new norms and the head")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled, on weights of two dimensions and more")
    warmup: float = Field(default=0.06, ge=0, description="steps of linear warm-up; below 1: that share of all steps")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="decay after the warm-up")
    clip_norm: float | None = Field(default=1.0, gt=0, description="largest norm of the whole gradient; null: none")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="stop after so many epochs without a better validation metric; null: never"
    )
    checkpoint_steps: int = Field(
        default=200, ge=1, description="steps between checkpoints; one more at each epoch's end"
    )
    micro_batch_examples: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="examples that go through the model at once: a batch is split, its gradients are added up; null: all",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16: autocast of the forward; weights, losses and validation stay float32"
    )
    compile: bool = Field(default=False, description="torch.compile of the fusion; the first steps take longer")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
