"""Turn the recordings of a manifest or of WebDataset tars into audio tokens: `audio.bin/.idx`, sequence i for line i.

Examples:
    python tools/tokenize_audio.py examples/tiny_cpu/tokenize.yaml
    python tools/tokenize_audio.py examples/tiny_cpu/tokenize.yaml manifest=my/manifest.jsonl output=runs/mine/tokens
    python tools/tokenize_audio.py examples/speech/tokenize.yaml 'manifest=data/train-{000..031}.tar'
    python tools/tokenize_audio.py examples/tiny_cpu/tokenize.yaml shard=3/16
    python tools/tokenize_audio.py examples/tiny_cpu/tokenize.yaml merge=true num_shards=16

With `shard` it tokenizes that part of the recordings and stops; `shard=array` takes the number of the SLURM array task.
With `merge=true` it writes the data set that the shards have made, or names the shards that are missing. With neither
it tokenizes what is left and writes the data set. All ways give the same bytes.

A recording that cannot be used is set aside in `rejects.jsonl` with the reason, the others go on. `report.json` tells
hours, tokens, rejects and how the codebooks are used, `summary.html` shows it. Run the same command again after an
interruption: finished blocks are kept, and the result is the same to the last byte.
Exit codes: 0 done, 65 done but some recordings were rejected, 1 done but more were than `max_rejected_ratio` allows,
2 wrong settings or files, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from megatron_aqaa.config import load_config
from megatron_aqaa.data.audio_tokens import Tokenization, TokenizeConfig
from megatron_aqaa.platform.exit_status import after_rejects
from megatron_aqaa.training.progress import Progress


def main() -> int:
    """Parse, load, tokenize, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="field=value")
    arguments = parser.parse_args()
    try:
        config = load_config(TokenizeConfig, arguments.config, arguments.overrides)
        num_rejected, num_all = tokenize(config)
    except ValueError as error:
        print(f"tokenize_audio: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tokenize_audio: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    if config.part is not None:
        return 0
    print_report(config.output / "report.json")
    if num_rejected:
        found = f"{num_rejected} of {num_all} recordings rejected, see {config.output}/rejects.jsonl"
        print(f"tokenize_audio: {found}", file=sys.stderr)
    return after_rejects(num_rejected, num_all, config.max_rejected_ratio)


def tokenize(config: TokenizeConfig) -> tuple[int, int]:
    """Tokenize and, if this is no shard, write the data set; numbers of rejected recordings and of all."""
    work = Tokenization(config)
    if not config.merge:
        with Progress(work.source.unit_name, len(work.units)) as progress:
            work.prepare(progress.update)
        with Progress("recordings", work.num_recordings) as progress:
            work.tokenize(progress.update)
    return (work.merge() if config.part is None else 0), work.num_recordings


def print_report(path: Path) -> None:
    """Hours, tokens and the use of both codebooks."""
    report = json.loads(path.read_text())
    print(f"{report['hours']:.2f} h, {report['num_tokens']:,} tokens; see {path.with_name('summary.html')}")
    for name in ("linguistic", "semantic"):
        use = report[name]
        print(f"{name}: {use['used']} of {use['size']} codes, perplexity {use['perplexity']:.0f}")
        for split, accuracy in use.get("phone_accuracy", {}).items():
            print(f"  code → phone {accuracy:.3f} {split}")


if __name__ == "__main__":
    sys.exit(main())
