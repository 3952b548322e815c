"""How the next token is chosen: the group grammar as id masks, then greedy, temperature and nucleus sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aqaa.vocabulary import GROUP_SIZE, GroupGrammar, Vocabulary

KINDS = ("eot", "audio_end", "audio_start", "semantic", "linguistic", "text")
"""Every kind of the grammar, ordered so that always taking the first allowed one ends an answer soonest."""

SPEECH = frozenset({"linguistic", "semantic", "audio_end"})
"""Kinds between which no words can come."""

CLOSING_TOKENS = GROUP_SIZE + 4
"""The longest way out of any state: one text token, `<audio_start>`, one group, `<audio_end>`, `<|EOT|>`."""


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn from the model.

    Attributes:
        temperature: 0 takes the most likely token; 1 samples the model's own distribution.
        top_p: nucleus sampling keeps the most likely tokens whose probabilities reach this sum.
        seed: the same seed gives the same answer, whatever else is in the batch.
        constrained: only tokens that the group grammar allows.
        max_new_tokens: a constrained answer is brought to a lawful end within this length.
        speech_temperature: of audio codes, so that many wordings can be sampled and each be spoken well; None:
            `temperature`. For constrained answers: the grammar knows where no words can come.
        opening: stop with `<audio_start>` after the first words.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    constrained: bool = True
    max_new_tokens: int = 256
    speech_temperature: float | None = None
    opening: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature}: must be 0 (greedy) or more")
        if self.speech_temperature is not None and not (self.constrained and self.temperature > 0):
            raise ValueError(
                f"speech_temperature = {self.speech_temperature}: has no effect on greedy or unconstrained answers; "
                "leave it out"
            )
        if self.speech_temperature is not None and not self.speech_temperature > 0:
            raise ValueError(f"speech_temperature = {self.speech_temperature}: must be above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: must lie in (0, 1]")
        if self.max_new_tokens < CLOSING_TOKENS:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens}: the shortest answer has {CLOSING_TOKENS} tokens")


class GrammarMask:
    """The grammar's kinds as masks over the vocabulary, built once; a set of kinds costs one look-up after that."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        token_ids = torch.arange(vocabulary.size, device=device)
        text = token_ids < vocabulary.text_size
        for never in (vocabulary.pad, vocabulary.bos, vocabulary.bot, vocabulary.eot):
            text &= token_ids != never
        audio, modality = vocabulary.is_audio(token_ids), vocabulary.modality(token_ids)
        self._of_kind = {
            "text": text & (token_ids != vocabulary.audio_start) & (token_ids != vocabulary.audio_end),
            "linguistic": audio & (modality == 1),
            "semantic": audio & (modality == 2),
            "audio_start": token_ids == vocabulary.audio_start,
            "audio_end": token_ids == vocabulary.audio_end,
            "eot": token_ids == vocabulary.eot,
        }
        self._of_kinds: dict[frozenset[str], Tensor] = {}

    def __call__(self, kinds: frozenset[str]) -> Tensor:
        """Mask [V] of the ids whose kind is in `kinds`."""
        if kinds not in self._of_kinds:
            self._of_kinds[kinds] = torch.stack([self._of_kind[kind] for kind in kinds]).any(0)
        return self._of_kinds[kinds]


def allowed_kinds(grammar: GroupGrammar, tokens_left: int) -> frozenset[str]:
    """What may come next if the answer must end within `tokens_left` tokens, this one included."""
    kinds = grammar.allowed()
    if tokens_left > CLOSING_TOKENS:
        return kinds
    return frozenset({next(kind for kind in KINDS if kind in kinds)})


def sample(logits: Tensor, uniform: Tensor, temperature: float = 0.0, top_p: float = 1.0) -> Tensor:
    """Draw one token per row by inverting the distribution at `uniform`.

    One uniform number per row and step makes a row's draw independent of the rows beside it, so an answer does not
    change with the batch it was made in.

    Args:
        logits: [B, V]; −inf marks what may not be drawn.
        uniform: [B] in [0, 1); ignored when `temperature` is 0.
        temperature: see `Sampling`.
        top_p: see `Sampling`.

    Returns:
        Token ids [B].
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.double() / temperature, -1)
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(-1)
    whole = cumulative[:, -1:]
    # below the whole, so that rounding cannot lead past the last token that has a probability
    reach = (uniform.double()[:, None] * whole).minimum(whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, reach, right=True)[:, 0]


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """[B, V] with zeros for all but the most likely tokens that reach `top_p` together, at least one.

    Sorting 128 rows of 5,300 ids takes longer than the miniature's forward pass: not done where all tokens may come.
    """
    descending, order = probabilities.sort(dim=-1, descending=True, stable=True)
    inside = descending.cumsum(-1) - descending < top_p
    return torch.zeros_like(probabilities).scatter(-1, order, descending.where(inside, 0))
