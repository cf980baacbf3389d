"""What was judged of each picture, kept as it goes by any number of processes, so that a killed evaluation goes on."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from maskclip.files import settings_hash, write_atomically

SCORES = "scores.json"


class Judgements:
    """Plain values by a picture's place, in memory, or also in a folder: lines of JSON, a file for each writer.

    A line that a kill has cut off is left out. The folder belongs to one `identity`: what was there of another goes.
    """

    def __init__(self, folder: Path | None = None, identity: Mapping[str, Any] | None = None) -> None:
        self.found: dict[int, Any] = {}
        self.folder = self.file = None
        if folder is not None:
            self.folder = folder / settings_hash(identity or {})
            for former in {*folder.glob("*")} - {self.folder}:
                shutil.rmtree(former, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = self.folder / f"{os.getpid()}-{uuid4().hex[:8]}.jsonl"

    def keep(self, place: int, judged: Any) -> None:
        """What was judged of the picture at a place; on the disk when this returns."""
        self.found[place] = judged
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([place, judged]) + "\n")

    def read(self) -> dict[int, Any]:
        """All that is there, of all writers."""
        for file in sorted(self.folder.glob("*.jsonl")) if self.folder else ():
            if file == self.file:
                continue
            for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    place, judged = json.loads(line)
                    self.found[place] = judged
        return self.found

    @property
    def scores(self) -> dict[str, dict[str, float]] | None:
        """What `settle` was given before, if all was judged and added up already."""
        path = self.folder and self.folder / SCORES
        return json.loads(path.read_text()) if path and path.is_file() else None

    def settle(self, scores: dict[str, dict[str, float]]) -> None:
        """Keep what all judgements add up to, in their place."""
        if self.folder is not None:
            write_atomically(self.folder / SCORES, json.dumps(scores))
            for file in self.folder.glob("*.jsonl"):
                file.unlink()
