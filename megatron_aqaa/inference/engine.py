"""Generation with a KV cache: many prompts in one left-padded batch, or one answer token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megatron_aqaa.inference.sampling import SPEECH, GrammarMask, Sampling, allowed_kinds, sample
from megatron_aqaa.model import AQAAModel
from megatron_aqaa.ops import positions_in_group
from megatron_aqaa.vocabulary import GROUP_SIZE, AnswerFormat, GroupGrammar, Vocabulary


@dataclass(frozen=True)
class Answer:
    """What the model said after one prompt.

    Attributes:
        token_ids: all tokens, `<|EOT|>` included when it came (`<audio_start>` of an opening).
        finished: False if `max_new_tokens` ended an unconstrained answer.
    """

    token_ids: list[int]
    finished: bool


class AnswerEngine:
    """Generates answers of a language model that this process holds whole.

    Args:
        model: the whole model, without pipeline stages; tensor-parallel ranks must all make the same calls.
        vocabulary: id layout of the model.
        answer_format: chunk sizes of the group grammar.
        max_batch_size: prompts per forward pass.
    """

    def __init__(
        self,
        model: AQAAModel,
        vocabulary: Vocabulary,
        answer_format: AnswerFormat | None = None,
        max_batch_size: int = 128,
    ) -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        self.answer_format = answer_format or AnswerFormat()
        self.max_batch_size = max_batch_size
        self.device = next(model.parameters()).device
        self.mask = GrammarMask(vocabulary, self.device)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
        seeds: Sequence[int] | None = None,
    ) -> list[Answer]:
        """Answer every prompt; prompts of similar length share a batch.

        Args:
            prompts: token ids. Of equal ones in a batch the model reads one: several answers to a question are cheap.
            sampling: how answers are drawn.
            on_progress: called with the number of prompts answered so far.
            seeds: of each prompt's randomness; None: `sampling.seed + i` for prompt i.

        Returns:
            The answers, in the order of the prompts.
        """
        sampling = sampling or Sampling()
        seeds = [sampling.seed + i for i in range(len(prompts))] if seeds is None else seeds
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: dict[int, Answer] = {}
        for start in range(0, len(prompts), self.max_batch_size):
            indices = by_length[start : start + self.max_batch_size]
            batch = _Batch(self, [prompts[i] for i in indices], [seeds[i] for i in indices], sampling)
            for _ in batch.steps():
                pass
            for i, row in zip(indices, batch.rows, strict=True):
                answers[i] = Answer(row.token_ids, row.finished)
            on_progress(len(answers))
        return [answers[i] for i in range(len(prompts))]

    def stream(self, prompt: Sequence[int], sampling: Sampling | None = None) -> Iterator[int]:
        """Yield the tokens of one answer as they are drawn, `<|EOT|>` included."""
        sampling = sampling or Sampling()
        for token_ids in _Batch(self, [prompt], [sampling.seed], sampling).steps():
            yield int(token_ids[0])


class _Batch:
    """A few answers in the making: one row each, all at the same position thanks to padding on the left.

    Rows that have ended are dropped from the forward pass once they are half of it: spoken answers differ in length
    by a factor of five, and a batch would otherwise cost what its longest answer costs.
    """

    def __init__(
        self, engine: AnswerEngine, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> None:
        if not all(prompts):
            raise ValueError("an empty prompt cannot be answered: give at least one token")
        self.engine, self.sampling = engine, sampling
        self.prompt_length = max(map(len, prompts))
        capacity = self.prompt_length + sampling.max_new_tokens
        different = list(dict.fromkeys(map(tuple, prompts)))
        row_of = {prompt: row for row, prompt in enumerate(different)}
        self.read_as = [row_of[tuple(prompt)] for prompt in prompts]  # row of the first pass, for each answer
        self.context = StaticInferenceContext(len(different), capacity)
        self.token_ids, self.document_ids = self._left_padded(different, capacity)
        vocabulary = engine.vocabulary
        self.group_positions = positions_in_group(self.token_ids, vocabulary.linguistic_start, vocabulary.audio_stop)
        self.rows = [_Row(GroupGrammar(vocabulary, engine.answer_format), seed) for seed in seeds]
        self.last = {vocabulary.eot, vocabulary.audio_start} if sampling.opening else {vocabulary.eot}
        self.active = list(self.rows)  # those in the forward pass, in the order of its rows

    def _left_padded(self, prompts: Sequence[Sequence[int]], capacity: int) -> tuple[Tensor, Tensor]:
        """Prompts [B, S] that end together, and document ids [B, capacity]: −1 before the prompt, 0 from there on."""
        token_ids = torch.full((len(prompts), self.prompt_length), self.engine.vocabulary.pad)
        document_ids = torch.zeros(len(prompts), capacity, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            padding = self.prompt_length - len(prompt)
            token_ids[row, padding:] = torch.tensor(prompt)
            document_ids[row, :padding] = -1
        return token_ids.to(self.engine.device), document_ids.to(self.engine.device)

    def steps(self) -> Iterator[list[int]]:
        """Yield the tokens that one step draws, until every row has ended."""
        for step in range(self.sampling.max_new_tokens):
            logits = self._forward()
            if step == 0 and len(logits) < len(self.rows):
                self._keep(self.read_as)
                logits = logits[self.read_as]
            token_ids = self._draw(logits, self.sampling.max_new_tokens - step)[:, None]
            following = (self.group_positions[:, -1:] + 1) % GROUP_SIZE
            self.group_positions = following.where(self.engine.vocabulary.is_audio(token_ids), -1)
            self.token_ids = token_ids
            drawn = token_ids[:, 0].tolist()
            self._take(drawn)
            yield drawn
            if all(row.finished for row in self.active):
                return
            self._drop_finished()

    @torch.inference_mode()
    def _forward(self) -> Tensor:
        """Logits [B, V] of the next token; the cache takes in `token_ids` [B, Sq]."""
        length = self.context.sequence_len_offset + self.token_ids.shape[1]
        logits = self.engine.model(
            self.token_ids,
            self.document_ids[:, :length],
            inference_context=self.context,
            group_positions=self.group_positions,
        )
        self.context.increment_sequence_len_offset(self.token_ids.shape[1])
        self.context.enable_decode_mode()
        return logits[:, -1].float()

    def _draw(self, logits: Tensor, tokens_left: int) -> Tensor:
        """Token ids [B]."""
        if self.sampling.constrained:
            kinds = [self._kinds(row, tokens_left) for row in self.active]
            masks = torch.stack([self.engine.mask(of_row) for of_row in kinds])
            logits = self._sharpened(logits, kinds).masked_fill(~masks, float("-inf"))
        uniform = torch.stack([torch.rand((), generator=row.generator) for row in self.active])
        return sample(logits, uniform.to(logits.device), self.sampling.temperature, self.sampling.top_p)

    def _kinds(self, row: _Row, tokens_left: int) -> frozenset[str]:
        if row.finished:  # it only fills its place in the batch
            return frozenset({"eot"})
        return allowed_kinds(row.grammar, tokens_left)

    def _sharpened(self, logits: Tensor, kinds: Sequence[frozenset[str]]) -> Tensor:
        """Logits [B, V] that `temperature` turns into those of `speech_temperature` where only speech can come."""
        sampling = self.sampling
        if sampling.speech_temperature is None:
            return logits
        factor = sampling.temperature / sampling.speech_temperature
        factors = [factor if of_row <= SPEECH else 1.0 for of_row in kinds]
        return logits * torch.tensor(factors, device=logits.device)[:, None]

    def _take(self, drawn: list[int]) -> None:
        for row, token_id in zip(self.active, drawn, strict=True):
            if row.finished:
                continue
            row.token_ids.append(token_id)
            row.finished = token_id in self.last
            if self.sampling.constrained:
                row.grammar.advance(token_id)

    def _drop_finished(self) -> None:
        kept = [place for place, row in enumerate(self.active) if not row.finished]
        if len(kept) > len(self.active) // 2:
            return
        self.active = [self.active[place] for place in kept]
        self._keep(kept)

    def _keep(self, rows: list[int]) -> None:
        """Go on with these rows of the forward pass, in this order; one may be named several times."""
        self.token_ids, self.group_positions = self.token_ids[rows], self.group_positions[rows]
        self.document_ids = self.document_ids[rows]
        memory = self.context.key_value_memory_dict
        for layer, (key, value) in memory.items():  # [S, B, groups, D]
            memory[layer] = key[:, rows], value[:, rows]


class _Row:
    """One answer in the making."""

    def __init__(self, grammar: GroupGrammar, seed: int) -> None:
        self.grammar = grammar
        self.generator = torch.Generator().manual_seed(seed)
        self.token_ids: list[int] = []
        self.finished = False
