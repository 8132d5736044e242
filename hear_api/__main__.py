"""`python -m m2d_bench.hear_api --model MODEL …`: heareval's embeddings of a model, in a folder of its own.

heareval names its folder by module and options, and leaves out what it finds there: of two files that were written to
one path, or given as its own --model, the second would get the first one's embeddings.
"""

import argparse
import json
import sys
from inspect import signature
from pathlib import Path
from typing import Any

from m2d_bench.encoders.protocol import wrap
from m2d_bench.errors import M2DBenchError, describe
from m2d_bench.hear_api.api import load_model
from m2d_bench.registry import check_names, resolve


def main() -> None:
    """Runs heareval's runner with a folder that the model's digest names."""
    parser = argparse.ArgumentParser(
        prog="python -m m2d_bench.hear_api",
        description="Write a model's embeddings with heareval. Other options are those of heareval.embeddings.runner.",
    )
    parser.add_argument("--model", default="", help="any name of m2d-bench models")
    parser.add_argument("--model-options", type=_options, default={}, metavar="JSON", help="as heareval takes them")
    parser.add_argument(
        "--embeddings-dir", type=Path, default=Path("embeddings"), help="in it each model gets a folder"
    )
    known, others = parser.parse_known_args()
    options = {"model_file_path": known.model, **known.model_options}
    try:
        check_names("model option", options, signature(load_model).parameters)
        folder = known.embeddings_dir / wrap(load_model(**options).encoder).digest
    except M2DBenchError as error:
        sys.exit(f"ERROR: {describe(error)}")
    try:
        runner = resolve("heareval.embeddings.runner:runner")
    except ModuleNotFoundError as error:
        sys.exit(f"ERROR: heareval cannot run: there is no {error.name}. docs/hear.md says how to install it.")
    runner(["m2d_bench.hear_api", "--model-options", json.dumps(options), "--embeddings-dir", str(folder), *others])


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as '{{\"hop_ms\": 25}}'")
    return options


if __name__ == "__main__":
    main()
