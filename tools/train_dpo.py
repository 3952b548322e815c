"""Preference optimization of a language model from one YAML file, at any parallel layout.

Examples:
    python tools/train_dpo.py examples/tiny_cpu/dpo.yaml
    torchrun --nproc-per-node 8 tools/train_dpo.py run.yaml dpo.loss=ipo dpo.beta=0.05 dpo.loss_mask=all

Run the same command again after an interruption: it continues at the newest complete checkpoint. On a SLURM cluster:
tools/launch_slurm.py.
Exit codes: 0 done, 1 the run failed, 2 wrong settings or files, 75 stopped by a signal after saving, 130 interrupted
before its first step.
"""

from __future__ import annotations

import sys

from megatron_aqaa.training.command import training_command
from megatron_aqaa.training.dpo.config import DPOTrainConfig
from megatron_aqaa.training.dpo.train import train_dpo

if __name__ == "__main__":
    sys.exit(training_command(__doc__, DPOTrainConfig, train_dpo))
