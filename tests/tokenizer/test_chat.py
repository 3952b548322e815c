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


FORMATS = [
    AnswerFormat(),
    AnswerFormat(6, 50),
    AnswerFormat(3, 5),
    AnswerFormat(layout="text_first"),
    AnswerFormat(layout="audio_only"),
]


def answered(template: ChatTemplate, answer_format: AnswerFormat, *parts: str | AudioSegment) -> list[int]:
    """Targets of an answer, `<|EOT|>` included."""
    other = ChatTemplate(template.text_tokenizer, template.vocabulary, answer_format)
    conversation = other.encode([Turn("human", ("two",)), Turn("assistant", parts)])
    return conversation.token_ids[conversation.loss_mask == 1].tolist()


def laid_out(template: ChatTemplate, text: list[int], audio: list[int], layout: str) -> list[int]:
    """Token ids of a layout in signs: `3t` the next three text tokens, `2g` the next two groups, `<` `>` markers."""
    v, ids = template.vocabulary, list[int]()
    for sign in layout.split():
        count = int(sign[:-1] or 1)
        if sign[-1] in "<>":
            ids.append(v.audio_start if sign == "<" else v.audio_end)
        elif sign[-1] == "t":
            ids, text = ids + text[:count], text[count:]
        else:
            ids, audio = ids + audio[: 5 * count], audio[5 * count :]
    assert not audio, "the layout leaves audio out"
    return [*ids, v.eot]


@pytest.mark.parametrize(
    ("answer_format", "num_text", "num_groups", "layout"),
    [
        # text runs out: a short chunk, or none behind a full one, is followed by all the audio that is left
        (AnswerFormat(), 13, 5, "10t < 3g 3t 2g >"),
        (AnswerFormat(), 13, 12, "10t < 3g 3t 9g >"),
        (AnswerFormat(), 10, 8, "10t < 3g 5g >"),
        (AnswerFormat(), 4, 7, "4t < 7g >"),
        # audio runs out: the rest of the text follows its end
        (AnswerFormat(), 33, 4, "10t < 3g 10t 1g > 13t"),
        (AnswerFormat(), 11, 3, "10t < 3g > 1t"),
        (AnswerFormat(), 24, 1, "10t < 1g > 14t"),
        # both at once
        (AnswerFormat(), 20, 6, "10t < 3g 10t 3g >"),
        (AnswerFormat(6, 50), 14, 25, "6t < 10g 6t 10g 2t 5g >"),
        (AnswerFormat(6, 50), 14, 11, "6t < 10g 6t 1g > 2t"),
        (AnswerFormat(3, 5), 7, 4, "3t < 1g 3t 1g 1t 2g >"),
        (AnswerFormat(3, 5), 8, 2, "3t < 1g 3t 1g > 2t"),
        (AnswerFormat(layout="text_first"), 33, 4, "33t < 4g >"),
        (AnswerFormat(layout="text_first"), 3, 40, "3t < 40g >"),
        (AnswerFormat(layout="audio_only"), 33, 4, "< 4g >"),
    ],
)
def test_the_tail_rule(
    template: ChatTemplate, answer_format: AnswerFormat, num_text: int, num_groups: int, layout: str
) -> None:
    words, audio = text_of_length(template, num_text), groups(template.vocabulary, num_groups)
    expected = laid_out(template, template.text_tokenizer.encode(words), list(audio.token_ids), layout)
    assert answered(template, answer_format, words, audio) == expected


@pytest.mark.parametrize("answer_format", FORMATS, ids=str)
def test_segments_keep_their_own_markers(template: ChatTemplate, answer_format: AnswerFormat) -> None:
    v = template.vocabulary
    first, second = groups(v, 2, seed=1), groups(v, 3, seed=2)
    calm, excited = (text_of_length(template, length) for length in (2, 3))
    found = answered(template, answer_format, calm, first, excited, second)
    words = [[], []] if answer_format.layout == "audio_only" else map(template.text_tokenizer.encode, (calm, excited))
    texts, start, end = list(words), v.audio_start, v.audio_end
    expected = [*texts[0], start, *first.token_ids, end, *texts[1], start]
    assert found[: len(expected)] == expected and found[-2:] == [end, v.eot]
    assert found.count(start) == found.count(end) == 2
    assert [i for i in found if v.is_audio(i)] == [*first.token_ids, *second.token_ids]


@pytest.mark.parametrize("answer_format", FORMATS, ids=str)
@settings(max_examples=40, deadline=None)
@given(num_text=st.integers(2, 45), num_groups=st.integers(1, 14), num_pairs=st.integers(1, 2))
def test_spoken_answers_keep_the_group_grammar(
    template: ChatTemplate, answer_format: AnswerFormat, num_text: int, num_groups: int, num_pairs: int
) -> None:
    parts = (text_of_length(template, num_text), groups(template.vocabulary, num_groups)) * num_pairs
    answer = answered(template, answer_format, *parts)
    assert GroupGrammar(template.vocabulary, answer_format).accepts(answer)
    assert template.vocabulary.is_audio(np.array(answer)).sum() == 5 * num_groups * num_pairs


def test_audio_only_has_no_place_for_text_that_is_not_spoken(template: ChatTemplate) -> None:
    audio_only, audio = AnswerFormat(layout="audio_only"), groups(template.vocabulary, 1)
    with pytest.raises(ValueError, match="layout audio_only has no place for 'four', which is not spoken"):
        answered(template, audio_only, "two", audio, "four")
    # an answer in writing alone stays one, and a question may be written
    assert answered(template, audio_only, "four") == [*template.text_tokenizer.encode("four"), template.vocabulary.eot]


def test_what_cannot_be_encoded_is_told(template: ChatTemplate) -> None:
    v = template.vocabulary
    human, assistant = Turn("human", ("two",)), Turn("assistant", ("four",))
    for turns, problem in (
        ([], "no turns"),
        ([assistant, human], "last turn of 'human'"),
        ([Turn("user", ("two",)), assistant], "role 'user' is unknown"),
        ([Turn("human", ()), assistant], "no parts"),
        ([Turn("human", ("\u200b",)), assistant], r"the text '\\u200b' has no tokens in this text model"),
        ([Turn("human", (AudioSegment([]),)), assistant], "empty"),
        ([Turn("human", (AudioSegment(groups(v, 2).token_ids[:-1]),)), assistant], "multiple of 5"),
        ([Turn("human", (AudioSegment([v.audio_start] * 5),)), assistant], "a linguistic id is due"),
        (
            [Turn("human", (AudioSegment([*groups(v, 1).token_ids[:4], v.audio_stop]),)), assistant],
            "a semantic id is due",
        ),
    ):
        with pytest.raises(ValueError, match=problem):
            template.encode(turns)
    with pytest.raises(ValueError, match="nothing to learn"):
        template.encode([human], loss_on="all")


def test_a_foreign_vocabulary_is_refused(template: ChatTemplate, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="40 pieces, the vocabulary room for 30"):
        ChatTemplate(template.text_tokenizer, Vocabulary.for_text(30))
