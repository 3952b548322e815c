from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from megatron_aqaa.data.conversations import (
    CONVERSATION_TASKS,
    Example,
    Instructions,
    conversation,
    conversation_examples,
    mix,
)
from megatron_aqaa.tokenizer.chat import Conversation
from megatron_aqaa.vocabulary import GroupGrammar
from tests.data.tiny_corpus import Corpus, make_corpus

INSTRUCTIONS = Instructions(asr="write", tts="read", styles={"slow": "slowly"})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def encode(corpus: Corpus, task: str, style: str = "slow") -> tuple[Example, Conversation]:
    examples = conversation_examples(task, corpus.recordings, "train", num_takes=1)
    example = next(example for example in examples if example.human.style == style)
    return example, conversation(example, corpus.tokens, corpus.template, INSTRUCTIONS)


def sides(corpus: Corpus, encoded: Conversation) -> tuple[list[int], list[int]]:
    """What is read and what is learnt."""
    first = int(np.flatnonzero(encoded.loss_mask)[0])
    assert encoded.loss_mask[first:].all(), "the loss is on the end of the conversation, without a hole"
    return encoded.token_ids[:first].tolist(), encoded.token_ids[first:].tolist()


def audio_of(corpus: Corpus, token_ids: list[int]) -> list[int]:
    return [i for i in token_ids if corpus.vocabulary.is_audio(i)]


def text_of(corpus: Corpus, token_ids: list[int]) -> str:
    return corpus.text.decode([i for i in token_ids if i < corpus.vocabulary.text_size])


@pytest.mark.parametrize("task", ["answer", "text_answer", "tts"])
def test_spoken_replies_obey_the_grammar_and_say_the_words(corpus: Corpus, task: str) -> None:
    example, encoded = encode(corpus, task)
    _, reply = sides(corpus, encoded)
    assert GroupGrammar(corpus.vocabulary).accepts(reply)
    assert text_of(corpus, reply) == example.assistant.text
    assert audio_of(corpus, reply) == corpus.tokens.audio.get(example.assistant.line).tolist()


def test_the_question_is_heard_in_answer_and_read_in_text_answer(corpus: Corpus) -> None:
    example, encoded = encode(corpus, "answer")
    request, _ = sides(corpus, encoded)
    v = corpus.vocabulary
    heard = corpus.tokens.audio.get(example.human.line).tolist()
    human, assistant = corpus.text.encode_role("human"), corpus.text.encode_role("assistant")
    assert request == [v.bot, *human, v.audio_start, *heard, v.audio_end, v.eot, v.bot, *assistant]
    example, encoded = encode(corpus, "text_answer")
    request, _ = sides(corpus, encoded)
    assert request == [v.bot, *human, *corpus.text.encode(example.human.text), v.eot, v.bot, *assistant]


def test_asr_hears_and_writes(corpus: Corpus) -> None:
    example, encoded = encode(corpus, "asr")
    request, reply = sides(corpus, encoded)
    assert reply == [*corpus.text.encode(example.human.text), corpus.vocabulary.eot]
    assert audio_of(corpus, request) == corpus.tokens.audio.get(example.human.line).tolist()
    assert "write" in text_of(corpus, request)


@pytest.mark.parametrize(("style", "words"), [("slow", "read slowly it is"), ("neutral", "read it is")])
def test_tts_asks_for_the_style(corpus: Corpus, style: str, words: str) -> None:
    examples = conversation_examples("tts", corpus.recordings, "train", num_takes=1)
    example = next(e for e in examples if e.human.style == style and e.human.text == "it is tuesday")
    request, _ = sides(corpus, conversation(example, corpus.tokens, corpus.template, INSTRUCTIONS))
    assert f"{words} tuesday" in text_of(corpus, request)


def test_a_question_meets_different_takes_of_its_answer_in_its_style(corpus: Corpus) -> None:
    examples = conversation_examples("answer", corpus.recordings, "train", num_takes=2)
    asked = Counter(example.human.line for example in examples)
    assert asked == {r.line: 2 for r in corpus.recordings if (r.role, r.split) == ("user", "train")}
    for example in examples:
        assert (example.assistant.text, example.assistant.style) == (example.human.answer, example.human.style)
    pairs = {(example.human.line, example.assistant.line) for example in examples}
    assert len(pairs) == len(examples) == 16
    again = conversation_examples("answer", corpus.recordings, "train", num_takes=2)
    other = conversation_examples("answer", corpus.recordings, "train", num_takes=2, seed=1)
    assert again == examples != other
    assert len(conversation_examples("answer", corpus.recordings, "train", num_takes=99)) == 24  # three takes exist


def test_written_questions_occur_once(corpus: Corpus) -> None:
    examples = conversation_examples("text_answer", corpus.recordings, "train", num_takes=1)
    assert len({example.human.text for example in examples}) == len(examples) == 4


def test_a_held_out_split_takes_its_answers_from_train(corpus: Corpus) -> None:
    examples = conversation_examples("answer", corpus.recordings, "validation", num_takes=1)
    assert len(examples) == 4
    assert {example.human.split for example in examples} == {"validation"}
    own = [replace(example.assistant, split="validation", line=100 + n) for n, example in enumerate(examples)]
    with_own = conversation_examples("answer", [*corpus.recordings, *own], "validation", num_takes=9)
    assert [example.assistant.line for example in with_own] == [100, 101, 102, 103]


def test_a_question_that_nobody_answers_is_named(corpus: Corpus) -> None:
    lonely = [r for r in corpus.recordings if (r.role, r.style) != ("assistant", "slow")]
    with pytest.raises(
        ValueError, match="line 4: no assistant recording says 'the opposite is cold' in the style 'slow'"
    ):
        conversation_examples("answer", lonely, "train", num_takes=1)


def test_unknown_tasks_are_named(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="unknown conversation task 'sing'; known: answer, text_answer, asr, tts"):
        conversation_examples("sing", corpus.recordings, "train", num_takes=1)


def test_mix_keeps_the_shares(corpus: Corpus) -> None:
    examples = {task: conversation_examples(task, corpus.recordings, "train", 3) for task in CONVERSATION_TASKS}
    shares = {"answer": 0.6, "asr": 0.1, "tts": 0.2, "text_answer": 0.1}
    mixed = mix(examples, shares, seed=0)
    assert Counter(example.task for example in mixed) == {"answer": 24, "asr": 4, "tts": 8, "text_answer": 4}
    assert Counter(e for e in mixed if e.task == "answer") == Counter(examples["answer"])
    assert max(Counter(mixed).values()) == 1
    often = Counter(e for e in mix(examples, {"answer": 1, "asr": 1}, seed=0) if e.task == "asr")
    assert set(often.values()) == {3} and len(often) == 8


def test_a_task_without_recordings_is_named() -> None:
    with pytest.raises(ValueError, match="no recordings for the task 'asr'"):
        mix({"asr": []}, {"asr": 1.0})
