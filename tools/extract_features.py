"""Compute filter banks, phone labels and pitch of a speech manifest, once, for both tokenizer trainers.

Examples:
    python tools/extract_features.py examples/tiny_cpu/features.yaml
    python tools/extract_features.py examples/tiny_cpu/features.yaml manifest=my/manifest.jsonl output=my/features

Run the same command again after an interruption: finished utterances are kept.
Exit codes: 0 done, 2 wrong settings or files, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys

from megatron_aqaa.config import load_config
from megatron_aqaa.data.speech_sources import audio_paths
from megatron_aqaa.tokenizer.feature_extraction import FeatureConfig, write_features
from megatron_aqaa.training.progress import Progress


def main() -> int:
    """Parse, load, compute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="field=value")
    arguments = parser.parse_args()
    try:
        config = load_config(FeatureConfig, arguments.config, arguments.overrides)
        with Progress("features", len(audio_paths(config.manifest))) as progress:
            store = write_features(config, progress.update)
    except ValueError as error:
        print(f"extract_features: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("extract_features: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    print(
        f"{config.output}: {len(store)} utterances, {store.lengths.sum() / 360_000:.2f} h, {len(store.phones)} phones"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
