from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aqaa.tokenizer.chat import AudioSegment, ChatTemplate, Turn
from megatron_aqaa.vocabulary import AnswerFormat, GroupGrammar, Vocabulary
from tests.tokenizer.tiny import write_text_model


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    tokenizer = write_text_model(tmp_path_factory.mktemp("text"))
    return ChatTemplate(tokenizer, tokenizer.vocabulary())


def groups(vocabulary: Vocabulary, count: int, seed: int = 0) -> AudioSegment:
    random = np.random.default_rng(seed)
    linguistic = random.integers(vocabulary.linguistic_start, vocabulary.semantic_start, (count, 2))
    semantic = random.integers(vocabulary.semantic_start, vocabulary.audio_stop, (count, 3))
    return AudioSegment(np.concatenate([linguistic, semantic], axis=1).ravel())


def text_of_length(template: ChatTemplate, num_tokens: int) -> str:
    """Letters with spaces cost one or two tokens each; repeat a letter that costs one."""
    text = "x" * (num_tokens - 1)  # and one token for the space that SentencePiece puts before
    assert len(template.text_tokenizer.encode(text)) == num_tokens
    return text


def test_a_conversation_worked_out_by_hand(template: ChatTemplate) -> None:
    v, encode = template.vocabulary, template.text_tokenizer.encode
    question, answer = groups(v, 2, seed=1), groups(v, 5, seed=2)
    words = text_of_length(template, 13)
    got = template.encode([Turn("human", (question,)), Turn("assistant", (words, answer))])
    (human,), (assistant,) = map(template.text_tokenizer.encode_role, ("human", "assistant"))
    text, audio = encode(words), list(answer.token_ids)
    head = [v.bot, human, v.audio_start, *question.token_ids, v.audio_end, v.eot, v.bot, assistant]
    body = [*text[:10], v.audio_start, *audio[:15], *text[10:], *audio[15:], v.audio_end, v.eot]
    assert got.token_ids.tolist() == head + body
    assert got.loss_mask.tolist() == [0] * len(head) + [1] * len(body)
    assert (got.token_ids.dtype, got.loss_mask.dtype) == (np.int64, np.uint8)


def test_the_prompt_is_the_conversation_before_the_answer(template: ChatTemplate) -> None:
    turns = [Turn("system", ("say it slowly",)), Turn("human", ("what is", groups(template.vocabulary, 1)))]
    whole = template.encode([*turns, Turn("assistant", ("four",))])
    prompt = template.prompt(turns)
    assert whole.token_ids[: len(prompt)].tolist() == prompt.tolist()
    assert whole.loss_mask.argmax() == len(prompt)


def test_loss_on_all_assistant_turns(template: ChatTemplate) -> None:
    turns = [Turn("human", ("two",)), Turn("assistant", ("four",))] * 2
    last, both = (template.encode(turns, loss_on=which) for which in ("last", "all"))
    assert last.token_ids.tolist() == both.token_ids.tolist()
    assert both.loss_mask.sum() == 2 * last.loss_mask.sum() > 0
    targets = both.token_ids[both.loss_mask == 1].tolist()
    assert targets == 2 * [*template.text_tokenizer.encode("four"), template.vocabulary.eot]


@settings(max_examples=60, deadline=None)
@given(num_text=st.integers(2, 45), num_groups=st.integers(1, 14), num_pairs=st.integers(1, 2))
def test_spoken_answers_keep_the_group_grammar(
    template: ChatTemplate, num_text: int, num_groups: int, num_pairs: int
) -> None:
    parts = (text_of_length(template, num_text), groups(template.vocabulary, num_groups)) * num_pairs
    conversation = template.encode([Turn("assistant", parts)])
    answer = conversation.token_ids[conversation.loss_mask == 1].tolist()
    assert GroupGrammar(template.vocabulary, template.answer_format).accepts(answer)
    assert template.vocabulary.is_audio(np.array(answer)).sum() == 5 * num_groups * num_pairs


def test_another_answer_format(template: ChatTemplate) -> None:
    other = ChatTemplate(template.text_tokenizer, template.vocabulary, AnswerFormat(text_chunk=3, audio_chunk=5))
    conversation = other.encode([Turn("assistant", (text_of_length(template, 7), groups(template.vocabulary, 4)))])
    is_audio = template.vocabulary.is_audio(conversation.token_ids[conversation.loss_mask == 1])
    runs = np.diff(np.flatnonzero(np.diff(is_audio.astype(int), prepend=0, append=0)))
    assert runs.tolist() == [5, 3, 5, 1, 10]  # audio, text, audio, text, the rest of the audio


def test_what_cannot_be_encoded_is_told(template: ChatTemplate) -> None:
    v = template.vocabulary
    human, assistant = Turn("human", ("two",)), Turn("assistant", ("four",))
    for turns, problem in (
        ([], "no turns"),
        ([assistant, human], "last turn of 'human'"),
        ([Turn("user", ("two",)), assistant], "role 'user' is unknown"),
        ([Turn("human", ()), assistant], "no parts"),
        ([Turn("human", (AudioSegment([]),)), assistant], "empty"),
        ([Turn("human", (AudioSegment(groups(v, 2).token_ids[:-1]),)), assistant], "multiple of 5"),
        ([Turn("human", (AudioSegment([v.audio_start] * 5),)), assistant], "no audio code"),
        ([Turn("human", (AudioSegment([*groups(v, 1).token_ids[:4], v.audio_stop]),)), assistant], "no audio code"),
    ):
        with pytest.raises(ValueError, match=problem):
            template.encode(turns)
    with pytest.raises(ValueError, match="nothing to learn"):
        template.encode([human], loss_on="all")


def test_a_foreign_vocabulary_is_refused(template: ChatTemplate, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="40 pieces, the vocabulary room for 30"):
        ChatTemplate(template.text_tokenizer, Vocabulary.for_text(30))
