"""Tasks: which words they ask for, and which of them they keep."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskclip.config import Evaluation
from maskclip.data import Category, Dataset, Sample
from maskclip.evaluate import InstanceTask
from maskclip.model import NamedMasks

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


def test_words_choose_among_the_sets_own_names():
    dataset = instance_set(Category(3, "cat", True), Category(5, "dog", True))
    assert InstanceTask(dataset).own_class == [0, 1]
    assert InstanceTask(dataset, ["dog", "tree"]).own_class == [1, None]
