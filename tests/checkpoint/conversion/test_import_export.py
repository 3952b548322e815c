"""Import, reshard and export: round trips bit by bit and byte by byte, growth, extra tensors, casts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from megatron_aqaa import platform
from megatron_aqaa.checkpoint import store
from megatron_aqaa.checkpoint.box import Box
from megatron_aqaa.checkpoint.conversion.export_huggingface import ExportOptions, plan_export
from megatron_aqaa.checkpoint.conversion.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.conversion.inspect_checkpoint import describe_checkpoint
from megatron_aqaa.checkpoint.conversion.model_directory import read_model
from megatron_aqaa.checkpoint.conversion.reshard import plan_reshard
from megatron_aqaa.checkpoint.conversion.run import run_conversion
from megatron_aqaa.checkpoint.conversion.verify import compare
from megatron_aqaa.checkpoint.stored_tensors import MappedFiles
from megatron_aqaa.model import build_model
from megatron_aqaa.model.vocabulary_growth import grow_vocabulary
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.vocabulary import Vocabulary
from tests.checkpoint.conversion.tiny_huggingface import CONFIGS, VOCABULARY, configuration, random_tensors, write_model
from tests.model.sizes import TINY
from tests.tokenizer.tiny import write_byte_pairs

SMALL_FILES = 40_000  # several files of a tiny model
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def imported(source: Path, output: Path, **options: Any) -> Path:
    run_conversion(plan_import(source, output, ImportOptions(**{"shard_bytes": SMALL_FILES, **options})))
    return output


def exported(source: Path, output: Path, **options: Any) -> Path:
    run_conversion(plan_export(source, output, ExportOptions(**{"shard_bytes": SMALL_FILES, **options})))
    return output


def read(run: Path, name: str) -> torch.Tensor:
    tensor = read_model(run).stored.tensors[name]
    return MappedFiles().read(tensor, Box.whole(tensor.shape))


def all_tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


VARIANTS = {
    **{family: configuration(family) for family in CONFIGS},
    "odd_heads": configuration("step1", hidden_size=60),
    "own_width": configuration("llama", head_dim=7),
    "mha": configuration("llama", num_key_value_heads=12),
    "tied": configuration("qwen2", tie_word_embeddings=True),
    "bf16": configuration("llama", torch_dtype="bfloat16"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_files", [1, 3])
def test_round_trip_is_equal_byte_by_byte(tmp_path, variant, num_files):
    write_model(tmp_path / "hf", VARIANTS[variant], num_files=num_files)
    (tmp_path / "hf" / "generation_config.json").write_text('{"do_sample": true}')
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{ "model_max_length":\t7 }')
    imported(tmp_path / "hf", tmp_path / "run", parallel=ParallelConfig(2, 2))
    run_conversion(plan_reshard(tmp_path / "run", tmp_path / "run4", ParallelConfig(4), SMALL_FILES))
    exported(tmp_path / "run4", tmp_path / "out")
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    assert compare(tmp_path / "hf", tmp_path / "run").worst is None
    assert compare(tmp_path / "run", tmp_path / "run4").worst is None


def test_a_head_stored_beside_its_tie_comes_back(tmp_path):
    config = configuration("qwen2", tie_word_embeddings=True)
    tensors = random_tensors(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_model(tmp_path / "hf", config, tensors, num_files=2)
    imported(tmp_path / "hf", tmp_path / "run")
    exported(tmp_path / "run", tmp_path / "out")
    assert all_tensors(tmp_path / "out").keys() == tensors.keys()
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    tensors["lm_head.weight"][3, 3] += 1
    write_model(tmp_path / "other", config, tensors)
    with pytest.raises(ValueError, match=r"other: tie_word_embeddings is set, but lm_head.weight is not the embedding"):
        imported(tmp_path / "other", tmp_path / "run2")


def test_an_imported_run_is_one(tmp_path):
    write_model(tmp_path / "hf", configuration("step1"))
    imported(tmp_path / "hf", tmp_path / "run")
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert values["run"] == str(tmp_path / "run") and values["model"]["hidden_size"] == 48
    assert Vocabulary.load(values["vocabulary"]) == VOCABULARY
    assert read_model(tmp_path / "run").vocabulary == VOCABULARY
    assert read(tmp_path / "run", "output_layer.weight").shape == (128, 48)
    assert not read(tmp_path / "run", "output_layer.weight")[110:].any()


def test_without_a_source_everything_is_written_anew(tmp_path):
    tensors = write_model(tmp_path / "hf", configuration("step1"), num_files=3)
    imported(tmp_path / "hf", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "huggingface")
    (tmp_path / "run" / "conversion_record.json").unlink()
    exported(tmp_path / "run", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_step1.Step1ForCausalLM"
    assert (tmp_path / "out" / "modeling_step1.py").exists() and (tmp_path / "out" / "configuration_step1.py").exists()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == VOCABULARY.eot
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    found = all_tensors(tmp_path / "out")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)
    imported(tmp_path / "out", tmp_path / "again")
    assert read_model(tmp_path / "again").vocabulary == VOCABULARY


def test_own_model_code_can_be_asked_for(tmp_path):
    write_model(tmp_path / "hf", configuration("step1"))
    imported(tmp_path / "hf", tmp_path / "run")
    exported(tmp_path / "run", tmp_path / "out", own_model_code=True)
    assert "auto_map" in json.loads((tmp_path / "out" / "config.json").read_text())
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "hf" / "model.safetensors").read_bytes()


def test_a_grown_vocabulary(tmp_path):
    """Rows as `training.grow_vocabulary` draws them, padding cut off again by export."""
    tensors = write_model(tmp_path / "hf", configuration("qwen2"))
    imported(tmp_path / "hf", tmp_path / "run", add_audio_tokens=True, seed=5)
    vocabulary = read_model(tmp_path / "run").vocabulary
    assert (vocabulary.text_size, vocabulary.audio_start, vocabulary.size) == (110, 5230, 5234)
    assert (vocabulary.bot, vocabulary.eot) == (5232, 5233)
    for name, source in (("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
                         ("output_layer.weight", "lm_head.weight")):  # fmt: skip
        assert torch.equal(read(tmp_path / "run", name), grow_vocabulary(tensors[source], vocabulary, 5248, seed=5))
    exported(tmp_path / "run", tmp_path / "out")
    found = all_tensors(tmp_path / "out")
    assert found["lm_head.weight"].shape == (5234, 48)
    assert torch.equal(found["lm_head.weight"][:110], tensors["lm_head.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (5234, 5233)
    imported(tmp_path / "out", tmp_path / "again")
    assert read_model(tmp_path / "again").vocabulary == vocabulary


def test_a_tokenizer_of_before_the_growth_gets_the_audio_tokens(tmp_path):
    """As where `training.grow_vocabulary` grew the model, and `--like` names the text model that it was."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install '.[hf]'")
    write_model(tmp_path / "hf", configuration("qwen2", vocab_size=320))
    write_byte_pairs(tmp_path / "hf")
    imported(tmp_path / "hf", tmp_path / "run", add_audio_tokens=True)
    plan = plan_export(tmp_path / "run", tmp_path / "out", ExportOptions(like=tmp_path / "hf"))
    assert "the tokenizer files get the audio tokens" in plan.notes
    run_conversion(plan)
    grown = tmp_path / "run" / "huggingface" / "files" / "tokenizer.json"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == grown.read_bytes()
    values = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    values["added_tokens"] += [{**values["added_tokens"][0], "id": i, "content": f"<{i}>"} for i in range(293, 325)]
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="hf: its tokenizer has 325 ids, the codes of the model begin at 320"):
        plan_export(tmp_path / "run", tmp_path / "out2", ExportOptions(like=tmp_path / "hf"))


def test_audio_ids_at_a_stated_base(tmp_path):
    tensors = write_model(tmp_path / "hf", configuration("llama"))
    imported(tmp_path / "hf", tmp_path / "run", add_audio_tokens=True, audio_base=100)
    assert read_model(tmp_path / "run").vocabulary.linguistic_start == 100
    assert torch.equal(read(tmp_path / "run", "output_layer.weight")[:100], tensors["lm_head.weight"][:100])
    for base in (1, 111):
        with pytest.raises(ValueError, match=f"--audio-base {base}: must lie behind"):
            imported(tmp_path / "hf", tmp_path / "other", add_audio_tokens=True, audio_base=base)


def test_step1_wants_to_know_its_ids(tmp_path):
    config = configuration("step1")
    del config["audio_vocabulary"]
    write_model(tmp_path / "hf", config)
    with pytest.raises(ValueError, match="vocab_size = 110 is not the released layout; say with --vocabulary"):
        imported(tmp_path / "hf", tmp_path / "run")
    VOCABULARY.save(tmp_path / "ids.yaml")
    imported(tmp_path / "hf", tmp_path / "run", vocabulary=tmp_path / "ids.yaml")
    assert read_model(tmp_path / "run").vocabulary == VOCABULARY
    Vocabulary().save(tmp_path / "ids.yaml")
    with pytest.raises(ValueError, match="has 110 ids, the vocabulary 74752"):
        imported(tmp_path / "hf", tmp_path / "other", vocabulary=tmp_path / "ids.yaml")
    write_model(tmp_path / "audio", configuration("step1"))
    with pytest.raises(ValueError, match="has audio tokens already"):
        imported(tmp_path / "audio", tmp_path / "other", add_audio_tokens=True)


def test_extra_tensors_are_refused_kept_and_written_back(tmp_path):
    config = configuration("step1")
    extra = {"audio.encoder.weight": torch.randn(70, 200).half(), "audio.scale": torch.tensor(3.0)}
    write_model(tmp_path / "hf", config, {**random_tensors(config), **extra}, num_files=3)
    with pytest.raises(ValueError, match=r"2 tensor\(s\) have no place in the model: audio.* --keep-extra keeps them"):
        imported(tmp_path / "hf", tmp_path / "run")
    imported(tmp_path / "hf", tmp_path / "run", keep_extra=True, shard_bytes=20_000)
    assert any("kept aside" in line and "audio.scale" in line for line in describe_checkpoint(tmp_path / "run"))
    run_conversion(plan_reshard(tmp_path / "run", tmp_path / "run2", ParallelConfig(2), 20_000))
    exported(tmp_path / "run2", tmp_path / "out")
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    assert compare(tmp_path / "hf", tmp_path / "run2").num_tensors == 41


def test_casts(tmp_path):
    tensors = write_model(tmp_path / "hf", configuration("llama"))
    imported(tmp_path / "hf", tmp_path / "run", dtype="bfloat16")
    assert read_model(tmp_path / "run").model.params_dtype == "bf16"
    exported(tmp_path / "run", tmp_path / "out", dtype="float16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"
    for name, tensor in all_tensors(tmp_path / "out").items():
        assert torch.equal(tensor, tensors[name].bfloat16().half()), name
    with pytest.raises(ValueError, match="holds torch.float16 weights; .* choose one with --dtype"):
        imported(tmp_path / "out", tmp_path / "half")


def test_values_that_do_not_fit_are_named(tmp_path):
    tensors = random_tensors(configuration("llama"))
    tensors["model.layers.2.mlp.up_proj.weight"][5, 7] = 1e6
    write_model(tmp_path / "hf", configuration("llama"), tensors)
    imported(tmp_path / "hf", tmp_path / "run")
    message = "run: model.layers.2.mlp.up_proj.weight holds values up to 1e.06, which do not fit torch.float16"
    with pytest.raises(ValueError, match=message):
        exported(tmp_path / "run", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_parts_of_unlike_dtypes_are_refused(tmp_path):
    tensors = random_tensors(configuration("llama"))
    tensors["model.layers.1.self_attn.k_proj.weight"] = tensors["model.layers.1.self_attn.k_proj.weight"].bfloat16()
    write_model(tmp_path / "hf", configuration("llama"), tensors)
    with pytest.raises(ValueError, match=r"layers.1.self_attn.k_proj.weight is torch.bfloat16, other parts .* --dtype"):
        imported(tmp_path / "hf", tmp_path / "run")
    imported(tmp_path / "hf", tmp_path / "run", dtype="float32")


def test_wider_norms_stay_wider(tmp_path):
    config = configuration("llama", torch_dtype="bfloat16")
    tensors = {name: it if "norm" in name else it.bfloat16() for name, it in random_tensors(config).items()}
    write_model(tmp_path / "hf", config, tensors, num_files=2)
    imported(tmp_path / "hf", tmp_path / "run")
    assert read_model(tmp_path / "run").model.params_dtype == "bf16"
    exported(tmp_path / "run", tmp_path / "out")
    for file in (tmp_path / "hf").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_the_130b_is_planned_from_its_configuration_alone(tmp_path):
    released = {"model_type": "step1", "hidden_size": 12288, "intermediate_size": 31232, "num_attention_heads": 96,
                "num_attention_groups": 8, "num_hidden_layers": 88, "max_seq_len": 32768, "vocab_size": 74752,
                "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(released))
    plan = plan_import(tmp_path, tmp_path / "run", ImportOptions(ParallelConfig(8, 8)), weights_needed=False)
    assert plan.num_parameters == 131_946_590_208
    assert 0 < plan.num_bytes - 2 * 131_946_590_208 < 40_000_000  # descriptions of the shards
    assert sum(region.box.num_elements for file in plan.files for region in file.regions) == 131_946_590_208
    with pytest.raises(ValueError, match="has neither model.safetensors.index.json nor model.safetensors"):
        plan_import(tmp_path, tmp_path / "run")


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(5), "num_attention_heads = 12 must be a multiple of tensor_model_parallel_size = 5"),
        (ParallelConfig(1, 3), "num_layers = 4 must be a multiple of pipeline stages = 3"),
        (ParallelConfig(3), "embedding.word_embeddings.weight: 128 rows do not divide over 3 tensor-parallel ranks"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(tmp_path, parallel, message):
    write_model(tmp_path / "hf", configuration("step1", intermediate_size=66, num_attention_groups=3))
    with pytest.raises(ValueError, match=message):
        imported(tmp_path / "hf", tmp_path / "run", parallel=parallel)


def test_codebook_vectors_are_folded_into_an_exported_embedding(tmp_path):
    platform.initialize(ParallelConfig())
    try:
        for name, change in (("types", {}), ("places", {"group_position_embedding": True})):
            model = dataclasses.replace(
                TINY, kv_channels=4, codebook_type_embedding=True, untie_embeddings_and_output_weights=False, **change
            )
            chunks = build_model(model, VOCABULARY)
            state = {**store.model_state(chunks), **store.vocabulary_state(chunks)}
            (tmp_path / name).mkdir()
            store.save_checkpoint(tmp_path / name, 3, state, keep=1)
            values = {"model": dataclasses.asdict(model)}
            (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(values))
            if name == "types":
                wanted = chunks[0].embedding.exported_weight()[: VOCABULARY.size].clone()
                words = chunks[0].embedding.word_embeddings.weight[: VOCABULARY.size].detach().clone()
    finally:
        platform.shutdown()
    exported(tmp_path / "types", tmp_path / "out")
    found = all_tensors(tmp_path / "out")
    assert torch.equal(found["model.embed_tokens.weight"], wanted) and not torch.equal(wanted, words)
    assert torch.equal(found["lm_head.weight"], words)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    with pytest.raises(ValueError, match="group_position_embedding cannot be exported"):
        exported(tmp_path / "places", tmp_path / "out2")


def test_other_tensors_in_like_are_laid_out_anew(tmp_path):
    write_model(tmp_path / "hf", configuration("llama"), num_files=2)
    imported(tmp_path / "hf", tmp_path / "run", dtype="bfloat16")
    plan = plan_export(tmp_path / "run", tmp_path / "out")
    assert any("files are laid out anew" in note for note in plan.notes)
    exported(tmp_path / "run", tmp_path / "out", like=tmp_path / "hf", dtype="float32")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"
