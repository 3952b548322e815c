"""Preference pairs for a run whose model is never right: `python tests/made_up_pairs.py RUN OUTPUT`.

Both halves are recordings of the assistant, said to be right or wrong by the manifest. For tests of what comes after;
pairs to train on are a model's own answers (`tools/make_preference_pairs.py`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.manifest import read_recordings
from megatron_aqaa.evaluation.sampled_answers import hear, spoken_answer, spoken_question
from megatron_aqaa.vocabulary import Vocabulary


def main(run: Path, output: Path, number: int = 12) -> None:
    recordings = read_recordings(run / "speech" / "manifest.jsonl")
    tokens, vocabulary = Documents(run / "tokens" / "audio"), Vocabulary.load(run / "tokenizer" / "vocabulary.yaml")
    said = [recording for recording in recordings if recording.role == "assistant" and recording.style == "neutral"]
    lines = []
    for question in [recording for recording in recordings if recording.answer][:number]:
        halves = [next(take for take in said if (take.text == question.answer) == right) for right in (True, False)]
        chosen, rejected = (spoken_answer(t.text, tokens[t.line].token_ids, vocabulary) for t in halves)
        prompt = [{"role": "user", "content": spoken_question(hear(question, tokens), vocabulary)}]
        lines.append(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
