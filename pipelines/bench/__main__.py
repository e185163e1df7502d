"""`make bench`: the whole stack against bare PyTorch, printed and written as JSON."""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.bench.device import add_device_option, name_of
from pipelines.bench.results import add_output_options, origin, publish
from pipelines.bench.stack import Comparison, compare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="turns of every pair")
    add_device_option(parser)
    add_output_options(parser, "bench.json")
    options = parser.parse_args()
    started = {**origin(), "device": name_of(options.device)}
    with tempfile.TemporaryDirectory(prefix="convnextv2-bench-") as folder:
        compared = compare(Path(folder) / "stack", options.pairs, options.device)
    publish({**started, "stack": compared}, options, lambda: show(compared))


def show(compared: Comparison) -> None:
    """Print the figures as a table."""
    table = Table("benchmark", "figure", "value")
    table.add_row(
        compared["what"],
        "stack / bare PyTorch",
        f"{compared['stack_images_per_second']:,.0f} / "
        f"{compared['bare_images_per_second']:,.0f} images/s = {compared['ratio']:.3f}",
    )
    Console().print(table)


if __name__ == "__main__":
    main()
