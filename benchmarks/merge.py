"""Time and anonymous memory of merging three bfloat16 checkpoints 5:5:1: ours, plain PyTorch, mergekit.

    python benchmarks/merge.py
    python benchmarks/merge.py --layers 28 --mergekit path/to/mergekit-yaml

28 layers make 1.5B parameters (12 GB of disk for the time); the default is a quick look. Without mergekit its column is
left out; it wants an environment of its own. Files are in the page cache for all; they take turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from side_by_side import save

HIDDEN, FFN, HEADS, KV_HEADS, VOCABULARY = 1536, 8960, 12, 2, 151_936  # Qwen2-1.5B
FULL_LAYERS = 28
WEIGHTS = (5, 5, 1)
ROOT = Path(__file__).parents[1]
PLAIN = """
import pathlib, sys
from safetensors.torch import load_file, save_file
*models, output = map(pathlib.Path, sys.argv[1:])
output.mkdir()
for file in sorted(models[0].glob("*.safetensors")):
    parts = [load_file(model / file.name) for model in models]
    sums = {name: sum(w * part[name].float() for w, part in zip((5, 5, 1), parts)) for name in parts[0]}
    save_file({name: (total / 11).bfloat16() for name, total in sums.items()}, output / file.name)
"""


def shapes(layers: int) -> list[dict[str, tuple[int, ...]]]:
    """Tensors of each file: the tables, then seven layers at a time."""
    head = HIDDEN // HEADS
    files = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}]
    for layer in range(layers):
        if layer % 7 == 0:
            files.append({})
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", HIDDEN), ("k", KV_HEADS * head), ("v", KV_HEADS * head)):
            files[-1][f"{prefix}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            files[-1][f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        files[-1][f"{prefix}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        files[-1][f"{prefix}mlp.gate_proj.weight"] = files[-1][f"{prefix}mlp.up_proj.weight"] = (FFN, HIDDEN)
        files[-1][f"{prefix}mlp.down_proj.weight"] = (HIDDEN, FFN)
        for norm in ("input", "post_attention"):
            files[-1][f"{prefix}{norm}_layernorm.weight"] = (HIDDEN,)
    return files


def make_model(path: Path, seed: int, layers: int) -> int:
    """Random weights in several files; the number of parameters."""
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    files = shapes(layers)
    weight_map, count = {}, 0
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {
            key: torch.empty(shape, dtype=torch.bfloat16).uniform_(-1, 1, generator=generator)
            for key, shape in file.items()
        }
        save_file(tensors, path / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        count += sum(tensor.numel() for tensor in tensors.values())
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config))
    return count


def measure(command: list[str], output: Path) -> tuple[float, float]:
    """Seconds, and the most anonymous memory in MiB."""
    peak_kib = 0
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        with subprocess.Popen([*command, str(output)], stdout=said, stderr=said, cwd=ROOT) as process:
            while process.poll() is None:
                peak_kib = max(peak_kib, anonymous_kib(process.pid))
                time.sleep(0.01)
        seconds = time.perf_counter() - begin
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command[0]} failed: {said.read()}")
    shutil.rmtree(output)
    return seconds, peak_kib / 1024


def anonymous_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml"), help="the command to compare with")
    parser.add_argument("--layers", type=int, default=2, help=f"{FULL_LAYERS} for 1.5B parameters")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = [Path(folder) / f"model{index}" for index in range(len(WEIGHTS))]
        counts = [make_model(model, seed, arguments.layers) for seed, model in enumerate(models)]
        entries = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, WEIGHTS, strict=True)]
        config = Path(folder) / "merge.yml"
        config.write_text(yaml.safe_dump({"merge_method": "linear", "models": entries, "dtype": "bfloat16"}))
        commands = {"ours": [sys.executable, "tools/merge_checkpoints.py", str(config)]}
        commands["plain"] = [sys.executable, "-c", PLAIN, *map(str, models)]
        if arguments.mergekit:
            commands["mergekit"] = [arguments.mergekit, str(config)]
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(arguments.repeats):
            for name, command in commands.items():
                samples[name].append(measure(command, Path(folder) / "merged"))
                print(f"{name:9s} {samples[name][-1][0]:7.2f} s {samples[name][-1][1]:8.0f} MiB", flush=True)
    report("merge" if arguments.layers == FULL_LAYERS else "merge_small", samples, counts[0], arguments.output)


def report(title: str, samples: dict[str, list[tuple[float, float]]], parameters: int, output: Path | None) -> None:
    results = [
        {
            "name": name,
            "seconds": statistics.median(seconds for seconds, _ in values),
            "anonymous_mib": max(peak for _, peak in values),
        }
        for name, values in samples.items()
    ]
    ours, *others = results
    for other in others:
        other["times_ours"] = other["seconds"] / ours["seconds"]
        other["memory_times_ours"] = other["anonymous_mib"] / ours["anonymous_mib"]
        print(f"{other['name']}: {other['times_ours']:.2f} × the time, {other['memory_times_ours']:.2f} × the memory")
    save(title, output, results, parameters=parameters, repeats=len(next(iter(samples.values()))))


if __name__ == "__main__":
    main()
