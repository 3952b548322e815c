"""Conversations for supervised fine-tuning: four tasks, each a question by a human and an answer by the assistant.

===========  ===========================================  =======================================
task         human                                        assistant (the loss is on this turn)
===========  ===========================================  =======================================
answer       spoken question                              answer, text and audio interleaved
text_answer  written question                             answer, text and audio interleaved
asr          instruction, then a recording                its words
tts          instruction with a style, then words         the words, text and audio interleaved
===========  ===========================================  =======================================

A question is paired with the assistant's recordings of its answer *in the style that it asks for*. Each pairing is
one conversation, so that an epoch meets a question several times, with a different take each time. Instructions are
single short words: with the small text vocabularies of a miniature every letter may cost a token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_aqaa.data.manifest import Recording, select
from megatron_aqaa.data.pretraining import SpeechTokens
from megatron_aqaa.tokenizer.chat import AudioSegment, ChatTemplate, Conversation, Turn

CONVERSATION_TASKS = ("answer", "text_answer", "asr", "tts")


@dataclass(frozen=True)
class Instructions:
    """What the human asks for where the task is not to answer.

    Attributes:
        asr: Stands before the recording.
        tts: Stands before the words, the style between the two.
        styles: Style of a recording → words for it; a style that is not listed gets none.
    """

    asr: str = "write"
    tts: str = "say"
    styles: Mapping[str, str] = field(default_factory=dict)

    def speak(self, recording: Recording) -> str:
        """The written request to speak as `recording` does."""
        style = self.styles.get(recording.style)
        return f"{self.tts} {style} {recording.text}" if style else f"{self.tts} {recording.text}"


@dataclass(frozen=True)
class Example:
    """One conversation to be: what the human sends, and the recording that the assistant's turn is made of."""

    task: str
    human: Recording
    assistant: Recording


def conversation_examples(
    task: str, recordings: Sequence[Recording], split: str, num_takes: int, seed: int = 0
) -> list[Example]:
    """All conversations of a task in one split.

    Args:
        task: One of `CONVERSATION_TASKS`.
        recordings: The whole manifest; those without text are passed over.
        split: Split of the human's side. The answers come from the same split, or from "train" where it has none.
        num_takes: At most so many different recordings of the answer to each question.
        seed: Draws them.

    Raises:
        ValueError: Unknown task, or a question whose answer nobody recorded in its style.
    """
    if task not in CONVERSATION_TASKS:
        raise ValueError(f"unknown conversation task {task!r}; known: {', '.join(CONVERSATION_TASKS)}")
    recordings = [recording for recording in recordings if recording.text]
    if task == "tts":
        return [Example(task, recording, recording) for recording in select(recordings, split, ("assistant",))]
    questions = select(recordings, split, ("user",))
    if task == "asr":
        return [Example(task, recording, recording) for recording in questions]
    questions = [question for question in questions if question.answer]
    if task == "text_answer":
        questions = list({(question.text, question.style): question for question in questions}.values())
    takes = _Takes(recordings, split)
    return [Example(task, question, take) for question in questions for take in takes.draw(question, num_takes, seed)]


def mix(examples: Mapping[str, Sequence[Example]], shares: Mapping[str, float], seed: int = 0) -> list[Example]:
    """Examples of all tasks in the proportions `shares`, which need not sum to 1.

    The task with the largest share gives each of its examples once; of the others as many are drawn as belong to it,
    without repeats for as long as they last. One data set of all tasks packs better than one for each (measured in
    the miniature at S = 256: .986 against .90), as short conversations fill the room that long ones leave.

    Raises:
        ValueError: A task has no examples.
    """
    for task in shares:
        if not examples[task]:
            raise ValueError(f"no recordings for the task {task!r}; record some, or take it out of `conversations`")
    largest = max(shares, key=lambda task: shares[task])
    scale = len(examples[largest]) / shares[largest]
    random = np.random.default_rng(seed)
    return [
        examples[task][index]
        for task, share in shares.items()
        for index in _draw(len(examples[task]), round(scale * share), random)
    ]


def _draw(size: int, count: int, random: np.random.Generator) -> list[int]:
    """`count` of the numbers below `size`, each again only when all were drawn."""
    rounds = [random.permutation(size).tolist() for _ in range(-(-count // size))]
    return [index for drawn in rounds for index in drawn][:count]


def conversation(
    example: Example, tokens: SpeechTokens, template: ChatTemplate, instructions: Instructions
) -> Conversation:
    """Token ids and loss mask of one conversation."""
    human, assistant = example.human, example.assistant
    request: dict[str, Callable[[], tuple[str | AudioSegment, ...]]] = {
        "answer": lambda: (AudioSegment(tokens.audio_ids(human)),),
        "text_answer": lambda: (human.text,),
        "asr": lambda: (instructions.asr, AudioSegment(tokens.audio_ids(human))),
        "tts": lambda: (instructions.speak(human),),
    }
    spoken = () if example.task == "asr" else (AudioSegment(tokens.audio_ids(assistant)),)
    return template.encode([Turn("human", request[example.task]()), Turn("assistant", (assistant.text, *spoken))])


class _Takes:
    """The assistant's recordings by what they say and how."""

    def __init__(self, recordings: Sequence[Recording], split: str) -> None:
        self.by_content: dict[str, dict[tuple[str, str], list[Recording]]] = {}
        for source in (split, "train"):
            content = self.by_content.setdefault(source, defaultdict(list))
            if not content:
                for recording in select(recordings, source, ("assistant",)):
                    content[recording.text, recording.style].append(recording)

    def draw(self, question: Recording, num_takes: int, seed: int) -> list[Recording]:
        """Up to `num_takes` different answers to `question`, in an order of its own."""
        key = (question.answer, question.style)
        takes = next((content[key] for content in self.by_content.values() if key in content), None)
        if takes is None:
            raise ValueError(
                f"manifest line {question.line + 1}: no assistant recording says {key[0]!r} in the style {key[1]!r}; "
                f"record it, or correct the answer"
            )
        order = np.random.default_rng((seed, question.line)).permutation(len(takes))
        return [takes[index] for index in order[:num_takes]]
