"""A small file for each data set that is right, on which a pipeline depends in place of the set's many files."""

import json
from collections.abc import Iterable
from pathlib import Path

from maskclip.data.check import Finding
from maskclip.data.datasets import DATASETS, LEFT_OUT, open_dataset, read_left_out
from maskclip.files import write_atomically

FOLDER = "manifests"


def update_manifests(root: str | Path, findings: Iterable[Finding], into: str | Path | None = None) -> list[Path]:
    """Write `<name>.json` of each data set that `check_data` found right, into `root/manifests` or another folder;
    remove a faulty one's.

    A manifest holds the counts and the fingerprint, which changes with all that is read of the set. Where it says so
    already, the file is left alone. Before that, `root/left_out.json` is made to say which pictures all sets go
    without; what has been mended is taken back once all sets are looked at.

    Returns:
        The manifests of those that are right.
    """
    findings, left_out, known = list(findings), Path(root) / LEFT_OUT, read_left_out(root)
    wanted = {} if {finding.name for finding in findings} == set(DATASETS) else dict(known)
    for finding in findings:
        wanted |= finding.left_out
    if wanted != known:
        write_atomically(left_out, json.dumps(wanted, indent=1) + "\n")
    kept = []
    for finding in findings:
        path = Path(into or Path(root) / FOLDER) / f"{finding.name}.json"
        if finding.faults:
            path.unlink(missing_ok=True)
            continue
        dataset = open_dataset(finding.name, root)
        said = {"pictures": len(dataset), "categories": finding.categories}
        text = json.dumps(said | {"fingerprint": dataset.fingerprint()}, indent=1) + "\n"
        if not path.is_file() or path.read_text() != text:
            write_atomically(path, text)
        kept.append(path)
    return kept
