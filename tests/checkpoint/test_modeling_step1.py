"""The transformers model of exported checkpoints: it is the Megatron model, by itself, cached, padded, packed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from megatron_aqaa.model import AQAAModel, ModelConfig, build_model
from megatron_aqaa.model.alibi import sqrt_alibi_slopes
from tests.model.conftest import one_process  # noqa: F401
from tests.model.sizes import VOCABULARY

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[hf]'")

from megatron_aqaa.checkpoint import configuration_step1, modeling_step1  # noqa: E402
from megatron_aqaa.checkpoint.configuration_step1 import Step1Config  # noqa: E402
from megatron_aqaa.checkpoint.modeling_step1 import Step1ForCausalLM, Step1Model, attention_bias  # noqa: E402

CODE = [Path(str(module.__file__)) for module in (configuration_step1, modeling_step1)]
ROOT = CODE[0].parents[2]
CASES = {  # heads, groups, hidden, own head
    "gqa 12 of 5": (12, 4, 60, True),
    "gqa 6 of 7, tied": (6, 2, 42, False),
    "mha 8 of 5": (8, 8, 40, True),
    "one group of 12, tied": (12, 1, 48, False),
}
IMPLEMENTATIONS = ["eager", "sdpa"]
LENGTH = 24


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def megatron_model(case: str, dtype: str = "fp64") -> AQAAModel:
    """Weights large enough that every part of the model shows in the logits; the same for every dtype."""
    heads, groups, hidden, own_head = CASES[case]
    config = ModelConfig(
        num_layers=2,
        hidden_size=hidden,
        ffn_hidden_size=52,
        num_attention_heads=heads,
        num_query_groups=groups,
        untie_embeddings_and_output_weights=own_head,
        params_dtype=dtype,  # type: ignore[arg-type]
    )
    model = build_model(config, VOCABULARY)[0].eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.copy_(1 + 0.3 * drawn if parameter.ndim == 1 else 0.25 * drawn)
    return model


def translated(model: AQAAModel, config: Step1Config) -> dict[str, torch.Tensor]:
    """Weights under their released names, written down here from the layout of Megatron's tensors alone."""
    theirs = model.state_dict()
    groups, head = config.num_attention_groups, config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads // groups * head
    weights = {
        "model.embed_tokens.weight": theirs["embedding.word_embeddings.weight"][: VOCABULARY.size],
        "model.norm.weight": theirs["decoder.final_layernorm.weight"],
    }
    if not config.tie_word_embeddings:
        weights["lm_head.weight"] = theirs["output_layer.weight"][: VOCABULARY.size]
    for i in range(config.num_hidden_layers):
        layer = {name: theirs[f"decoder.layers.{i}.{name}.weight"] for name in (
            "input_layernorm", "self_attention.linear_qkv", "self_attention.linear_proj", "pre_mlp_layernorm",
            "mlp.linear_fc1", "mlp.linear_fc2")}  # fmt: skip
        query, key, value = layer["self_attention.linear_qkv"].unflatten(0, (groups, -1)).split([width, head, head], 1)
        gate, up = layer["mlp.linear_fc1"].chunk(2)
        ours = {
            "input_layernorm": layer["input_layernorm"],
            "self_attn.q_proj": query.flatten(0, 1),
            "self_attn.k_proj": key.flatten(0, 1),
            "self_attn.v_proj": value.flatten(0, 1),
            "self_attn.o_proj": layer["self_attention.linear_proj"],
            "post_attention_layernorm": layer["pre_mlp_layernorm"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer["mlp.linear_fc2"],
        }
        weights |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in ours.items()}
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def released_config(case: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """`config.json` as an exporter writes it."""
    heads, groups, hidden, own_head = CASES[case]
    return {
        "architectures": ["Step1ForCausalLM"],
        "model_type": "step1",
        "auto_map": {
            "AutoConfig": "configuration_step1.Step1Config",
            "AutoModelForCausalLM": "modeling_step1.Step1ForCausalLM",
        },
        "hidden_size": hidden,
        "intermediate_size": 52,
        "num_attention_heads": heads,
        "num_attention_groups": groups,
        "num_hidden_layers": 2,
        "max_seq_len": 64,
        "vocab_size": VOCABULARY.size,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": not own_head,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "audio_vocabulary": {"text_size": VOCABULARY.text_size},
    }


def exported(case: str, model: AQAAModel, folder: Path) -> Path:
    """A directory as an exporter makes it: configuration, two shards with their index, the code."""
    folder.mkdir(parents=True)
    config = released_config(case)
    weights = list(translated(model, Step1Config(**config)).items())
    shards = {"model-00001-of-00002.safetensors": weights[::2], "model-00002-of-00002.safetensors": weights[1::2]}
    for file, part in shards.items():
        save_file(dict(part), folder / file, metadata={"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in weights)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, part in shards.items() for name, _ in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    for file in CODE:
        shutil.copy(file, folder)
    return folder


def step1(case: str, model: AQAAModel, kind: str = "sdpa", dtype: torch.dtype = torch.float64) -> Step1ForCausalLM:
    config = Step1Config(**released_config(case, dtype))
    config._attn_implementation = kind
    ours = Step1ForCausalLM(config).to(dtype).eval()
    report = ours.load_state_dict(translated(model, config), strict=False)
    assert report.missing_keys == ["lm_head.weight"] * config.tie_word_embeddings and not report.unexpected_keys
    return ours


@pytest.fixture(scope="module")
def gqa(one_process: None) -> AQAAModel:  # noqa: F811
    return megatron_model("gqa 12 of 5")


@pytest.fixture(params=IMPLEMENTATIONS)
def model(request: pytest.FixtureRequest, gqa: AQAAModel) -> Iterator[Step1ForCausalLM]:
    with torch.no_grad():
        yield step1("gqa 12 of 5", gqa, request.param)


def tokens(rows: int = 3, length: int = LENGTH, seed: int = 3) -> torch.Tensor:
    """Ordinary ids: none of padding, begin or end."""
    return torch.randint(5, VOCABULARY.size, (rows, length), generator=torch.Generator().manual_seed(seed))


def left_padded(ids: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor(lengths)[:, None]
    return torch.where(mask, ids, 0), mask.long()


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_slopes_are_those_of_training() -> None:
    for heads in (*range(1, 130), 6, 12, 48, 96):
        close(torch.tensor(modeling_step1.sqrt_alibi_slopes(heads), dtype=torch.float64), sqrt_alibi_slopes(heads))


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_those_of_megatron(one_process: None, case: str, kind: str) -> None:  # noqa: F811
    ids = tokens()
    for dtype, torch_dtype, tolerance in (("fp64", torch.float64, 1e-11), ("fp32", torch.float32, 5e-5)):
        theirs = megatron_model(case, dtype)
        expected = theirs(ids)
        assert expected.std() > 0.5
        logits = step1(case, theirs, kind, torch_dtype)(ids).logits
        assert logits.dtype == torch_dtype
        close(logits, expected, tolerance)


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
@torch.no_grad()
def test_low_precision_is_as_good_as_megatrons(one_process: None, kind: str) -> None:  # noqa: F811
    ids, case = tokens(), "gqa 12 of 5"
    in_bf16 = megatron_model(case, "bf16")
    rounded = megatron_model(case)
    rounded.load_state_dict({name: tensor for name, tensor in in_bf16.state_dict().items() if tensor is not None})
    exact = rounded(ids)
    plain = (in_bf16(ids).double() - exact).square().mean().sqrt()
    for dtype in (torch.bfloat16, torch.float16):
        logits = step1(case, rounded, kind, dtype)(ids).logits
        assert logits.dtype == dtype
        assert (logits.double() - exact).square().mean().sqrt() <= 2 * plain


def test_left_padding_and_gaps_change_nothing(model: Step1ForCausalLM) -> None:
    lengths = [LENGTH, 9, 1]
    ids, mask = left_padded(tokens(), lengths)
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for row, length in enumerate(lengths):
        close(logits[row, -length:], model(ids[row : row + 1, -length:]).logits[0])
    gaps = torch.ones(1, LENGTH, dtype=torch.bool)
    gaps[0, [2, 7, 8, LENGTH - 1]] = False
    close(model(ids[:1], attention_mask=gaps).logits[gaps], model(ids[:1][gaps][None]).logits[0])


def test_padding_is_megatrons_padding(model: Step1ForCausalLM, gqa: AQAAModel) -> None:
    ids, mask = left_padded(tokens(), [LENGTH, 17, 5])
    kept = mask.bool()
    close(model(ids, attention_mask=mask).logits[kept], gqa(ids, mask - 1)[kept])


def test_packed_sequences_are_megatrons_documents(model: Step1ForCausalLM, gqa: AQAAModel) -> None:
    ids, lengths = tokens(1), [9, 1, 14]
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    document_ids = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    logits = model(ids, position_ids=position_ids).logits
    close(logits, gqa(ids, document_ids))
    close(logits[0, 10:], model(ids[:, 10:]).logits[0])


@pytest.mark.parametrize("static", [False, True])
def test_token_by_token_with_a_cache(model: Step1ForCausalLM, static: bool) -> None:
    ids, mask = left_padded(tokens(), [LENGTH, 20, 16])
    expected = model(ids, attention_mask=mask).logits
    cache = (
        transformers.StaticCache(config=model.config, max_cache_len=LENGTH + 3)
        if static
        else transformers.DynamicCache()
    )
    start = 0
    for stop in (10, 15, 16, 17, LENGTH):
        part = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache).logits
        kept = mask[:, start:stop].bool()
        close(part[kept], expected[:, start:stop][kept])
        start = stop


SETTINGS = {
    "without a cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "prompt in pieces": {"prefill_chunk_size": 5},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_generation_does_not_depend_on_the_cache(model: Step1ForCausalLM, settings: dict[str, Any]) -> None:
    ids, mask = left_padded(tokens(3, 12), [12, 7, 2])
    common: dict[str, Any] = {
        "attention_mask": mask,
        "max_new_tokens": 16,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "disable_compile": True,
    }
    expected, found = model.generate(ids, **common), model.generate(ids, **common, **settings)
    assert torch.equal(found.sequences, expected.sequences)
    assert len(expected.sequences[0].unique()) > 8, "a model that repeats itself proves little"
    close(torch.stack(found.logits), torch.stack(expected.logits))


def test_a_batch_generates_what_its_rows_do(model: Step1ForCausalLM) -> None:
    lengths = [12, 7, 2]
    ids, mask = left_padded(tokens(3, 12), lengths)
    for settings in ({}, {"num_beams": 3}):
        options = {"max_new_tokens": 16, "do_sample": False, **settings}
        together = model.generate(ids, attention_mask=mask, **options)[:, 12:]
        for row, length in enumerate(lengths):
            alone = model.generate(ids[row : row + 1, -length:], **options)[0, length:]
            assert torch.equal(together[row, : len(alone)], alone)
            assert (together[row, len(alone) :] == model.config.pad_token_id).all()


def test_embeddings_instead_of_ids_and_fewer_logits(model: Step1ForCausalLM) -> None:
    ids = tokens()
    expected = model(ids).logits
    close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, expected)
    close(model(ids, logits_to_keep=2).logits, expected[:, -2:])
    close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, expected[:, [0, 5]])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_masks_of_four_dimensions(model: Step1ForCausalLM) -> None:
    ids = tokens()
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    close(model(ids, attention_mask=seen).logits, model(ids).logits)
    added = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    close(model(ids, attention_mask=added).logits, model(ids).logits)


@torch.no_grad()
def test_a_mask_to_be_added_leaves_no_nan(gqa: AQAAModel) -> None:
    model = step1("gqa 12 of 5", gqa, dtype=torch.float16)
    ids, mask = left_padded(tokens(), [LENGTH, 9, 4])
    seen = mask.bool()[:, None, None] & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    least = torch.finfo(torch.float16).min
    added = torch.zeros(seen.shape, dtype=torch.float16).masked_fill(~seen, least)
    logits = model(ids, attention_mask=added).logits
    assert logits.isfinite().all()
    close(logits[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()], 0)
    far = attention_bias(
        [1.0], torch.zeros(1, 400, 4, dtype=torch.float16), 0, torch.full((1, 1, 400, 400), least), None
    )
    assert far.half().isfinite().all()


def test_a_mask_that_does_not_fit_is_named(model: Step1ForCausalLM) -> None:
    ids = tokens()
    cache = model(ids[:, :4]).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask is \[3, 2\], but must be \[3, 6\].* 4 tokens in the cache"):
        model(ids[:, 4:6], attention_mask=torch.ones(3, 2), past_key_values=cache)


def test_all_hidden_states_and_weights(gqa: AQAAModel) -> None:
    model = step1("gqa 12 of 5", gqa, "eager")
    ids, mask = left_padded(tokens(), [LENGTH, 9, 4])
    output = model(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    assert [state.dtype for state in output.hidden_states] == [torch.float64] * 3
    close(model.lm_head(output.hidden_states[-1]), output.logits)
    weights = torch.stack(output.attentions)  # [layers, B, heads, Sq, Sk]
    assert weights.shape == (2, 3, 12, LENGTH, LENGTH)
    close(weights.sum(-1), torch.ones(weights.shape[:-1], dtype=torch.float64))
    assert (weights[:, 1, :, -9:, :-9] == 0).all() and (weights[:, 0].triu(1) == 0).all()
    with pytest.raises(ValueError, match="attn_implementation"):
        step1("gqa 12 of 5", gqa, "sdpa")(ids, output_attentions=True)


def test_the_implementation_can_be_chosen_later(gqa: AQAAModel) -> None:
    model = step1("gqa 12 of 5", gqa)
    ids = tokens()
    assert model(ids).attentions is None
    model.set_attn_implementation("eager")
    assert model(ids, output_attentions=True).attentions[0].shape == (3, 12, LENGTH, LENGTH)
    with pytest.raises((ValueError, ImportError), match="[Ff]lash"):
        model.set_attn_implementation("flash_attention_2")


def test_the_bias_is_worked_by_hand() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1]])
    bias = attention_bias([0.5, 0.25], torch.zeros(1, 2, 4), 3, mask, None)
    none = -torch.inf
    rows = [[none, -1.0, none, 0.0, none], [none, -(2**0.5), none, -1.0, 0.0]]
    slopes = torch.tensor([0.5, 0.25])[:, None, None]
    assert bias.dtype == torch.float32
    close(bias[0], slopes * torch.tensor(rows), 1e-7)
    assert attention_bias([0.5], torch.zeros(1, 2, 4, dtype=torch.float16), 0, None, None).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_rounds_once(dtype: torch.dtype) -> None:
    norm = modeling_step1.Step1RMSNorm(64, 1e-5)
    norm.weight.data = torch.randn(64, generator=torch.Generator().manual_seed(1)).to(dtype)
    hidden = (400 * torch.randn(50, 64, generator=torch.Generator().manual_seed(2))).to(dtype)  # fp16 has no 400²
    exact = F.rms_norm(hidden.double(), (64,), norm.weight.double(), 1e-5)
    assert (norm(hidden) == exact.to(dtype)).double().mean() > 0.999  # a tie may fall the other way


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # its new name is of 5.24
def test_loss_and_gradient_checkpointing(gqa: AQAAModel) -> None:
    model = step1("gqa 12 of 5", gqa, dtype=torch.float32).train()
    ids, mask = left_padded(tokens(), [LENGTH, 9, 4])
    labels = ids.masked_fill(mask == 0, -100)
    logits = model(ids, attention_mask=mask).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    kept = []
    for recomputing in (False, True):
        if recomputing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        output = model(ids, attention_mask=mask, labels=labels)
        torch.testing.assert_close(output.loss, expected)
        output.loss.backward()
        kept.append([parameter.grad for parameter in model.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in kept[0])
    torch.testing.assert_close(kept[1], kept[0])
    assert output.past_key_values is None
    with pytest.raises(ValueError, match="gradient checkpointing would write into the cache"):
        model(ids, past_key_values=transformers.DynamicCache())
    counted = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=7).loss
    torch.testing.assert_close(counted, expected * (labels[:, 1:] != -100).sum() / 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", ["gqa 12 of 5", "gqa 6 of 7, tied"])
@torch.no_grad()
def test_saved_and_loaded(one_process: None, tmp_path: Path, case: str, dtype: torch.dtype) -> None:  # noqa: F811
    before = step1(case, megatron_model(case), dtype=dtype)
    before.save_pretrained(tmp_path, max_shard_size="30KB")
    stored = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert set(stored) == set(translated(megatron_model(case), before.config))
    after, report = Step1ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert after.dtype == dtype and not list(after.buffers())
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == before.config.tie_word_embeddings
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in after.state_dict().items())
    assert torch.equal(after(tokens()).logits, before(tokens()).logits)
    assert after.config.audio_vocabulary == {"text_size": VOCABULARY.text_size}


@torch.no_grad()
def test_layers_on_several_devices(gqa: AQAAModel, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install '.[hf]'")
    before = step1("gqa 12 of 5", gqa)
    before.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "disk",
              "lm_head": "cpu"}  # fmt: skip
    after = Step1ForCausalLM.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "off")
    assert after.model.layers[0].mlp.up_proj.weight.is_meta
    assert torch.equal(after(tokens()).logits, before(tokens()).logits)


def test_released_sizes_have_the_released_number_of_parameters() -> None:
    large = Step1Config(hidden_size=12288, intermediate_size=31232, num_hidden_layers=88, num_attention_heads=96,
                        num_attention_groups=8)  # fmt: skip
    for config, number in ((Step1Config(), 3_529_706_496), (large, 131_946_590_208)):
        with torch.device("meta"):
            model = Step1ForCausalLM(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == number


def test_configuration_under_its_usual_names_and_its_errors() -> None:
    config = Step1Config(**released_config("gqa 12 of 5"))
    assert (config.num_key_value_heads, config.max_position_embeddings) == (4, 64)
    written = config.to_dict()
    assert {key: written[key] for key in released_config("gqa 12 of 5") if key in written} == {
        **{key: value for key, value in released_config("gqa 12 of 5").items() if key != "torch_dtype"},
    }
    assert written["tie_word_embeddings"] is False and Step1Config().to_dict()["tie_word_embeddings"] is False
    with pytest.raises(ValueError, match="num_attention_heads = 6 must be a multiple of num_attention_groups = 4"):
        Step1Config(num_attention_heads=6, num_attention_groups=4)
    with pytest.raises(ValueError, match="hidden_size = 50 must be a multiple of num_attention_heads = 48"):
        Step1Config(hidden_size=50)


def test_the_code_imports_torch_and_transformers_alone() -> None:
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (node.level, node.module) == (1, "configuration_step1"), "what an exported directory holds"
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= {"__future__", "typing", "torch", "transformers"}


ELSEWHERE = """
import json, sys
import torch
sys.modules["megatron_aqaa"] = sys.modules["megatron"] = None  # an import of either fails from here on
from transformers import AutoConfig, AutoModelForCausalLM
folder, copy, package = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = torch.load(folder + "/ids.pt")
torch.save(model(ids).logits.detach(), folder + "/logits.pt")
generated = model.generate(ids, max_new_tokens=8, do_sample=False)
model.save_pretrained(copy, max_shard_size="30KB")
again = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)
assert torch.equal(again.generate(ids, max_new_tokens=8, do_sample=False), generated)
ours = [m.__file__ for m in list(sys.modules.values()) if (getattr(m, "__file__", None) or "").startswith(package)]
config = AutoConfig.from_pretrained(copy, trust_remote_code=True)
print(json.dumps({"ours": ours, "generated": generated.tolist(), "groups": config.num_attention_groups,
                  "kind": [type(model).__module__, type(model).__name__], "dtype": str(model.dtype)}))
"""


@torch.no_grad()
def test_an_exported_directory_works_without_this_package(gqa: AQAAModel, tmp_path: Path) -> None:
    folder, ids = exported("gqa 12 of 5", gqa, tmp_path / "exported"), tokens()
    torch.save(ids, folder / "ids.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    package = str(ROOT / "megatron_aqaa")
    # -I: neither the current directory nor PYTHONPATH lend a module.
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(folder), str(tmp_path / "copy"), package]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ours"] == [] and said["groups"] == 4 and said["dtype"] == "torch.float64"
    assert said["kind"][0].startswith("transformers_modules.") and said["kind"][1] == "Step1ForCausalLM"
    close(torch.load(folder / "logits.pt"), gqa(ids))
    here = step1("gqa 12 of 5", gqa).generate(ids, max_new_tokens=8, do_sample=False)
    assert said["generated"] == here.tolist()
    assert {file.name for file in CODE} <= {file.name for file in (tmp_path / "copy").iterdir()}


def test_the_body_alone(gqa: AQAAModel, tmp_path: Path) -> None:
    whole = step1("gqa 12 of 5", gqa)
    whole.save_pretrained(tmp_path)
    body = Step1Model.from_pretrained(tmp_path)
    close(whole.lm_head(body(tokens()).last_hidden_state), whole(tokens()).logits)
