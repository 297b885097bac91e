"""``vggnet info``: how vggnet was built, what this machine has; or what is in a model file."""

from __future__ import annotations

import argparse
from typing import Any

import vggnet as vgg

from .common import add_command, begin, columns, print_json

EXAMPLES = """\
  vggnet info
  vggnet info model.safetensors
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "info",
        run,
        "How vggnet was built, what this machine has; or what is in a model file.",
        EXAMPLES,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model file to describe")


def one_line() -> str:
    """The facts of the build, for ``--version``."""
    facts = vgg._C.build_info()  # without opening CUDA's libraries
    cuda = "CUDA built" if vgg.cuda.is_built() else "no CUDA"
    return (
        f"vggnet {facts['version']} ({facts['isa']}, {facts['threads']} threads, {cuda}, {facts['compiler']})"
    )


def run(args: argparse.Namespace) -> int:
    begin(args)
    facts = model_facts(args) if args.model else vgg.build_info()
    if args.json:
        print_json(facts)
    else:
        print(columns([(name.replace("_", " "), text) for name, text in _lines(facts)]))
    return 0


def model_facts(args: argparse.Namespace) -> dict[str, Any]:
    from ..convert import open_model

    arguments, _ = open_model(args.model)
    model = vgg.load(args.model, device=args.device, precision="float32")  # which every device can
    return {
        "config": model.config,
        "parameters": model.num_parameters,
        "input": [model.input_size, model.input_size, model.in_channels],
        "classes": model.classes or model.num_classes,
        "preprocessing": model.preprocessing.to_dict(),
        "pool_rounding": model.pool_rounding,
        "precision": arguments.get("precision", "float32"),
        "layers": list(model.layer_names),
    }


def _lines(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (name, text) rows; a list of dicts takes a row each."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows += _lines(value, f"{prefix}{name} ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows += [(f"{prefix}{name}", ", ".join(f"{k} {v}" for k, v in item.items())) for item in value]
        else:
            text = (
                ", ".join(map(str, value))
                if isinstance(value, list | tuple)
                else f"{value:,}"
                if type(value) is int
                else str(value)
            )
            rows.append((f"{prefix}{name}", text))
    return rows
