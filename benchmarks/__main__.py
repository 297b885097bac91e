"""Dispatch: ``python -m benchmarks conv2d ...`` runs ``bench_conv2d.main``."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

PREFIX = "bench_"


def names() -> list[str]:
    """The benchmarks in this folder."""
    modules = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name.removeprefix(PREFIX).replace("_", "-") for name in modules if name.startswith(PREFIX))


def main(arguments: list[str]) -> int:
    """Run the benchmark named first; exit status 2 if there is none of that name."""
    known = names()
    if not arguments or arguments[0] not in known:
        wanted = f"no benchmark {arguments[0]!r}; " if arguments and not arguments[0].startswith("-") else ""
        print(f"{wanted}usage: python -m benchmarks {{{','.join(known)}}} [--help]", file=sys.stderr)
        return 2
    module = importlib.import_module(f".{PREFIX}{arguments[0].replace('-', '_')}", __package__)
    return int(module.main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
