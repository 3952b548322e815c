"""Merging Hugging Face directories: results as mergekit's (goldens), resumable, refusing what cannot be right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from megatron_aqaa.checkpoint.merge.config import load_merge_config
from megatron_aqaa.checkpoint.merge.plan import MergePlan, plan_merge
from megatron_aqaa.checkpoint.merge.run import run_merge
from megatron_aqaa.checkpoint.merge.state import RECORD, STATE
from megatron_aqaa.checkpoint.output_directory import alone_in
from tests.checkpoint.merge.models import join, random_models, split, write_model

GOLDENS = Path(__file__).parent / "goldens" / "merge.safetensors"
NAMES = ("BASE", "A", "B", "C")


def read_goldens() -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    with safe_open(GOLDENS, "pt") as file:
        return json.loads(file.metadata()["cases"]), load_file(GOLDENS)


CASES, VECTORS = read_goldens()


def plan(folder: Path, config: dict[str, Any], output: str = "merged", **options: Any) -> MergePlan:
    """The merge of models that are named by their folders in `folder`."""
    text = yaml.safe_dump(config)
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        text = text.replace(f"model: {name}\n", f"model: {folder / name}\n")
    (folder / "merge.yml").write_text(text)
    return plan_merge(load_merge_config(folder / "merge.yml"), folder / output, **options)


def merged(folder: Path, config: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Its tensors."""
    ready = plan(folder, config, **options)
    run_merge(ready)
    return {name: tensor for file in ready.files for name, tensor in load_file(ready.output / file.name).items()}


def average(*names: str) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 1}} for name in names],
    }


@pytest.fixture
def golden_models(tmp_path: Path) -> Callable[[str], Path]:
    def write(kind: str) -> Path:
        for files, name in enumerate(NAMES, 1):
            write_model(tmp_path / name, split(VECTORS[f"{kind}/{name}"], kind), kind, num_files=files)
        return tmp_path

    return write


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Models BASE, A and B in bfloat16."""
    for name, tensors in zip(NAMES, random_models("llama", torch.bfloat16, 3), strict=False):
        write_model(tmp_path / name, tensors)
    return tmp_path


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("linear")])
def test_linear_equals_mergekit_to_the_bit(golden_models, kind, case):
    result = join(merged(golden_models(kind), CASES[case]), kind)
    wanted = VECTORS[f"{kind}/{case}"]
    assert result.dtype == wanted.dtype
    integers = torch.int16 if result.dtype == torch.bfloat16 else torch.int32
    assert torch.equal(result.view(integers), wanted.view(integers))


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("linear")])
def test_other_methods_equal_mergekit_in_float32(golden_models, case):
    result = join(merged(golden_models("llama"), CASES[case]), "llama")
    torch.testing.assert_close(result, VECTORS[f"llama/{case}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("linear")])
def test_in_bfloat16_only_the_last_rounding_is_ours(golden_models, case):
    """Mergekit rounds changes, products and sums too; ours is the float32 result, rounded once."""
    folder = golden_models("qwen2")
    exact = join(merged(folder, CASES[case] | {"dtype": "float32"}, output="exact"), "qwen2")
    result = join(merged(folder, CASES[case]), "qwen2")
    assert torch.equal(result, exact.bfloat16())
    theirs = VECTORS[f"qwen2/{case}"].float()
    assert (result.float() - exact).abs().mean() <= (theirs - exact).abs().mean()


def test_models_of_different_dtypes(tmp_path):
    """As mergekit: to the dtype that all promote to; here with float32 sums of what is stored, never rounded before."""
    tensors = random_models("llama", torch.float32, 3)
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    stored = [
        {name: tensor.to(dtype) for name, tensor in model.items()} for model, dtype in zip(tensors, dtypes, strict=True)
    ]
    for name, model in zip(NAMES, stored, strict=False):
        write_model(tmp_path / name, model)
    wide = merged(tmp_path, average("BASE", "A", "B"))
    for name, result in wide.items():
        wanted = sum(model[name].double() for model in stored) / 3
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), wanted, rtol=1e-6, atol=1e-6)
    narrow = merged(tmp_path, average("BASE", "A", "B") | {"out_dtype": "float16"}, output="narrow")
    assert all(torch.equal(result, wide[name].half()) for name, result in narrow.items())
    assert merged(tmp_path, average("BASE", "A"), output="two")["lm_head.weight"].dtype == torch.float32
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["torch_dtype"] == "float16"


def test_float64_is_summed_in_float64(tmp_path):
    for name, tensors in zip(NAMES, random_models("llama", torch.float64, 3), strict=False):
        write_model(tmp_path / name, tensors)
    wanted = [load_file(tmp_path / name / "model.safetensors") for name in ("A", "B")]
    for name, result in merged(tmp_path, average("A", "B")).items():
        torch.testing.assert_close(result, (wanted[0][name] + wanted[1][name]) / 2, rtol=1e-15, atol=1e-15)


def test_integers_pass_if_they_are_equal(three):
    def add_counter(name: str, value: int) -> None:
        tensors = load_file(three / name / "model.safetensors")
        write_model(three / name, tensors | {"counter": torch.tensor([value, 2])})

    add_counter("A", 1)
    add_counter("B", 1)
    assert merged(three, average("A", "B"))["counter"].tolist() == [1, 2]
    add_counter("B", 3)
    with pytest.raises(ValueError, match=r"counter is torch.int64 and differs between .*A and .*B"):
        merged(three, average("A", "B"))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties", "model_stock", "slerp"])
def test_results_do_not_depend_on_memory_and_threads(three, monkeypatch, method):
    config = average("A", "B") | {"merge_method": method}
    if method != "linear":
        config["base_model"] = "BASE"
        for model in config["models"]:
            model["parameters"] |= {"density": 0.5} if method in ("ties", "dare_ties") else {}
    if method in ("slerp", "model_stock"):
        config["models"] = [{"model": model["model"]} for model in config["models"]][: 1 if method == "slerp" else 2]
        config["parameters"] = {"t": 0.3} if method == "slerp" else {}
    whole = merged(three, config)
    monkeypatch.setattr("megatron_aqaa.checkpoint.merge.plan.MAX_BLOCK_ELEMENTS", 5)
    monkeypatch.setattr("megatron_aqaa.checkpoint.merge.plan._MIN_BLOCK_ELEMENTS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parts = merged(three, config, output="parts")
    finally:
        torch.set_num_threads(threads)
    sums = method in ("slerp", "model_stock", "dare_ties")  # over tensors: one unit in the last place may differ
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=2**-7 if sums else 0.0, atol=0.0)


def test_the_record_tells_inputs_weights_and_versions(three):
    ready = plan(three, average("A", "B"))
    record = run_merge(ready)
    assert json.loads((ready.output / RECORD).read_text()) == record
    assert [model["path"] for model in record["inputs"]] == [str(three / "A"), str(three / "B")]
    assert record["config"]["models"][0]["parameters"] == {"weight": 1}
    assert record["versions"]["torch"] == torch.__version__
    assert record["num_tensors"] == len(ready.tensors)
    assert not (ready.output / STATE).exists()


def test_the_digest_is_that_of_the_elements(three):
    first = run_merge(plan(three, average("A", "B")))
    tensors = load_file(three / "A" / "model.safetensors")
    write_model(three / "A", dict(reversed(tensors.items())), num_files=3)
    (three / "A" / "model.safetensors").unlink()
    same = run_merge(plan(three, average("A", "B"), output="same"))
    assert [model["sha256"] for model in same["inputs"]] == [model["sha256"] for model in first["inputs"]]
    tensors["lm_head.weight"][0, 0] += 1
    write_model(three / "A", tensors, num_files=3)
    other = run_merge(plan(three, average("A", "B"), output="other"))
    equal = [a["sha256"] == b["sha256"] for a, b in zip(other["inputs"], first["inputs"], strict=True)]
    assert equal == [False, True]


class Killed(BaseException):
    """Ends a merge where a kill would."""


def interrupted(ready: MergePlan, after_bytes: int) -> None:
    def die(done_bytes: int) -> None:
        if done_bytes >= after_bytes:
            raise Killed

    with pytest.raises(Killed):
        run_merge(ready, die)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RECORD}


def test_an_interrupted_merge_goes_on(three):
    wanted = plan(three, average("A", "B"), output="whole", shard_bytes=100)
    run_merge(wanted)
    interrupted(plan(three, average("A", "B"), shard_bytes=100), after_bytes=350)
    assert (three / "merged" / STATE).exists() and not (three / "merged" / RECORD).exists()
    second = plan(three, average("A", "B"), shard_bytes=100)
    assert 1 < len(second.done) < len(second.files)
    assert 0 < second.done_bytes < second.total_bytes
    times = {name: (second.output / name).stat().st_mtime_ns for name in second.done}
    run_merge(second)
    assert contents(three / "merged") == contents(three / "whole")
    assert times == {name: (second.output / name).stat().st_mtime_ns for name in times}


def test_a_finished_merge_is_not_done_again(three):
    run_merge(plan(three, average("A", "B")))
    again = plan(three, average("A", "B"))
    assert again.is_complete
    before = (again.output / "model.safetensors").stat().st_mtime_ns
    run_merge(again, lambda done_bytes: pytest.fail("it merges again"))
    assert (again.output / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("state", ["interrupted", "finished"])
@pytest.mark.parametrize("change", ["input", "weights"])
def test_a_changed_input_or_configuration_starts_anew(three, state, change):
    first = plan(three, average("A", "B"), shard_bytes=100)
    interrupted(first, 350) if state == "interrupted" else run_merge(first)
    config = average("A", "B")
    if change == "input":
        tensors = load_file(three / "A" / "model.safetensors")
        write_model(three / "A", {name: tensor + 1 for name, tensor in tensors.items()})
    else:
        config["models"][0]["parameters"]["weight"] = 2
    second = plan(three, config, shard_bytes=1000)
    assert second.replaced and not second.done
    run_merge(second)
    run_merge(plan(three, config, output="whole", shard_bytes=1000))
    assert contents(three / "merged") == contents(three / "whole")


@pytest.mark.parametrize("next_weight", [1, 2], ids=["the old merge again", "the new merge"])
@pytest.mark.parametrize("survived", range(8))
def test_a_kill_while_the_old_result_is_removed(three, monkeypatch, survived, next_weight):
    """Whatever was gone by then, the next merge is complete and leaves nothing of the other."""
    run_merge(plan(three, average("A", "B"), shard_bytes=100))
    config = average("A", "B")
    config["models"][0]["parameters"]["weight"] = 2
    unlinked: list[Path] = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if len(unlinked) == survived:
            raise Killed
        unlinked.append(path)
        if path.exists():
            os.remove(path)

    second = plan(three, config, shard_bytes=1000)
    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Killed):
        run_merge(second)
    monkeypatch.undo()
    config["models"][0]["parameters"]["weight"] = next_weight
    shard_bytes = 100 if next_weight == 1 else 1000
    run_merge(plan(three, config, shard_bytes=shard_bytes))
    run_merge(plan(three, config, output="whole", shard_bytes=shard_bytes))
    assert contents(three / "merged") == contents(three / "whole")


def test_what_stood_beside_an_earlier_result_goes(three):
    for name in ("A", "B"):
        tokenizer(three / name)
    run_merge(plan(three, average("A", "B")))
    for name in ("A", "B"):
        (three / name / "tokenizer.json").unlink()
    config = average("A", "B") | {"out_dtype": "float32"}
    run_merge(plan(three, config))
    assert sorted(os.listdir(three / "merged")) == ["config.json", RECORD, "model.safetensors"]


def test_a_model_that_changes_meanwhile_is_noticed(three):
    touched = lambda done_bytes: os.utime(three / "A" / "model.safetensors", ns=(1, 1))
    with pytest.raises(ValueError, match="was changed while it was merged"):
        run_merge(plan(three, average("A", "B")), touched)
    second = plan(three, average("A", "B"))
    assert not second.done and second.replaced
    run_merge(second)


def test_one_merge_at_a_time(three):
    ready, late = plan(three, average("A", "B")), plan(three, average("A", "B"))
    ready.output.mkdir()
    with alone_in(ready.output), pytest.raises(ValueError, match="another process is at work here"):
        run_merge(ready)
    run_merge(ready)
    with pytest.raises(ValueError, match="another merge has written here meanwhile"):
        run_merge(late)


def test_the_result_never_replaces_a_model(three):
    run_merge(plan(three, average("A", "B")))
    with pytest.raises(ValueError, match="merged: holds .*merged, which is merged; name another output"):
        plan(three, average("merged", "A"))
    assert plan(three, average("A", "B")).is_complete


def test_the_error_of_a_small_tensor_is_told_while_a_large_one_is_merged(three, monkeypatch):
    for name in ("A", "B"):
        change_tensors(three / name, large=torch.zeros(300_000))
    poison(three / "B", float("nan"))
    monkeypatch.setattr("megatron_aqaa.checkpoint.merge.plan.MAX_BLOCK_ELEMENTS", 1024)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match=r"B: model.layers.1.mlp.up_proj.weight holds NaN"):
            run_merge(plan(three, average("A", "B")))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def change_tensors(folder: Path, **values: Tensor) -> None:
    tensors = load_file(folder / "model.safetensors") | {key.replace("__", "."): value for key, value in values.items()}
    write_model(folder, tensors)


def poison(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 1] = value
    write_model(folder, tensors)


def tokenizer(folder: Path, **values: Any) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, **values}))


def different_tokenizers(folder: Path) -> None:
    tokenizer(folder / "A")
    tokenizer(folder / "B", added_tokens=["<x>"])


def different_slow_tokenizers(folder: Path) -> None:
    for name in ("A", "B"):
        (folder / name / "tokenizer.model").write_bytes(b"pieces")
    (folder / "B" / "added_tokens.json").write_text('{"<x>": 7}')


BAD = {
    "NaN": (
        lambda f: poison(f / "B", float("nan")),
        r"B: model.layers.1.mlp.up_proj.weight holds NaN or infinity \(1 of",
    ),
    "infinity": (lambda f: poison(f / "A", float("-inf")), r"A: model.layers.1.mlp.up_proj.weight holds NaN"),
    "another tensor": (lambda f: change_tensors(f / "B", extra=torch.ones(1)), r"1 only in .*B \(extra\)"),
    "another shape": (
        lambda f: change_tensors(f / "B", lm_head__weight=torch.ones(8, 4).bfloat16()),
        r"lm_head.weight has shape \[7, 4\] in .*A, \[8, 4\] in .*B",
    ),
    "integers": (lambda f: change_tensors(f / "B", lm_head__weight=torch.ones(7, 4).int()), "lm_head.weight is"),
    "another vocabulary": (
        lambda f: change_config(f / "B", vocab_size=8),
        "differ in vocab_size of config.json: 7, 8",
    ),
    "other heads": (lambda f: change_config(f / "B", num_attention_heads=1), "differ in num_attention_heads"),
    "another tokenizer": (different_tokenizers, r"different tokenizers \(tokenizer.json\)"),
    "one tokenizer": (lambda f: tokenizer(f / "A"), r"A has the tokenizer files tokenizer.json, .*B has none"),
    "another slow tokenizer": (
        different_slow_tokenizers,
        r"A has the tokenizer files tokenizer.model, .*B has added_tokens.json, tokenizer.model",
    ),
    "another rotary base": (
        lambda f: [change_config(f / "A", rope_theta=1e4), change_config(f / "B", rope_theta=1e6)],
        "differ in rope_theta of config.json",
    ),
    "tied in one": (lambda f: change_config(f / "B", tie_word_embeddings=True), "differ in tie_word_embeddings"),
    "one directory under two names": (
        lambda f: [shutil.rmtree(f / "B"), (f / "B").symlink_to(f / "A")],
        "A and .*B are one directory",
    ),
    "an output that cannot be read": (
        lambda f: [(f / "merged").mkdir(), (f / "merged" / STATE).write_text("{")],
        r"merge_state.json: cannot be read .*; remove .*merged and merge again",
    ),
    "truncated": (
        lambda f: (f / "B" / "model.safetensors").write_bytes((f / "B" / "model.safetensors").read_bytes()[:-1]),
        "B/model.safetensors: truncated",
    ),
    "no such directory": (lambda f: (f / "B").rename(f / "C"), "B: no such directory"),
    "no weights": (
        lambda f: (f / "B" / "model.safetensors").unlink(),
        "B: holds neither safetensors weights",
    ),
    "full output": (lambda f: (f / "merged").mkdir() or (f / "merged" / "x").touch(), "no merge made it"),
    "output is a file": (lambda f: (f / "merged").touch(), "no merge made it"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(three, case):
    spoil, message = BAD[case]
    config = average("A", "B")
    text = yaml.safe_dump(config).replace("model: A\n", f"model: {three / 'A'}\n")
    spoil(three)
    (three / "merge.yml").write_text(text.replace("model: B\n", f"model: {three / 'B'}\n"))
    with pytest.raises(ValueError, match=message):
        run_merge(plan_merge(load_merge_config(three / "merge.yml"), three / "merged"))
    assert not (three / "merged" / RECORD).exists()


def test_what_the_first_model_does_not_say_is_compared_between_the_others(three):
    (three / "BASE" / "config.json").write_text("{}")
    change_config(three / "B", num_attention_heads=1)
    with pytest.raises(ValueError, match="A and .*B differ in num_attention_heads of config.json: 2, 1"):
        plan(three, average("BASE", "A", "B"))


def test_tokenizers_may_differ_in_what_changes_no_id(three):
    tokenizer(three / "A", padding=None)
    tokenizer(three / "B", padding={"length": 3}, truncation=None)
    run_merge(plan(three, average("A", "B")))
    assert (three / "merged" / "tokenizer.json").read_bytes() == (three / "A" / "tokenizer.json").read_bytes()


def test_values_that_do_not_fit_are_named(tmp_path):
    for name, tensors in zip(NAMES, random_models("llama", torch.float32, 2), strict=False):
        write_model(tmp_path / name, {key: tensor * 1e5 for key, tensor in tensors.items()})
    with pytest.raises(ValueError, match=r"do not fit torch.float16; set out_dtype"):
        merged(tmp_path, average("BASE", "A") | {"out_dtype": "float16"})


def test_too_little_disk_is_seen_before_the_start(three, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5_000_000})())
    with pytest.raises(ValueError, match=r"merged: the result needs \d+ MB, 5 MB are free"):
        plan(three, average("A", "B"))
    assert not (three / "merged").exists()


def test_too_little_memory_is_named(three):
    with pytest.raises(ValueError, match="0 MiB of memory are too little for 2 models; give at least 1"):
        plan(three, average("A", "B"), memory_mib=0)
