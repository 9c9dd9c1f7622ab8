"""Compare trained models: ``python -m src.compare RUN RUN ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from src.errors import ConfigError, ProjectError, StorageError
from src.foreign import printable

DESCRIPTION = """\
Compare runs: where their settings differ, their metrics with error bars, parameters and time.

Reads of every run config.yaml and evaluation.json (python -m src.evaluate ckpt_path=RUN), or
metrics.json where a run was not evaluated. Runs that differ in their seeds alone are pooled:
mean ± standard deviation. Numbers that were not measured alike are shown, but not ranked.

Prints a table and writes, to --output:
  comparison.md   the table with what is needed to trust it: context, commits, run directories
  comparison.csv  a row per setting, every metric as columns NAME and NAME_error
"""
EXAMPLES = """\
examples:
  python -m src.compare outputs/2026-11-21/10-39-54-vae-digits-07ab \
outputs/2026-11-21/10-52-10-ddpm-digits-19c2
  python -m src.compare outputs/2026-11-21/11-20-31-multirun-0071     # all runs of a sweep
  python -m src.compare 'outputs/2026-11-21/*ddpm*' --metric 'fid*' --metric 'bits*' \
--sort fid_classifier_360
"""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError instead of printing its usage, as all entry points do."""

    def error(self, message: str) -> NoReturn:
        """One line; ``--help`` says the rest."""
        raise ConfigError(f"{message} (see --help)")


def parser() -> Parser:
    """The command line of this entry point."""
    made = Parser(
        prog="python -m src.compare",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run directory, folder that holds runs (a multirun), or quoted pattern",
    )
    made.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="PATTERN",
        help="show only metrics that fit, e.g. 'fid*' or 'val/*'; may be given again "
        "(default: test/*)",
    )
    made.add_argument(
        "--sort", metavar="METRIC", help="order by this metric or cost, the best first"
    )
    made.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="of the files (default: .)"
    )
    return made


def run(arguments: Sequence[str]) -> None:
    """Compare the runs that the command line names; raises subclasses of ProjectError."""
    options = parser().parse_args(arguments)

    from src.comparison.comparison import compare
    from src.comparison.find import find_runs
    from src.comparison.output import show, write
    from src.report.table import terminal

    comparison = compare(find_runs(options.runs), options.metric, options.sort)
    files = write(comparison, options.output)
    show(comparison, terminal())
    print(printable(f"written to {' and '.join(map(str, files))}"))


def main() -> None:
    """Entry point of the command line."""
    try:
        run(sys.argv[1:])
    except ProjectError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # of a directory that cannot be looked into
        where = "" if error.filename is None else f": {error.filename}"
        print(f"error: {printable(error.strerror or error)}{printable(where)}", file=sys.stderr)
        sys.exit(StorageError.exit_code)


if __name__ == "__main__":
    main()
