"""Evaluation in shares: one or three processes, killed or not, come to the same table to the last bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from maskclip.data import open_dataset
from maskclip.evaluation.judgements import Judgements
from maskclip.evaluation.tasks import add_up, evaluate, judge, tasks_of
from maskclip.model.clip import load_clip
from maskclip.model.pipeline import MaskCLIP
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import ground_truth_proposals
from maskclip.settings import Evaluation
from miniature.datasets import write_world
from study.run import launch

TOP = Path(__file__).parent.parent
SETTINGS = Evaluation(limit=None, object_mask_threshold=0.3, overlap_threshold=0.5, top_k=100, objectness_power=0.0)


def parts(root: Path) -> tuple[Any, ...]:
    """Five pictures, which 3 does not divide, under every annotation that the table of data sets knows."""
    pictures = open_dataset("a150", root)
    tasks = {
        **tasks_of("a150", lambda name: open_dataset(name, root)),
        **tasks_of("a847", lambda n: open_dataset(n, root)),
    }
    clip = load_clip(TOP / "models" / "mini_clip")
    model = MaskCLIP(clip, MaskCLIPVisualEncoder.from_open_clip(clip.model, ()))
    proposals = {i: ground_truth_proposals(pictures.annotation(i)) for i in pictures.image_ids}
    return model, pictures, proposals, list(tasks.values())


def share(root: Path, folder: Path) -> None:
    part = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    judge(*parts(root), SETTINGS, ("{}",), Judgements(folder, {"of": "these"}), part)


def table(root: Path, folder: Path) -> list[dict[str, float]]:
    _, pictures, _, tasks = parts(root)
    add_up(tasks, Judgements(folder, {"of": "these"}), len(pictures))
    return [task.compute() for task in tasks]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=1, coco_train=1, coco_val=1, ade=5, pascal=1, lvis=1)
    return folder


@pytest.fixture(scope="module")
def expected(root: Path) -> str:
    model, pictures, proposals, tasks = parts(root)
    evaluate(model, pictures, proposals, tasks, SETTINGS)
    return json.dumps([task.compute() for task in tasks])


@pytest.mark.parametrize("processes", [1, 3])
def test_any_number_of_processes_gives_the_same_table(
    root: Path, expected: str, processes: int, tmp_path: Path
) -> None:
    launch(share, (root, tmp_path), processes)
    assert len(list(tmp_path.rglob("*.jsonl"))) == processes
    assert json.dumps(table(root, tmp_path)) == expected


def test_a_killed_evaluation_goes_on_where_it_was(root: Path, expected: str, tmp_path: Path, monkeypatch: Any) -> None:
    share(root, tmp_path)
    (file,) = tmp_path.rglob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])  # as a kill in the third leaves it
    with pytest.raises(ValueError, match="3 of 5 pictures were not judged; run again, it goes on"):
        table(root, tmp_path)
    seen = []
    embed = MaskCLIP.embed
    monkeypatch.setattr(MaskCLIP, "embed", lambda self, *given: seen.append(given) or embed(self, *given))
    share(root, tmp_path)
    assert len(seen) == 3 and json.dumps(table(root, tmp_path)) == expected
    judgements, scores = Judgements(tmp_path, {"of": "these"}), {"a150": {"PQ": 12.5}}
    assert judgements.scores is None
    judgements.settle(scores)
    assert Judgements(tmp_path, {"of": "these"}).scores == scores and not list(tmp_path.rglob("*.jsonl"))
    assert Judgements(tmp_path, {"of": "others"}).scores is None and not judgements.folder.exists(), "others' go"
