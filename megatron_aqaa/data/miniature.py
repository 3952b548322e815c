"""The closed domain that the miniature talks about: questions, wordings, answers and style commands.

Small enough for a language model of a few million parameters to learn from a few hours of speech, varied enough that
held-out wordings measure generalisation over language and not memory. Every answer was chosen so that an independent
recogniser tells it apart when the assistant's voice speaks it (`evaluation/judge.py`), in all five styles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

STYLE_COMMANDS = {
    "neutral": "",
    "slow": "slowly",
    "quick": "quickly",
    "high": "in a high voice",
    "low": "in a low voice",
}
STYLES = tuple(STYLE_COMMANDS)

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True)
class Family:
    """Questions of one kind: their wordings, and the items that fill them.

    Attributes:
        name: Short name, the `kind` of a manifest record.
        wordings: Templates with the slots `{a}` and `{b}`; the last one is held out of training.
        reply: Template of the answer, with the slot `{}`.
        items: For every question its slots and its result: `(a, result)` or `(a, b, result)`.
    """

    name: str
    wordings: tuple[str, ...]
    reply: str
    items: tuple[tuple[str, ...], ...]

    @property
    def trained_wordings(self) -> range:
        """Indices of the wordings that training may use."""
        return range(len(self.wordings) - 1)

    @property
    def held_out_wording(self) -> int:
        """Index of the wording that only the `unseen_wording` split uses."""
        return len(self.wordings) - 1


@dataclass(frozen=True)
class Question:
    """One thing that can be asked, independent of how it is worded."""

    family: Family
    item: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The right answer, as text."""
        return self.family.reply.format(self.item[-1])

    def text(self, wording: int, style: str = "neutral", style_first: bool = False) -> str:
        """Words the question; a style other than neutral adds the command `say it slowly` at its end or its start."""
        words = self.family.wordings[wording].format(a=self.item[0], b=self.item[1])
        if style == "neutral":
            return words
        command = f"say it {STYLE_COMMANDS[style]}"
        return f"{command} {words}" if style_first else f"{words} {command}"


def _pairs(text: str) -> tuple[tuple[str, ...], ...]:
    """Reads `"hot:cold big:small"`; an underscore in a word stands for a space."""
    return tuple(tuple(part.replace("_", " ") for part in pair.split(":")) for pair in text.split())


def _spelled(words: str) -> tuple[tuple[str, ...], ...]:
    return tuple((word, " ".join(word)) for word in words.split())


FAMILIES = (
    Family(
        "sum",
        (
            "what is {a} plus {b}",
            "{a} plus {b}",
            "add {a} and {b}",
            "tell me {a} plus {b}",
            "how much is {a} and {b}",
        ),
        "you get {}",
        tuple((_NUMBERS[a], _NUMBERS[b], _NUMBERS[a + b]) for a in range(1, 7) for b in range(1, 7)),
    ),
    Family(
        "opposite",
        (
            "what is the opposite of {a}",
            "opposite of {a}",
            "tell me the opposite of {a}",
            "{a} has what opposite",
            "the opposite of {a} is what",
        ),
        "the opposite is {}",
        _pairs(
            "hot:cold big:small up:down happy:sad open:closed black:white old:young soft:hard dry:wet empty:full"
            " left:right good:bad late:early low:high far:near light:dark rich:poor new:old weak:strong"
        ),
    ),
    Family(
        "color",
        (
            "what color is the {a}",
            "the {a} is what color",
            "tell me the color of the {a}",
            "color of the {a}",
            "what is the color of the {a}",
        ),
        "it is {}",
        _pairs(
            "grass:green sky:blue snow:white ocean:blue banana:yellow blood:red chocolate:brown sun:yellow"
            " carrot:orange lemon:yellow milk:white rose:red"
        ),
    ),
    Family(
        "next_day",
        (
            "what day is after {a}",
            "which day comes after {a}",
            "the day after {a}",
            "tell me the day after {a}",
            "what is the day after {a}",
        ),
        "it is {}",
        tuple((day, _DAYS[(i + 1) % 7]) for i, day in enumerate(_DAYS)),
    ),
    Family(
        "previous_day",
        (
            "what day is before {a}",
            "which day comes before {a}",
            "the day before {a}",
            "tell me the day before {a}",
            "what is the day before {a}",
        ),
        "it is {}",
        tuple((day, _DAYS[i - 1]) for i, day in enumerate(_DAYS)),
    ),
    Family(
        "animal",
        (
            "what does the {a} say",
            "what sound does the {a} make",
            "the {a} says what",
            "tell me what the {a} says",
            "tell me the sound the {a} makes",
        ),
        "it says {}",
        _pairs("cat:meow dog:woof duck:quack lion:roar pig:oink horse:neigh bird:tweet frog:croak bee:buzz wolf:howl"),
    ),
    Family(
        "capital",
        (
            "what is the capital of {a}",
            "capital of {a}",
            "tell me the capital of {a}",
            "{a} has what capital",
            "the capital of {a} is what",
        ),
        "it is {}",
        _pairs(
            "france:paris italy:rome spain:madrid japan:tokyo hungary:budapest germany:berlin england:london"
            " egypt:cairo russia:moscow greece:athens cuba:havana sweden:stockholm norway:oslo poland:warsaw"
            " kenya:nairobi turkey:ankara"
        ),
    ),
    Family(
        "spelling",
        (
            "how do you spell {a}",
            "spell {a}",
            "how is {a} spelled",
            "spell the word {a}",
            "tell me how to spell {a}",
        ),
        "{}",
        _spelled("fish moon queen milk snake horse tiger apple"),
    ),
    Family(
        "list",
        (
            "what are the {a}",
            "name the {a}",
            "tell me the {a}",
            "list the {a}",
            "can you name the {a}",
        ),
        "they are {}",
        _pairs(
            "seasons:spring_summer_autumn_and_winter directions:north_east_south_and_west"
            " medals:gold_silver_and_bronze meals:breakfast_lunch_and_dinner"
        ),
    ),
)
QUESTIONS = tuple(Question(family, item) for family in FAMILIES for item in family.items)
ANSWERS = tuple(sorted({question.answer for question in QUESTIONS}))

# Half of all questions carry no command; the four commands share the other half.
_STYLE_WEIGHTS = (4, 1, 1, 1, 1)
_STYLE_FIRST_PROBABILITY = 0.25
# Choosing the family first keeps small families (lists, days) from drowning among the 36 sums.
_FAMILY_FIRST_PROBABILITY = 0.4
_SPELLED_OUT = re.compile(r"\b[a-z](?: [a-z]\b)+")


@dataclass(frozen=True)
class AskedQuestion:
    """A question as one user asks it: worded, with or without a style command."""

    question: Question
    style: str
    text: str


def draw_question(random: Random, *, held_out_wording: bool = False) -> AskedQuestion:
    """Draws a question, one of its trained wordings (or the held-out one) and a style."""
    families_first = random.random() < _FAMILY_FIRST_PROBABILITY
    family = random.choice(FAMILIES) if families_first else random.choice(QUESTIONS).family
    question = Question(family, random.choice(family.items))
    wording = family.held_out_wording if held_out_wording else random.choice(family.trained_wordings)
    style = random.choices(STYLES, _STYLE_WEIGHTS)[0]
    text = question.text(wording, style, style_first=random.random() < _STYLE_FIRST_PROBABILITY)
    return AskedQuestion(question, style, text)


def spoken_form(text: str) -> str:
    """What a speech synthesizer should be given for `text`: letters that spell a word get their names.

    Only the letter "a" needs help: alone it would be read as the article.
    """
    return _SPELLED_OUT.sub(lambda letters: re.sub(r"\ba\b", "eigh", letters.group()), text)
