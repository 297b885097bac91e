"""The command line: ``vggnet COMMAND``, also ``python -m vggnet COMMAND``. Each command is a module of this
package.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 after Ctrl-C, 141 when the reader of a pipe has gone.
Results go to the standard output, everything else to the standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from .. import VggError
from . import bench, convert, data, evaluate, features, info, predict, quickstart, train
from .common import Formatter, Interrupted, UsageError

COMMANDS = (quickstart, train, evaluate, predict, features, convert, data, bench, info)


class _Version(argparse.Action):
    """``--version``: the version and the facts of the build, on one line."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(info.one_line())
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="vggnet",
        description="VGG networks: trained and evaluated as the paper did (Simonyan and Zisserman, 2015).",
        epilog="Begin with: vggnet quickstart",
        formatter_class=Formatter,
    )
    top.add_argument(
        "--version", action=_Version, nargs=0, help="print the version and how it was built, and exit"
    )
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    status = _run(argv)
    if status in (1, 2):
        from ..parallel import abort

        abort(status)  # other processes of the run must not wait for this one
    return status


def _run(argv: Sequence[str] | None) -> int:
    top = parser()
    name = "vggnet"
    try:
        args = top.parse_args(argv)
        name = f"vggnet {args.command}"
        status = int(args.run(args) or 0)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"{name}: {error}\nSee: {name} --help", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(
            f"\n{name}: interrupted" + (f". {error}" if isinstance(error, Interrupted) else ""),
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # Python flushes the standard output once more at its exit; it must not find the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (
        VggError,
        ValueError,
        ImportError,
        OSError,
        MemoryError,
        ArithmeticError,
        NotImplementedError,
    ) as error:
        if os.environ.get("VGGNET_TRACEBACK"):
            raise
        print(f"{name}: {_message(error)}", file=sys.stderr)
        return 1


def _message(error: BaseException) -> str:
    """The error on one line, with a word on its kind where its text alone says too little."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return (
            f"out of memory{': ' + text if text else ''}; a smaller batch (--batch, --micro-batch) needs less"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return text or type(error).__name__
