"""Tasks: which words they ask for, and which of them they keep."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskclip.data import Category, Dataset, Sample
from maskclip.evaluation.tasks import InstanceTask, SemanticTask
from maskclip.model.pipeline import NamedMasks
from maskclip.settings import Evaluation
from study.run import Run

EVALUATION = Evaluation(limit=None, object_mask_threshold=0.3, overlap_threshold=0.5, top_k=10, objectness_power=0.0)
PANOPTIC = [Category(0, "wall", False), Category(4, "airplane", True), Category(7, "windowpane", True)]


def instance_set(*categories: Category) -> Dataset:
    sample = Sample(1, "", np.zeros((4, 4, 3), np.uint8), [])
    return Dataset("toy", list(categories), [1], lambda _: sample, lambda _: [], Path())


def test_another_sets_categories_are_known_by_their_ids():
    """As ADE20K's two files, which call one class windowpane and `window `."""
    dataset = instance_set(Category(7, "window ", True), Category(4, "plane", True))
    task = InstanceTask(dataset, categories=PANOPTIC)
    assert task.names == ["wall", "airplane", "windowpane"]
    logits = torch.full((3, 4, 4), 5.0)
    task.update(NamedMasks(torch.eye(3), logits, (4, 4)), 1, EVALUATION)
    best = [result["category_id"] for result in task.results if result["score"] > 0.9]
    assert sorted(best) == [4, 7]


@pytest.mark.parametrize("lost", [Category(0, "wall", True), Category(9, "bed", True)])
def test_ids_that_do_not_fit_are_one_sentence(lost: Category):
    with pytest.raises(ValueError, match=f"'{lost.name}' has the id {lost.id}, which is no thing"):
        InstanceTask(instance_set(lost), categories=PANOPTIC)


def test_semantic_words_are_another_sets_of_the_same_ids():
    """As ADE20K's "building, edifice", which its panoptic file calls "building"."""
    full = [Category(0, "wall", False), Category(1, "building, edifice", False)]
    dataset = Dataset("toy", full, [], lambda _: None, lambda _: [], Path())
    short = [Category(0, "wall", False), Category(1, "building", False)]
    assert SemanticTask(dataset, short).names == ["wall", "building"]
    assert SemanticTask(dataset).names == ["wall", "building, edifice"]
    with pytest.raises(ValueError, match="ids are not those of the panoptic annotation"):
        SemanticTask(dataset, short[::-1])


def test_words_choose_among_the_sets_own_names():
    dataset = instance_set(Category(3, "cat", True), Category(5, "dog", True))
    assert InstanceTask(dataset).own_class == [0, 1]
    assert InstanceTask(dataset, ["dog", "tree"]).own_class == [1, None]


def test_sets_of_the_same_picture_files_are_run_as_one(tmp_path: Path):
    """As the mini world's A-150 and A-847; ADE20K's own have equal names, but not equal files."""
    sizes = {"a150": [3, 4], "a847": [3, 4], "p59": [3], "lvis": [3, 5]}
    for name, lengths in sizes.items():
        (tmp_path / name).mkdir()
        for index, length in enumerate(lengths):
            (tmp_path / name / f"{index}.jpg").write_bytes(bytes(length))
    run = object.__new__(Run)
    run.dataset = lambda name: Dataset(
        name, [], range(len(sizes[name])), lambda _: None, lambda index: [tmp_path / name / f"{index}.jpg"], tmp_path
    )
    assert run.same_pictures(["a150", "a847", "p59", "lvis"]) == [["a150", "a847"], ["p59"], ["lvis"]]
    (tmp_path / "a847" / "1.jpg").unlink()  # whoever reads it says so
    assert run.same_pictures(["a847", "a150"]) == [["a847"], ["a150"]]
