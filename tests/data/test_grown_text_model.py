"""Chat data for a Qwen model that was given audio tokens: the ids that its own tokenizer has for the same text."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_aqaa.checkpoint.conversion.export_huggingface import plan_export
from megatron_aqaa.checkpoint.conversion.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.conversion.run import run_conversion
from megatron_aqaa.data.describe import describe
from megatron_aqaa.data.indexed import Documents
from megatron_aqaa.data.prepare_chat import ChatPreparation, PrepareChatConfig
from megatron_aqaa.tokenizer.huggingface_text import open_text
from megatron_aqaa.vocabulary import AnswerFormat, Vocabulary
from tests.checkpoint.conversion.tiny_huggingface import configuration, write_model
from tests.data.tiny_chat import codes, conversation, said, write_lines
from tests.tokenizer.tiny import write_byte_pairs

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install '.[hf]'")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_what_is_trained_is_what_the_exported_tokenizer_says(tmp_path: Path) -> None:
    source, run = tmp_path / "hf", tmp_path / "run"
    write_model(source, configuration("qwen2", vocab_size=320))
    write_byte_pairs(source)
    run_conversion(plan_import(source, run, ImportOptions(add_audio_tokens=True)))
    record = conversation(said("that makes four", 2, seed=1))
    chat = write_lines(tmp_path / "chat.jsonl", record)
    layout = AnswerFormat(layout="text_first")
    preparation = ChatPreparation(PrepareChatConfig(run, tmp_path / "data", {"train": (chat,)}, answer_format=layout))
    preparation.tokenize()
    counts = preparation.write()["data_sets"]["sft/train"]
    assert (counts["records"], counts["rejected"], counts["unknown_tokens"]) == (1, 0, 0)

    run_conversion(plan_export(run, tmp_path / "exported"))
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "exported" / "tokenizer.json"))
    speech = "".join(f"<audio_{code}>" for code in codes(2, seed=1))
    text = (
        "<|im_start|>human\nwhat is two plus two<|im_end|>"
        f"<|im_start|>assistant\nthat makes four<audio_start>{speech}<audio_end><|im_end|>"
    )
    (document,) = Documents(tmp_path / "data" / "sft" / "train")
    assert exported.decode(document.token_ids.tolist(), skip_special_tokens=False) == text
    shown = describe(document, open_text(run), Vocabulary.load(run / "vocabulary.yaml"))
    assert "that makes four" in shown and f"<audio_{codes(2, seed=1)[0]}>" in shown
