"""The trained model as a Python object, in the manner of `transformers`.

model = SherlModel.from_pretrained("runs/sherl-0123456789")
model.predict(["a gripping film"])
model.save_pretrained("exported")
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from ..stages.answer import Answer, answer_rows
from ..stages.methods.contract import UNLABELLED, Targets
from ..stages.packing import padded_ids, padding_of
from ..stages.pair_inputs import PairInputs
from ..stages.retrieval import embedded
from ..stages.tokens import TokenBatch
from ..storage.errors import InvalidInput, UsageError
from .adapter import write_adapter
from .as_transformers import (
    IGNORED,
    SherlOutput,
    answers_of,
    behind,
    config_with_labels,
    in_places,
    kept_rows,
    known_to_pipelines,
    padded,
)
from .live import load_live
from .objectives import choose_objective
from .ranking import Gallery, PictureFile, Ranking, picture_of, rank
from .run import weights_digest
from .trained import Trained, open_trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..stages.answer import Answerer


class SherlModel(nn.Module):
    """A pretrained model with what stage two trained hung into it.

    It is in eval mode, its pretrained part for ever; `train()` puts the trained parts alone into train mode. Only one thread may
    call it at a time, since each call puts the trained parts into the pretrained model and takes them out again; several
    instances do not know of each other.
    """

    def __init__(self, trained: Trained, answerer: Answerer) -> None:
        """`from_pretrained` makes one."""
        super().__init__()
        live = answerer.live
        self.base: nn.Module = live.loaded.model
        self.stage_two = live.stage_two
        self.config = config_with_labels(live.config, answerer.task)
        self.tokenizer = copy.deepcopy(live.loaded.tokenizer)
        """Cuts at the length that was trained with, when it is told to truncate; None where the model reads pictures."""
        if self.tokenizer is not None:
            self.tokenizer.model_max_length = answerer.max_length
        self.image_processor = live.loaded.processor
        self._answerer, self._trained = answerer, trained
        self._digest = weights_digest(trained.weights)
        known_to_pipelines(type(self).__name__)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        base: str | Path | None = None,
        base_revision: str | None = None,
        device: str = "cpu",
    ) -> Self:
        """The model of a run's folder, of a folder that `save_pretrained` or `sherl-cache export` wrote, or of such a
        folder on the hub.

        revision: of that name on the hub. base: the pretrained model by another name or folder than it was trained
        under. No store is needed. Raises UsageError or ModelError where something is not there, StoreCorrupt where
        files are damaged, StoreStale where the pretrained model is not the one that was trained on.
        """
        trained = open_trained(name, revision)
        return cls(trained, load_live(trained, device, None if base is None else str(base), base_revision))

    def save_pretrained(self, folder: str | Path, *, base: str | None = None) -> None:
        """Write adapter_config.json, adapter_model.safetensors (what trained, nothing else) and the model card.

        base: name of the pretrained model to write down, instead of the one it was trained under. Raises UsageError
        where the folder holds something else.
        """
        weights = self.stage_two.trainable_state_dict()
        trained = replace(self._trained, weights=weights)
        if weights_digest(weights) != self._digest:  # the scores are those of other weights
            trained = replace(trained, result=None, evals=())
        write_adapter(trained, Path(folder), base)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> SherlOutput:
        """Token ids [B, T], or pixels as the image processor makes them, -> logits: [B, C] of classes, [B, 1] of a score,
        [B, U, V] of an encoder-decoder's answer, [B, T, V] of a causal decoder that answers in text; or both, of A pictures
        and B texts that need not belong together, -> their scaled likeness [A, B].

        attention_mask: [B, T], 1 where a token is; None: everywhere. labels: classes [B], scores [B], or the answers'
        token ids [B, U], -100 where there is none; the loss is the mean that training minimises. An encoder-decoder needs
        labels or decoder_input_ids [B, U], which begin with the start token. A causal decoder reads texts with their answers
        behind them, and its labels [B, T] are these token ids, -100 before the answer. Raises InvalidInput.
        """
        output = self.stage_two.head.output
        answers = None
        if output == "tokens" and not self._continues:
            answers = answers_of(self.config, labels, decoder_input_ids)
        elif decoder_input_ids is not None:
            what = "with " + output if output != "tokens" else "behind its input"
            raise InvalidInput(f"decoder_input_ids: this model answers {what}; it takes input_ids alone")
        if output == "pair":
            return SherlOutput(logits=self._likeness(input_ids, attention_mask, pixel_values, labels))
        if (input_ids is None) == (pixel_values is None) or (pixel_values is None) == self._reads_pictures:
            raise InvalidInput(
                f"this model reads {'pixel_values' if self._reads_pictures else 'input_ids'}: give these alone"
            )
        if input_ids is None:
            batch = TokenBatch(pixels=pixel_values)
        else:
            kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            batch = TokenBatch(
                kept_rows(input_ids, kept),
                None if token_type_ids is None or not self._types else kept_rows(token_type_ids, kept),
                None if answers is None else [[answer] for answer in answers],
            )
        found = self._answerer.live.forward(batch)
        if self._continues:
            loss = None if labels is None else self._loss_of_rows(found, behind(labels.to(found.device), kept))
            return SherlOutput(loss=loss, logits=in_places(found, kept))
        loss = None if labels is None else self._loss(found, labels, answers)
        return SherlOutput(loss=loss, logits=padded(found, answers, output))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int = 20,
        num_beams: int = 1,
    ) -> Tensor:
        """Token ids [B, U] of an answer a row, padded on the right; greedy, or by beam search. An encoder-decoder's begin with
        the start token, a causal decoder's do not repeat the input.

        Raises RecipeError where the model gives no tokens.
        """
        kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self._answerer.live.generate_ids(TokenBatch(kept_rows(input_ids, kept)), max_new_tokens, num_beams)

    def predict(self, texts: Sequence[str | Sequence[str]], batch_examples: int = 32) -> list[Answer]:
        """The answer to each text, with the probability of every label where there are labels.

        texts: one string an example, or a tuple of them for a task of several text columns. Raises UsageError.
        """
        if self._pairs:
            raise UsageError("this model ranks pictures and texts against each other: call rank, or embed")
        given = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        columns = self._answerer.task.columns
        for row in given:
            if len(row) != len(columns):
                raise UsageError(f"{row!r}: the task reads {len(columns)} texts a row ({', '.join(columns)})")
        return [answer for _, answer in answer_rows(self._answerer, given, batch_examples)]

    def embed(
        self, pictures: Sequence[PictureFile] = (), texts: Sequence[str] = (), batch_examples: int = 32
    ) -> tuple[Tensor, Tensor]:
        """Vectors of length one, on the CPU: of pictures [A, P], by their files or bytes, and of texts [B, P]. What is likest
        has the largest product. Raises UsageError where the model was not trained on pictures with captions.
        """
        inputs = self._answerer.inputs
        if not isinstance(inputs, PairInputs):
            raise UsageError("this model answers rows, and was not trained on pictures with captions: call predict")
        shown = [picture_of(picture, number) for number, picture in enumerate(pictures)]
        return embedded(self._answerer.live, inputs, self._answerer.task, shown, list(texts), batch_examples)

    def rank(
        self, texts: Sequence[str] = (), pictures: Sequence[PictureFile] = (), top: int = 5, batch_examples: int = 32
    ) -> list[Ranking]:
        """Each picture with the likest of the texts, then each text with the likest of the pictures. Raises UsageError where
        the model was not trained on pictures with captions, or one of the sides is empty.
        """
        shown = tuple(picture_of(picture, number) for number, picture in enumerate(pictures))
        gallery = Gallery() + Gallery(shown, tuple(texts))
        return rank(self._answerer, gallery, gallery, top, batch_examples)[0]

    def formatted(self, texts: Sequence[str | Sequence[str]]) -> list[str | dict[str, str]]:
        """What a pipeline of `transformers` is given for texts as `predict` takes them: the task's template filled where the
        model was trained with it, and two texts as `text` and `text_pair`.
        """
        answerer = self._answerer
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        if answerer.live.table.text_form != "pair":
            return [answerer.task.text_format.format(*row) for row in rows]
        if len(answerer.task.columns) != 2:
            return [" ".join(row) for row in rows]
        return [{"text": row[0], "text_pair": row[1]} for row in rows]

    def tokenize(self, texts: Sequence[str | Sequence[str]]) -> dict[str, Tensor]:
        """Arguments of `forward` for texts, or files of pictures, as `predict` takes them, in the form that was trained
        with. A model of pictures with captions takes a picture and a text a row.
        """
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        batch = self._answerer.inputs.raw(rows, self._answerer.task)
        shown = {} if batch.pixels is None else {"pixel_values": batch.pixels.to(self.device)}
        if not batch.input_ids:
            return shown
        pad = self.config.get_text_config().pad_token_id
        ids, lengths = padded_ids(batch.input_ids, max(pad or 0, 0), self.device)
        arguments = {"input_ids": ids, "attention_mask": padding_of(lengths).mask, **shown}
        if batch.token_type_ids is not None:
            arguments["token_type_ids"] = padded_ids(batch.token_type_ids, 0, self.device)[0]
        return arguments

    @property
    def device(self) -> torch.device:
        return self._answerer.live.loaded.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the pretrained part."""
        return self._answerer.live.loaded.dtype

    def can_generate(self) -> bool:
        """Whether it answers with tokens."""
        return self.stage_two.head.output == "tokens"

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.base.eval()
        return self

    @property
    def _continues(self) -> bool:
        """Whether answers stand behind the text in one stream."""
        return self._answerer.live.table.text_form == "continuation"

    @property
    def _pairs(self) -> bool:
        return self.stage_two.head.output == "pair"

    def _likeness(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        pixel_values: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        """Products of the vectors of pictures and texts, times the scale that was learned, [A, B]."""
        if input_ids is None or pixel_values is None:
            raise InvalidInput("this model compares pictures with texts: give pixel_values and input_ids")
        if labels is not None:
            raise InvalidInput(
                "labels: this model compares all pictures with all texts and has no loss of its own; leave them out"
            )
        kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pair = self._answerer.live.forward(TokenBatch(kept_rows(input_ids, kept), pixels=pixel_values))
        found: Tensor = pair.scale * pair.first @ pair.second.T
        return found

    @property
    def _reads_pictures(self) -> bool:
        return self._answerer.live.table.reads_pictures

    @property
    def _types(self) -> bool:
        """Whether the pretrained model knows token types."""
        return "token_type_ids" in self.tokenizer.model_input_names

    def _loss(self, found: Tensor, labels: Tensor, answers: list[list[int]] | None) -> Tensor:
        """The mean loss of the run's objective."""
        labels = labels.to(found.device)
        if answers is not None:
            counts = torch.tensor([len(answer) for answer in answers], device=labels.device)
            return self._loss_of_rows(
                found, padding_of(counts).pack(labels[:, : int(counts.max())].unsqueeze(-1)).squeeze(-1)
            )
        if self.stage_two.head.output == "classes":
            targets = Targets(gold=labels.masked_fill(labels == IGNORED, UNLABELLED))
        else:
            targets = Targets(score=labels.to(found.dtype))
        return self._mean_loss(found, targets)

    def _loss_of_rows(self, found: Tensor, tokens: Tensor) -> Tensor:
        """The mean loss of logits [N, V] whose tokens [N] are known, but for those that are -100."""
        return self._mean_loss(found[tokens != IGNORED], Targets(tokens=tokens[tokens != IGNORED]))

    def _mean_loss(self, found: Tensor, targets: Targets) -> Tensor:
        objective = choose_objective(self._trained.recipe, self.stage_two, self._answerer.task.kind)
        if objective.reads_features:
            raise InvalidInput(
                "labels: the run's objective reads fused features, which a whole model does not give; leave them out"
            )
        loss = objective(found, targets)
        mean: Tensor = loss.sum / loss.weight if float(loss.weight) else loss.sum
        return mean
