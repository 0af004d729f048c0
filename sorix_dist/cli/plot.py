"""`sorix-dist plot`: the curves of recorded runs, in the terminal or as a picture."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from sorix_dist.cli.parser import Parser
from sorix_dist.launch import LaunchError
from sorix_dist.train.plots import as_text, curves, draw


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Adds this subcommand."""
    parser = subparsers.add_parser(
        "plot",
        help="draw the curves of recorded runs",
        description="Draw loss, accuracy, throughput and whatever else runs have recorded with sx.Recorder.",
    )
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="a recorder's folder, or a folder of them")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="a PNG, PDF or SVG instead of the terminal")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="what to draw (default: everything)")
    parser.add_argument("--log", nargs="+", default=[], metavar="NAME", help="draw these on a logarithmic axis")
    parser.set_defaults(main=main)


def main(arguments: Any) -> int:
    """Draws and returns 0."""
    try:
        panels = curves(arguments.runs, arguments.metrics)
        if unknown := [name for name in arguments.log if name not in panels]:
            raise ValueError(f"--log: there is no panel {unknown[0]!r}; there is {', '.join(panels)}")
        if arguments.output is None:
            size = shutil.get_terminal_size((80, 24))
            print(as_text(panels, min(size.columns, 100), log=arguments.log))
        else:
            draw(panels, arguments.output, arguments.log)
            print(f"wrote {arguments.output}")
    except BrokenPipeError:  # as of `| head`
        raise
    except OSError as error:
        raise LaunchError(f"{error.strerror}: {error.filename}") from error
    except (ValueError, ImportError) as error:
        raise LaunchError(str(error)) from error
    return 0
