"""The whole network on raw tokens: a pretrained model with stage two's parts hung into it.

The model's own modules run. Hooks read the taps, put the fused state in front of the first late layer, and
carry two memories side by side, the plain one for early decoder layers and the fused one for late ones;
whatever copies or reorders the memory in generation moves both. Every call leaves the pretrained model as it
was.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ..storage.errors import DataError, RecipeError
from .backbones.contract import StreamTable
from .evaluate import segment_log_likelihood
from .front import recorded
from .live_flow import Flow
from .load import LoadedModel, quiet_transformers
from .model import StageTwo
from .tokens import StreamInput, TokenBatch, answer_rows, decoder_start, stream_input


class LiveModel:
    """A pretrained model that answers as stage two was trained to.

    The pretrained part computes in its own number format, stage two's parts in theirs.
    """

    def __init__(self, loaded: LoadedModel, stage_two: StageTwo) -> None:
        """stage_two is moved to the model's device."""
        self.loaded = loaded
        self.stage_two = stage_two.to(loaded.device)
        self.table, self.config = loaded.table, loaded.config

    def forward(self, batch: TokenBatch, select: Tensor | None = None) -> Any:
        """What `StageTwo.forward` gives for the taps of this batch: single-pass training, or evaluation, by its mode.

        Raises DataError where a text or an answer has no token.
        """
        stage_two, device = self.stage_two, self.loaded.device
        outputs: dict[str, tuple[Tensor, Tensor]] = {}
        answers = None if batch.targets is None else torch.tensor(batch.candidates, device=device)
        with self._hung_in(answers) as flows, self._tasks_are(batch, flows):
            for stream in self.table.streams:
                if stream.name not in flows:
                    continue
                flow = flows[stream.name]
                given = stream_input(stream, self.config, batch, device)
                arguments: dict[str, Any] = {**given.arguments, **stream.arguments}
                if stream.memory is not None and stream.memory_arguments is not None:
                    repeats = torch.tensor(batch.candidates, device=device)
                    for name, value in zip(stream.memory_arguments, outputs[stream.memory], strict=True):
                        arguments[name] = value.repeat_interleave(repeats, dim=0)
                flow.padding = given.padding
                state = self.loaded.model.get_submodule(stream.stack)(**arguments).last_hidden_state
                outputs[stream.name] = state, given.padding.mask
            rows: Any
            lengths: Any
            if stage_two.late is None:
                last = flows[stage_two.exit_streams[-1]]  # its inputs are those of all
                rows, lengths = last.head_rows()
            else:
                ends = [flows[name].end(outputs[name][0]) for name in stage_two.exit_streams]
                rows, lengths = ends[0] if len(ends) == 1 else map(tuple, zip(*ends, strict=True))
        if self.leads and stage_two.late is not None:
            # rows in front of a segment need masks and positions that the live stacks did not make
            inputs = {name: flow.packed() for name, flow in flows.items()}
            return stage_two(inputs, select, answers)
        if select is not None:
            rows = rows[select]
        output: Any = stage_two.head(stage_two.dropped(rows), lengths)
        return output

    def logits(self, batch: TokenBatch) -> Any:
        """Output of the head without gradients: [B, C] of a classifier, [B] of a regression, [N, V] of a
        language model for the rows that predict a token of an answer, a Pair of two towers."""
        with torch.no_grad(), self._evaluating():
            return self.forward(batch, self.select(batch))

    def select(self, batch: TokenBatch) -> Tensor | None:
        """Rows that predict a token of an answer, bool [N]; None: all, or no such row is known."""
        stream = self.table.stream(self.stage_two.exit_stream)
        if stream.tokens != "continued" or batch.targets is None:
            return None
        return answer_rows(batch, stream_input(stream, self.config, batch, self.loaded.device).lengths)

    def label_scores(self, batch: TokenBatch) -> Tensor:
        """Log-likelihood of each example's candidate answers, [B, C] float64: the sum over the tokens of an
        answer.

        Raises DataError where examples have different numbers of candidates, RecipeError where the head gives
        no tokens.
        """
        self._check_tokens("label scoring")
        counts = set(batch.candidates)
        if len(counts) != 1 or batch.targets is None:
            raise DataError("label scoring compares the same candidate answers for every example of a batch")
        if self._continues:  # each candidate brings its text's rows again, so they are taken one by one
            parts = [replace(batch, targets=[[row[at]] for row in batch.targets]) for at in range(counts.pop())]
            return torch.stack([self._likelihood(part) for part in parts], dim=1)
        return self._likelihood(batch).view(-1, counts.pop())

    def _likelihood(self, batch: TokenBatch) -> Tensor:
        """Log-likelihood of every candidate answer of a batch, float64 [S]."""
        answers = [answer for candidates in batch.targets or () for answer in candidates]
        device = self.loaded.device
        tokens = torch.tensor([token for answer in answers for token in answer], device=device)
        lengths = torch.tensor([len(answer) for answer in answers], device=device)
        return segment_log_likelihood(self.logits(batch), tokens, lengths)

    def generate(self, batch: TokenBatch, max_new_tokens: int, num_beams: int = 1, use_cache: bool = True) -> list[str]:
        """One answer an example as text; see `generate_ids`."""
        sequences = self.generate_ids(batch, max_new_tokens, num_beams, use_cache)
        answers: list[str] = self.loaded.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        return answers

    def generate_ids(
        self, batch: TokenBatch, max_new_tokens: int, num_beams: int = 1, use_cache: bool = True
    ) -> Tensor:
        """Token ids [B, T] of one answer an example, greedy or by beam search, through the library's own generation; an
        encoder-decoder's with the start token first, a causal decoder's without the text.

        Raises RecipeError where the head gives no tokens, DataError where a text has no token.
        """
        self._check_tokens("generation")
        if self.leads:
            raise RecipeError(
                f"tuner.name: {self.leads} puts rows in front of every segment, which generation token by token does not "
                "know; score the candidate answers instead (label_scores)"
            )
        source = self.table.streams[0]
        given = stream_input(source, self.config, replace(batch, targets=None), self.loaded.device)
        start = None if self._continues else decoder_start(self.config)
        end = self.loaded.tokenizer.eos_token_id if self._continues else self.config.eos_token_id
        pad = self.config.pad_token_id
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            # rows that were fused without later ones would have to be fused again
            use_cache=use_cache and self.stage_two.fusion.tokenwise,
            decoder_start_token_id=start,
            eos_token_id=end,
            pad_token_id=end if pad is None else pad,
        )
        model: Any = self.loaded.model
        with (
            torch.no_grad(),
            self._evaluating(),
            self._hung_in(None, generating=True) as flows,
            self._tasks_are(replace(batch, targets=None), {}),
            _settled(model, settings),
            quiet_transformers(),
        ):
            if self._continues:
                sequences: Tensor = model.generate(**_on_the_right(given), generation_config=settings)
                return sequences[:, given.padding.mask.shape[1] :]
            flows[source.name].padding = given.padding
            sequences = model.generate(**given.arguments, generation_config=settings)
        return sequences

    @property
    def _continues(self) -> bool:
        """Whether answers stand behind the text in one stream."""
        return self.table.stream(self.stage_two.exit_stream).tokens == "continued"

    @property
    def leads(self) -> str:
        """Name of the tuner that puts rows in front of the late state; "" where there is none."""
        tuner = self.stage_two.tuner
        return tuner.method_name() if tuner is not None and tuner.enabled and tuner.leading_rows() else ""

    @contextmanager
    def _tasks_are(self, batch: TokenBatch, flows: Mapping[str, Flow]) -> Iterator[None]:
        """Meanwhile a tuner that reads them finds the tasks of a batch. Raises DataError where they are not known."""
        tuner, names = self.stage_two.tuner, self.stage_two.tasks
        if tuner is None or not tuner.reads_tasks:
            yield
            return
        if batch.tasks is None and len(names) != 1:
            raise DataError(f"this model was trained on several tasks ({', '.join(names)}): say which each row is of")
        numbers = torch.tensor(batch.tasks or [0] * len(batch), device=self.loaded.device)
        for flow in flows.values():
            flow.tasks = self._of_segments(numbers, batch, flow.table)
        exits = self.table.stream(self.stage_two.exit_stream)
        with tuner.tasks.during(self._of_segments(numbers, batch, exits)):
            yield

    def _of_segments(self, numbers: Tensor, batch: TokenBatch, stream: StreamTable) -> Tensor:
        """Numbers of examples [B] -> of their segments in a stream."""
        if not stream.answers or batch.targets is None:
            return numbers
        return numbers.repeat_interleave(torch.tensor(batch.candidates, device=numbers.device))

    def _check_tokens(self, what: str) -> None:
        if self.stage_two.head.output != "tokens":
            raise RecipeError(
                f"{what} needs the head language_model, and this run's is {self.stage_two.head.method_name()}"
            )

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.stage_two.training
        self.stage_two.eval()
        try:
            yield
        finally:
            self.stage_two.train(training)

    @contextmanager
    def _hung_in(self, answers: Tensor | None, generating: bool = False) -> Iterator[dict[str, "Flow"]]:
        """Stage two's parts in their places and the hooks set; all of it is taken back at the end.

        answers: int64 [B], candidates of each example; None: all the same number, as in generation.
        """
        model, stage_two = self.loaded.model, self.stage_two
        flows: dict[str, Flow] = {}
        with ExitStack() as undo:
            for stream in self.table.streams:
                if stream.name not in stage_two.specs:
                    continue
                layers = model.get_submodule(stream.layers)
                assert isinstance(layers, nn.ModuleList)
                flow = flows[stream.name] = Flow(stream, stage_two, tuple(flows.values()), answers)
                undo.enter_context(recorded(layers, flow.taps, flow.states.__setitem__))
                if stage_two.late is not None and stage_two.specs[stream.name].exit == "memory":
                    hook = model.get_submodule(stream.stack).register_forward_hook(flow.put_memories_side_by_side)
                    undo.callback(hook.remove)
                if generating and stream.tokens == "continued":
                    hook = model.get_submodule(stream.stack).register_forward_pre_hook(flow.see_mask, with_kwargs=True)
                    undo.callback(hook.remove)
                if generating and stage_two.late is None and stream.name == stage_two.exit_stream:
                    hook = model.get_submodule(stream.stack).register_forward_hook(flow.put_head_rows)
                    undo.callback(hook.remove)
                if stage_two.late is None or not stream.late:
                    continue
                if stream.rotary is not None:
                    rotary = model.get_submodule(stream.rotary)
                    hook = rotary.register_forward_pre_hook(flow.compute_angles, with_kwargs=True)
                    undo.callback(hook.remove)
                part = stage_two.late.stream(stream.name)
                for index, layer in part.layers.items():
                    undo.callback(layers.__setitem__, index, layers[index])
                    layers[index] = layer
                for index, inner in enumerate(layers):
                    late = index in part.indices
                    hook = inner.register_forward_pre_hook(
                        partial(flow.enter_layer, late=late, first=late and index == part.indices[0]),
                        with_kwargs=True,
                        prepend=True,  # a tuner of a whole layer sees the state as it enters here
                    )
                    undo.callback(hook.remove)
                norm = stage_two.norm[stream.name] if stream.name in stage_two.norm else nn.Identity()
                _exchange(model, stream.norm, norm, undo)
            if stage_two.projection is not None:
                _exchange(model, self.table.head, stage_two.projection.linear, undo)
            yield flows


def _on_the_right(given: StreamInput) -> dict[str, Tensor]:
    """Arguments of texts [B, T] with their padding on the left, so that all of them go on at the same place."""
    shift = (given.lengths - given.padding.mask.shape[1]).unsqueeze(1)
    places = torch.arange(given.padding.mask.shape[1], device=shift.device) + shift  # negative where padding stands
    places = places % given.padding.mask.shape[1]
    return {name: values.gather(1, places) for name, values in given.arguments.items()}


@contextmanager
def _settled(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """The library fills gaps of given settings from the checkpoint's own, such as forced tokens and least lengths, which
    are for another task; meanwhile it finds the given ones there too."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _exchange(model: nn.Module, path: str | None, module: nn.Module, undo: ExitStack) -> None:
    """Put `module` at `path` until `undo` is closed; nothing where there is no path."""
    if path is not None:
        undo.callback(model.set_submodule, path, model.get_submodule(path))
        model.set_submodule(path, module)
