"""`python -m study.report results reports`"""

from __future__ import annotations

import argparse
import sys

from study.report import build_report


def main(arguments: list[str] | None = None) -> int:
    """Build the report; 0, or 1 after one sentence on stderr about what is wrong with the results."""
    parser = argparse.ArgumentParser(prog="python -m study.report", description="Tables, claims, charts, one page.")
    parser.add_argument("results", help="folder of the study's results")
    parser.add_argument("reports", help="folder to write to")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these (default: all there are)")
    parser.add_argument("--reasons", help="YAML file of reasons for claims (default: REPORTS/reasons.yaml)")
    given = parser.parse_args(arguments)
    try:
        page = build_report(given.results, given.reports, given.seeds, given.reasons)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
