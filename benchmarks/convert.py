"""Time and anonymous memory of converting the 3B Step-1: import, reshard TP1 → TP8×PP2, export, each beside `cp`.

    python benchmarks/convert.py
    python benchmarks/convert.py --layers 32 --folder path/on/the/disk/to/measure

32 layers make the released 3B (7.06 GB of bfloat16, random weights in the released file layout; needs 29 GB of disk for
the time); the default is a quick look. A verb and a `cp --reflink=never` of what it wrote take turns, each followed by
`sync`. Checksums are part of every verb: of what is read, where it has any, and of what is written.
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
from collections.abc import Iterator
from pathlib import Path

import torch
from merge import anonymous_kib
from safetensors.torch import save_file
from side_by_side import save

from megatron_aqaa.checkpoint.conversion.families import read_config
from megatron_aqaa.checkpoint.mapping import huggingface_shapes

ROOT = Path(__file__).parents[1]
FULL_LAYERS = 32
FILE_BYTES = 2 << 30
SAMPLE_ELEMENTS = 1 << 24


def configuration(layers: int) -> dict[str, object]:
    """The released 3B."""
    return {
        "architectures": ["Step1ForCausalLM"],
        "model_type": "step1",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": layers,
        "num_attention_heads": 48,
        "num_attention_groups": 4,
        "max_seq_len": 32768,
        "vocab_size": 74752,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def make_model(path: Path, layers: int) -> int:
    """Write random weights in files of at most 2 GiB; the number of parameters."""
    path.mkdir()
    config = configuration(layers)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    described = read_config(config, "benchmark")
    shapes = huggingface_shapes(described.model, described.vocabulary_rows)
    groups = list(_groups(shapes))
    # Numbers repeat from tensor to tensor, at other places: random ones take a minute.
    sample = torch.empty(SAMPLE_ELEMENTS, dtype=torch.bfloat16).normal_(0, 0.02)
    weight_map, start = {}, 0
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name in names:
            start = (start + 1_000_003) % SAMPLE_ELEMENTS
            size = torch.Size(shapes[name]).numel()
            repeats = -(-(start + size) // SAMPLE_ELEMENTS)
            tensors[name] = sample.repeat(repeats)[start : start + size].view(shapes[name]).clone()
        save_file(tensors, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _groups(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + 2 * torch.Size(shape).numel() > FILE_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * torch.Size(shape).numel()
    yield names


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds, with the `sync` that follows, and the most anonymous memory in MiB."""
    peak_kib = 0
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=said, stderr=said, cwd=ROOT) as process:
            while process.poll() is None:
                peak_kib = max(peak_kib, anonymous_kib(process.pid))
                time.sleep(0.01)
        subprocess.run(["sync"], check=True)
        seconds = time.perf_counter() - begin
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command} failed: {said.read()}")
    return seconds, peak_kib / 1024


def verb_beside_copy(name: str, command: list[str], output: Path, repeats: int) -> dict[str, object]:
    """Medians of a verb and of copying what it writes; the last output stays."""
    verbs, copies, peaks = [], [], []
    copy = output.with_name("copy")
    for turn in range(repeats):
        if turn:
            shutil.rmtree(output)
        seconds, peak = measure(command)
        verbs.append(seconds)
        peaks.append(peak)
        copies.append(measure(["cp", "-r", "--reflink=never", str(output), str(copy)])[0])
        shutil.rmtree(copy)
        print(f"{name:8s} {verbs[-1]:7.1f} s {peaks[-1]:7.0f} MiB   cp {copies[-1]:7.1f} s", flush=True)
    verb, copied = statistics.median(verbs), statistics.median(copies)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{name}: {verb / copied:.2f} × cp, {max(peaks):.0f} MiB, {size / 1e9:.2f} GB", flush=True)
    return {
        "name": name,
        "seconds": verb,
        "cp_seconds": copied,
        "times_cp": verb / copied,
        "anonymous_mib": max(peaks),
        "bytes": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help=f"{FULL_LAYERS} for the released 3B")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary one")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    arguments = parser.parse_args()
    tool = [sys.executable, "tools/convert_checkpoint.py"]
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, run, shards, exported = (Path(folder) / name for name in ("source", "run", "shards", "exported"))
        parameters = make_model(source, arguments.layers)
        subprocess.run(["sync"], check=True)
        layout = ["--tensor-parallel", "8", "--pipeline-parallel", "2"]
        results = []
        for name, command, output in (
            ("import", ["import", str(source), str(run)], run),
            ("reshard", ["reshard", str(run), str(shards), *layout], shards),
            ("export", ["export", str(shards), str(exported)], exported),
        ):
            results.append(verb_beside_copy(name, [*tool, *command], output, arguments.repeats))
            if name == "reshard":
                shutil.rmtree(run)
        same = all((exported / path.name).read_bytes() == path.read_bytes() for path in source.iterdir())
        print(f"exported files equal the source's byte by byte: {same}")
    title = "convert" if arguments.layers == FULL_LAYERS else "convert_small"
    save(title, arguments.output, results, parameters=parameters, repeats=arguments.repeats, byte_equal=same)


if __name__ == "__main__":
    main()
