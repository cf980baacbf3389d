"""Mask R-CNN on detectron2, run for real on the miniature world where detectron2 is installed (environment.yml)."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from resuming import whole_and_resumed

from maskclip.data import open_dataset
from maskclip.proposals import StoredProposals, load_source, store_proposals
from maskclip.proposals.detectron2 import detectron2_config
from maskclip.proposals.mask_rcnn import boxes_of_masks
from maskclip.settings import BackboneConfig, MaskRCNNConfig, TrainingConfig
from maskclip.training.augmentation import StepExamples, to_detectron2
from miniature.datasets import write_world

TRAINING = TrainingConfig(
    steps=4, batch=2, optimizer="sgd", learning_rate=5e-3, backbone_factor=1.0, weight_decay=1e-4, gradient_norm=1.0,
    warmup_steps=1, crop=0, checkpoint_every=2,
)  # fmt: skip
CONFIG = MaskRCNNConfig(
    BackboneConfig(32, (64, 128, 256, 512), (2, 2, 2, 2), "basic", "group"), TRAINING, "detectron2", fpn_dim=32,
    head_dim=64, mask_head_layers=1, anchor_sizes=(8, 16, 32, 64, 128), rpn_proposals_train=50, rpn_proposals=50,
    rpn_samples=32, box_samples=32, score_threshold=0.0, detections=10, train_short_sides=(112, 128), short_side=128,
    long_side=256, mask_stride=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("world")
    write_world(root, seed=3, coco_train=6, coco_val=2, ade=2, pascal=2, lvis=2)
    return open_dataset("coco_train", root)


def test_without_detectron2_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ModuleNotFoundError, match=r"detectron2 is not installed; use environment\.yml"):
        detectron2_config(CONFIG)


def test_a_package_that_detectron2_lacks_is_named(monkeypatch, tmp_path):
    """As setuptools from version 82 on, which brings no pkg_resources any more."""
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").touch()
    (tmp_path / "detectron2/model_zoo.py").write_text("import a_package_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="detectron2 cannot be imported without a_package_nobody_has; use"):
        detectron2_config(CONFIG)
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        del sys.modules[name]  # the one made here; what was there before comes back


def test_trained_killed_resumed_stored_and_read_again(coco, tmp_path, monkeypatch):
    pytest.importorskip("detectron2", reason="detectron2 is not installed (environment.yml installs it)")
    whole, _ = whole_and_resumed("mask_rcnn", coco, CONFIG, tmp_path, monkeypatch, step=3)
    record = json.loads((whole / "record.json").read_text())
    assert record["implementation"] == "detectron2" and record["classes"] == 1

    images = [coco[i].image for i in range(3)]
    source = load_source(whole)
    together, alone = source(images), [source([image])[0] for image in images]
    for image, a, b in zip(images, together, alone, strict=True):
        assert a.mask_logits.shape[1:] == image.shape[:2] and 0 < len(a.scores) <= 10
        torch.testing.assert_close(a.mask_logits, b.mask_logits, rtol=1e-3, atol=1e-3)
        assert ((a.scores >= 0) & (a.scores <= 1)).all()
    stored = StoredProposals(store_proposals(source, coco, tmp_path / "store", "d2", progress=False), "d2")
    for image_id, found in zip(coco.image_ids, together, strict=False):
        assert len(stored[image_id].scores) == len(found.scores)


def test_examples_arrive_as_detectron2_takes_them(coco):
    pytest.importorskip("detectron2", reason="detectron2 is not installed (environment.yml installs it)")
    config = dataclasses.replace(CONFIG, train_short_sides=(128,))
    example = StepExamples(coco, TRAINING, 0)[0]
    item = to_detectron2(example, config)
    instances = item["instances"]
    assert item["image"].shape[1:] == tuple(instances.image_size) and min(item["image"].shape[1:]) == 128
    assert torch.equal(instances.gt_boxes.tensor, boxes_of_masks(instances.gt_masks.tensor))
    masks = instances.gt_masks.tensor
    assert masks.flatten(1).any(1).all() and (masks.sum(0) <= 1).all(), "segments do not overlap"
    assert example.image.shape == item["image"].shape, "its size already: only the channels change"
    assert torch.equal(item["image"].flip(0).byte(), example.image.byte())
    np.testing.assert_array_equal(masks.numpy(), example.masks.numpy().astype(bool))


def test_class_agnostic_heads(coco):
    pytest.importorskip("detectron2", reason="detectron2 is not installed (environment.yml installs it)")
    from maskclip.proposals.detectron2 import build_detectron2

    model = build_detectron2(CONFIG)
    assert model.roi_heads.num_classes == 1
    assert model.roi_heads.mask_head.predictor.out_channels == 1
    assert detectron2_config(CONFIG).MODEL.WEIGHTS == "", "from scratch: nothing is fetched"
