"""The command `convnextv2`, or one sentence where what it is made of is not installed."""

import sys

from convnextv2 import MissingExtra, require


def main() -> int:
    """Start `pipelines.cli`, whose imports are many."""
    try:
        require("train", needed_by="the command convnextv2")
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from pipelines.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
