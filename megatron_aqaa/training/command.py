"""A training command: parse, load, run, and say by its exit status how that ended."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from megatron_aqaa.config import load_config
from megatron_aqaa.platform.exit_status import STOPPED

C = TypeVar("C")


def training_command(description: str, config_class: type[C], run: Callable[[C], None]) -> int:
    """Run `CONFIG.yaml [section.field=value …]` of the command line.

    Args:
        description: text for `--help`.
        config_class: what the YAML file is read into.
        run: trains; ends by KeyboardInterrupt with a message where it was stopped and has saved.

    Returns:
        0 done, 1 the run failed, 2 wrong settings or files, 75 stopped by a signal after saving, 130 interrupted
        before there was anything to save.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="section.field=value")
    arguments = parser.parse_args()
    try:
        run(load_config(config_class, arguments.config, arguments.overrides))
    except ValueError as error:
        message, status = str(error), 2
    except FloatingPointError as error:
        message, status = str(error), 1
    except KeyboardInterrupt as error:  # Python's own has no message
        message, status = (str(error), STOPPED) if error.args else ("interrupted; run the same command again", 130)
    else:
        return 0
    print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr)
    return status
