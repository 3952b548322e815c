"""Merge models by one YAML file in mergekit's form, in constant memory.

Examples:
    python tools/merge_checkpoints.py examples/merge_5_5_1.yml runs/merged
    python tools/merge_checkpoints.py merge.yml merged-hf --memory 256

Models are Hugging Face directories with safetensors, or torch_dist checkpoints (or runs: their newest checkpoint) of
any parallel layout; the result is of the same kind. Only weights are merged. What is merged how, and what is refused:
docs/merge.md. Run the same command again after an interruption: finished files are kept; if an input or the
configuration has changed, it starts anew. `merge_record.json` in the output tells inputs, weights and versions.
Exit codes: 0 done, 1 the disk failed, 2 wrong settings or models, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.checkpoint.merge.config import load_merge_config
from megatron_aqaa.checkpoint.merge.plan import MergePlan, plan_merge
from megatron_aqaa.checkpoint.merge.run import run_merge
from megatron_aqaa.training.progress import Progress


def main() -> int:
    """Parse, check, merge, say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file, as for mergekit")
    parser.add_argument("output", type=Path, help="directory of the result: new, empty, or of an interrupted merge")
    parser.add_argument("--root", type=Path, help="folder that the models' paths start from (default: the current one)")
    parser.add_argument("--memory", type=int, default=768, metavar="MIB", help="most memory for tensors (default 768)")
    parser.add_argument("--seed", type=int, default=0, help="of dare_linear and dare_ties (default 0)")
    arguments = parser.parse_args()
    try:
        config = load_merge_config(arguments.config)
        config = config.below(arguments.root) if arguments.root else config
        plan = plan_merge(config, arguments.output, arguments.memory, arguments.seed)
        print_plan(plan)
        with Progress("MiB", _mib(plan.total_bytes), _mib(plan.done_bytes)) as progress:
            record = run_merge(plan, lambda done_bytes: show(progress, done_bytes))
    except ValueError as error:
        print(f"merge_checkpoints: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"merge_checkpoints: {error}; run the same command to continue", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("merge_checkpoints: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    print(f"{arguments.output}: {record['num_tensors']} tensors, {record['num_bytes'] / 1e9:.2f} GB")
    return 0


def print_plan(plan: MergePlan) -> None:
    """What is about to happen, above all what the user might not expect."""
    print(f"{plan.config.merge_method}: {', '.join(model.path for model in plan.models)}")
    for model in plan.models:
        if model.left_out:
            print(f"  {model.path}: weights only, without its {', '.join(model.left_out)}")
    if plan.is_complete:
        print(f"  {plan.output} is this merge already; nothing is left to do")
    elif plan.done:
        print(f"  continues: {len(plan.done)} of {len(plan.files)} files are done")
    elif plan.replaced:
        print("  starts anew: inputs or configuration have changed since")


def show(progress: Progress, done_bytes: int) -> None:
    """Blocks are small: most of them end within the same MiB."""
    if _mib(done_bytes) > progress.done:
        progress.update(_mib(done_bytes))


def _mib(num_bytes: int) -> int:
    return num_bytes >> 20


if __name__ == "__main__":
    sys.exit(main())
