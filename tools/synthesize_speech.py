"""Make the miniature's spoken questions and answers with espeak-ng: wave files and a manifest.

Examples:
    python tools/synthesize_speech.py examples/tiny_cpu/speech.yaml --output runs/demo/speech
    python tools/synthesize_speech.py examples/tiny_cpu/speech.yaml --output runs/mine/speech num_train=500 seed=1

Run the same command again after an interruption: finished utterances are kept.
Exit codes: 0 done, 1 no speech engine on this machine, 2 wrong settings, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_aqaa.audio.synthetic import SpeechEngineError
from megatron_aqaa.config import load_config
from megatron_aqaa.data.speech_corpus import SpeechCorpusConfig, synthesize_corpus
from megatron_aqaa.data.speech_script import write_script
from megatron_aqaa.training.progress import Progress


def main() -> int:
    """Parse, load, synthesize, say where the manifest is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file with the size and content of the corpus")
    parser.add_argument("overrides", nargs="*", help="field=value, section.field=value")
    parser.add_argument("--output", type=Path, default=Path("runs/demo/speech"), help="folder (default: %(default)s)")
    arguments = parser.parse_intermixed_args()
    try:
        config = load_config(SpeechCorpusConfig, arguments.config, arguments.overrides)
        with Progress("utterances", len(write_script(config))) as progress:
            manifest = synthesize_corpus(config, arguments.output, progress.update)
    except ValueError as error:
        print(f"synthesize_speech: {error}", file=sys.stderr)
        return 2
    except SpeechEngineError as error:
        print(f"synthesize_speech: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("synthesize_speech: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    print(manifest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
