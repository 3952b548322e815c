"""Converts checkpoints: Hugging Face safetensors to a run that can be trained and back, or to another parallel layout.

    python tools/convert_checkpoint.py import Step-Audio-Chat runs/step1 --tensor-parallel 8 --pipeline-parallel 2
    python tools/convert_checkpoint.py import Qwen2-1.5B runs/qwen --add-audio-tokens
    python tools/convert_checkpoint.py reshard runs/step1 runs/step1_tp4 --tensor-parallel 4
    python tools/convert_checkpoint.py export runs/sft exported --like runs/step1
    python tools/convert_checkpoint.py verify exported Step-Audio-Chat

Tensors are streamed; the same command goes on after an interruption. See docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron_aqaa.checkpoint.conversion.description import describe_plan
from megatron_aqaa.checkpoint.conversion.export_huggingface import ExportOptions, plan_export
from megatron_aqaa.checkpoint.conversion.import_huggingface import ImportOptions, plan_import
from megatron_aqaa.checkpoint.conversion.inspect_checkpoint import describe_checkpoint
from megatron_aqaa.checkpoint.conversion.plan import Conversion
from megatron_aqaa.checkpoint.conversion.reshard import plan_reshard
from megatron_aqaa.checkpoint.conversion.run import DEFAULT_MEMORY_MIB, in_mib, run_conversion
from megatron_aqaa.checkpoint.conversion.verify import check_recorded, compare
from megatron_aqaa.platform import ParallelConfig
from megatron_aqaa.training.progress import Progress

OPTIONS: dict[str, dict[str, Any]] = {
    **{key: {"type": Path} for key in ("source", "output", "path")},
    "other": {"type": Path, "nargs": "?", "help": "to compare with; without it, compare with the recorded checksums"},
    "--memory": {"type": int, "default": DEFAULT_MEMORY_MIB, "metavar": "MIB", "help": "most memory for tensors"},
    "--shard-size": {"type": int, "default": 2048, "metavar": "MIB", "help": "about the size of an output file"},
    "--dry-run": {"action": "store_true", "help": "print the plan and write nothing; import then needs no weights"},
    "--dtype": {"choices": ["bfloat16", "float16", "float32"], "help": "default: as stored"},
    "--tensor-parallel": {"type": int, "default": 1, "help": "ranks that share each matrix"},
    "--pipeline-parallel": {"type": int, "default": 1, "help": "ranks that share the layers"},
    "--virtual-pipeline": {"type": int, "help": "stages per rank, for the interleaved schedule"},
    "--add-audio-tokens": {"action": "store_true", "help": "grow the vocabulary of a text model"},
    "--audio-base": {"type": int, "metavar": "ID", "help": "of <audio_0>; default: behind the text model's rows"},
    "--vocabulary": {"type": Path, "metavar": "YAML", "help": "what the ids of the model mean"},
    "--seed": {"type": int, "default": 0, "help": "of new rows"},
    "--keep-extra": {"action": "store_true", "help": "keep tensors aside that the model has no place for"},
    "--like": {"type": Path, "help": "imported run or Hugging Face directory whose configuration and files are taken"},
    "--own-model-code": {"action": "store_true", "help": "put our transformers model of Step-1 beside the weights"},
}
WRITE = "source output --memory --shard-size --dry-run"
LAYOUT = "--tensor-parallel --pipeline-parallel --virtual-pipeline"
GROWTH = "--add-audio-tokens --audio-base --vocabulary --seed --keep-extra"
VERBS = {
    "import": ("Hugging Face directory to run", f"{WRITE} {LAYOUT} --dtype {GROWTH}"),
    "export": ("run to Hugging Face directory", f"{WRITE} --dtype --like --own-model-code"),
    "reshard": ("run to the same for another layout", f"{WRITE} {LAYOUT}"),
    "inspect": ("print what a checkpoint holds", "path"),
    "verify": ("compare two checkpoints, or one with its checksums", "path other"),
}


def main() -> int:
    """Parse, plan, convert; what went wrong goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, (text, options) in VERBS.items():
        subparser = verbs.add_parser(verb, help=text)
        for option in options.split():
            subparser.add_argument(option, **OPTIONS[option])
    try:
        return run(parser.parse_args())
    except ValueError as error:
        message, code = str(error), 2
    except OSError as error:
        message, code = f"{error}; run the same command to continue", 1
    except KeyboardInterrupt:
        message, code = "interrupted; run the same command to continue", 130
    print(f"convert_checkpoint: {message}", file=sys.stderr)
    return code


def run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "inspect":
        print("\n".join(describe_checkpoint(arguments.path)))
        return 0
    if arguments.verb == "verify":
        return verify(arguments.path, arguments.other)
    conversion = plan(arguments)
    print("\n".join(describe_plan(conversion, with_files=arguments.dry_run)))
    if not arguments.dry_run:
        with Progress("MiB", conversion.num_bytes >> 20) as progress:
            run_conversion(conversion, arguments.memory, on_progress=in_mib(progress.update))
        print(f"{conversion.output}: written")
    return 0


def plan(arguments: argparse.Namespace) -> Conversion:
    """What to write, from the options of a verb."""
    source, output, given = arguments.source, arguments.output, vars(arguments)
    shard_bytes = arguments.shard_size << 20
    if arguments.verb == "export":
        how = ExportOptions(given["like"], given["dtype"], given["own_model_code"], shard_bytes)
        return plan_export(source, output, how)
    parallel = ParallelConfig(given["tensor_parallel"], given["pipeline_parallel"], given["virtual_pipeline"])
    if arguments.verb == "reshard":
        return plan_reshard(source, output, parallel, shard_bytes)
    chosen = {name: given[name] for name in ("dtype", *GROWTH.replace("--", "").replace("-", "_").split())}
    options = ImportOptions(parallel, shard_bytes=shard_bytes, **chosen)
    return plan_import(source, output, options, weights_needed=not arguments.dry_run)


def verify(path: Path, other: Path | None) -> int:
    if other is None:
        print(f"{path}: {check_recorded(path):,} bytes are what was written")
        return 0
    print(found := compare(path, other))
    return 0 if found.worst is None else 3


if __name__ == "__main__":
    sys.exit(main())
