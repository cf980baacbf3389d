"""`python -m study.report`: the results of the profile of params.yaml into reports/."""

from __future__ import annotations

import argparse
from pathlib import Path

from study import errors_as_sentences
from study.params import deviations, load_params, load_study
from study.report import build_report


def main(arguments: list[str] | None = None) -> None:
    """Build the report, or end with one sentence about what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m study.report", description="Tables, claims, charts, one page.")
    parser.add_argument("results", nargs="?", help="a profile's results (default: results/<profile of params.yaml>)")
    parser.add_argument("reports", nargs="?", default="reports", help="folder to write to (default: reports)")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these (default: all there are)")
    parser.add_argument("--reasons", help="YAML file of reasons for claims (default: REPORTS/reasons.yaml)")
    parser.add_argument("--also", nargs="+", default=[], choices=["svg", "pdf"], help="more formats of the charts")
    given = parser.parse_args(arguments)
    with errors_as_sentences():
        results = given.results or f"results/{load_params()[0]['profile']}"
        profile = Path(results).name
        departures = deviations(load_study(profile)) if Path("configs", f"{profile}.yaml").is_file() else []
        said = {"departures": departures, "also": given.also}
        print(f"wrote {build_report(results, given.reports, given.seeds, given.reasons, **said)}")


if __name__ == "__main__":
    main()
