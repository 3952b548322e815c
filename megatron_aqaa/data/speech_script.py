"""The script of the miniature's spoken corpus: who says what, how, and under which recording conditions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from megatron_aqaa.data.miniature import ANSWERS, QUESTIONS, STYLES, draw_question

LANGUAGE = "en-us"


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Not `caleb`: about one of a hundred of its utterances differs from run to run, whatever the seed (espeak-ng 1.52).
_USER_VOICES = _names(
    "m1 m2 m3 m5 m7 f1 f4 f5 adam Alex Alicia Andrea Andy antonio aunty belinda benjamin boris david Diogo ed edward"
    " Gene2 gustave Henrique Hugo iven iven3 Jacky john kaukovalta Lee marcelo Marco Mario max michel Michael miguel"
    " norbert paul pedro quincy rob sandro shelby travis victor zac anika"
)
_UNSEEN_VOICES = _names("m4 m6 m8 f3 Annie linda Denis pablo klatt3 ian steph Mike")


@dataclass(frozen=True)
class Delivery:
    """How something is said: words per minute, and espeak's pitch (0–100, 50 is the voice's own)."""

    rate_wpm: int
    pitch: int


@dataclass(frozen=True)
class UserSettings:
    """Who asks, and the ranges from which every recording's conditions are drawn.

    Attributes:
        voices: espeak variants heard in training; the names are case-sensitive.
        unseen_voices: variants that only the `unseen_voice` split uses.
        rate_wpm: words per minute, lowest and highest.
        pitch: lowest and highest.
        gain: lowest and highest; 1 puts the peak at 0.6 of full scale.
        noise_lsb: standard deviation of the noise floor in 16-bit steps, lowest and highest.
    """

    voices: tuple[str, ...] = _USER_VOICES
    unseen_voices: tuple[str, ...] = _UNSEEN_VOICES
    rate_wpm: tuple[int, int] = (140, 215)
    pitch: tuple[int, int] = (25, 75)
    gain: tuple[float, float] = (0.5, 1.3)
    noise_lsb: tuple[float, float] = (2.0, 40.0)

    def __post_init__(self) -> None:
        """Raises ValueError for an empty side of the split, a voice on both sides, or a range upside down."""
        if not self.voices or not self.unseen_voices:
            raise ValueError("user.voices and user.unseen_voices need at least one voice each")
        shared = sorted(set(self.voices) & set(self.unseen_voices))
        if shared:
            raise ValueError(f"user.unseen_voices: {', '.join(shared)} also occur in user.voices; remove them from one")
        for name in ("rate_wpm", "pitch", "gain", "noise_lsb"):
            lowest, highest = getattr(self, name)
            if lowest > highest:
                raise ValueError(f"user.{name}: [{lowest}, {highest}]; expected [lowest, highest]")


@dataclass(frozen=True)
class AssistantSettings:
    """Who answers, and how each style is delivered.

    f2 is the variant that the independent judge understands best of eight tried (.99 of the answers, others
    .48–.95). Rates and pitches are far enough apart to be measured (`evaluation/style.py`) and near enough to be
    understood: at 105 and 250 words per minute recognition dropped by a tenth.

    Attributes:
        voice: espeak variant.
        neutral, slow, quick, high, low: the delivery of each style.
        rate_jitter_wpm: takes differ by up to this much.
        pitch_jitter: takes differ by up to this much.
        noise_lsb: standard deviation of the noise floor, lowest and highest.
        num_train_takes: takes of each answer in each style for training.
        num_validation_takes: further takes in the validation split.
    """

    voice: str = "f2"
    neutral: Delivery = Delivery(165, 50)
    slow: Delivery = Delivery(115, 50)
    quick: Delivery = Delivery(230, 50)
    high: Delivery = Delivery(165, 80)
    low: Delivery = Delivery(165, 12)
    rate_jitter_wpm: int = 5
    pitch_jitter: int = 3
    noise_lsb: tuple[float, float] = (2.0, 20.0)
    num_train_takes: int = 3
    num_validation_takes: int = 1


@dataclass(frozen=True)
class SpeechCorpusConfig:
    """Size and content of the corpus.

    Attributes:
        seed: of everything that is drawn.
        num_train: questions by trained voices in trained wordings.
        num_validation: the same, kept out of training.
        num_unseen_voice: questions by voices that training never hears.
        num_unseen_wording: questions in wordings that training never meets.
        user: who asks.
        assistant: who answers.
        num_workers: processes; does not change the result. 0 works in the calling process.
        utterances_per_block: unit of work and of resuming.
    """

    seed: int = 0
    num_train: int = 9000
    num_validation: int = 300
    num_unseen_voice: int = 300
    num_unseen_wording: int = 300
    user: UserSettings = field(default_factory=UserSettings)
    assistant: AssistantSettings = field(default_factory=AssistantSettings)
    num_workers: int = 2
    utterances_per_block: int = 100

    def __post_init__(self) -> None:
        """Raises ValueError for a negative number."""
        lowest = {"num_train": 0, "num_validation": 0, "num_unseen_voice": 0, "num_unseen_wording": 0}
        for name, least in {**lowest, "num_workers": 0, "utterances_per_block": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}; expected at least {least}")


@dataclass(frozen=True)
class Utterance:
    """One line of the script: what is said, by whom, how, and under which recording conditions."""

    id: int
    text: str
    speaker: str
    role: str
    split: str
    kind: str
    style: str
    answer: str | None
    delivery: Delivery
    gain: float
    noise_lsb: float


def write_script(config: SpeechCorpusConfig) -> list[Utterance]:
    """Draws every utterance of the corpus; the same settings give the same script."""
    lines = [*_questions(config), *_answers(config)]
    return [replace(line, id=i) for i, line in enumerate(lines)]


def _questions(config: SpeechCorpusConfig) -> Iterator[Utterance]:
    user = config.user
    splits = (
        ("train", config.num_train, user.voices),
        ("validation", config.num_validation, user.voices),
        ("unseen_voice", config.num_unseen_voice, user.unseen_voices),
        ("unseen_wording", config.num_unseen_wording, user.voices),
    )
    for split, count, voices in splits:
        random = Random(f"{config.seed} {split}")  # each split on its own: resizing one leaves the others as they were
        for _ in range(count):
            asked = draw_question(random, held_out_wording=split == "unseen_wording")
            yield Utterance(
                id=-1,
                text=asked.text,
                speaker=f"{LANGUAGE}+{random.choice(voices)}",
                role="user",
                split=split,
                kind=asked.question.family.name,
                style=asked.style,
                answer=asked.question.answer,
                delivery=Delivery(random.randint(*user.rate_wpm), random.randint(*user.pitch)),
                gain=random.uniform(*user.gain),
                noise_lsb=random.uniform(*user.noise_lsb),
            )


def _answers(config: SpeechCorpusConfig) -> Iterator[Utterance]:
    assistant = config.assistant
    takes = ["train"] * assistant.num_train_takes + ["validation"] * assistant.num_validation_takes
    random = Random(f"{config.seed} assistant")
    kinds = {question.answer: question.family.name for question in QUESTIONS}
    for answer in ANSWERS:
        for style in STYLES:
            delivery: Delivery = getattr(assistant, style)
            for split in takes:
                rate_wpm = delivery.rate_wpm + random.randint(-assistant.rate_jitter_wpm, assistant.rate_jitter_wpm)
                pitch = delivery.pitch + random.randint(-assistant.pitch_jitter, assistant.pitch_jitter)
                yield Utterance(
                    id=-1,
                    text=answer,
                    speaker=f"{LANGUAGE}+{assistant.voice}",
                    role="assistant",
                    split=split,
                    kind=kinds[answer],
                    style=style,
                    answer=None,
                    delivery=Delivery(rate_wpm, pitch),
                    gain=1.0,
                    noise_lsb=random.uniform(*assistant.noise_lsb),
                )
