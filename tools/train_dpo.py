"""Preference optimization of a language model from one YAML file, at any parallel layout.

Examples:
    python tools/train_dpo.py examples/tiny_cpu/dpo.yaml
    torchrun --nproc-per-node 8 tools/train_dpo.py run.yaml dpo.loss=ipo dpo.beta=0.05 dpo.loss_mask=all

Run the same command again after an interruption: it continues at the newest complete checkpoint.
Exit codes: 0 done, 1 the run failed, 2 wrong settings or files, 130 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
import sys

from megatron_aqaa.config import load_config
from megatron_aqaa.training.dpo import train_dpo
from megatron_aqaa.training.dpo_config import DPOTrainConfig


def main() -> int:
    """Parse, load, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="section.field=value")
    arguments = parser.parse_args()
    try:
        train_dpo(load_config(DPOTrainConfig, arguments.config, arguments.overrides))
    except ValueError as error:
        print(f"train_dpo: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"train_dpo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"train_dpo: {error}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
