"""Train a language model from one YAML file: pre-training, SFT, at any parallel layout.

Examples:
    torchrun --nproc-per-node 2 tools/train.py examples/tiny_cpu/sft.yaml
    torchrun --nproc-per-node 8 tools/train.py run.yaml optimizer.learning_rate=1e-5 training.steps=2000

Run the same command again after an interruption: it continues at the newest complete checkpoint. On a SLURM cluster:
tools/launch_slurm.py.
Exit codes: 0 done, 1 the run failed, 2 wrong settings or files, 75 stopped by a signal after saving, 130 interrupted
before its first step.
"""

from __future__ import annotations

import sys

from megatron_aqaa.training.command import training_command
from megatron_aqaa.training.lm_config import TrainConfig
from megatron_aqaa.training.train import train

if __name__ == "__main__":
    sys.exit(training_command(__doc__, TrainConfig, train))
