"""`python -m maskclip.data.prepare SET --from DIR --to DIR`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from maskclip.data.prepare import PREPARATIONS


def main() -> None:
    """Prepare one set; what is wrong with the downloads is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m maskclip.data.prepare", description=__doc__)
    parser.add_argument("set", choices=PREPARATIONS)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of the downloads")
    parser.add_argument("--to", dest="target", type=Path, default=Path("data/paper"), help="the data folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    arguments = parser.parse_args()
    try:
        counts = PREPARATIONS[arguments.set](arguments.source, arguments.target, workers=arguments.workers)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(", ".join(f"{name}: {count:,}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
