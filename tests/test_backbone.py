"""The miniature's stand-in for ImageNet weights: what it has seen, what is kept of it, who begins with it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskclip.config import load_study
from maskclip.proposals.mask2former import build_mask2former
from maskclip.proposals.mask_rcnn import build_mask_rcnn
from maskclip.world.backbone import ENCODER, labelled_pictures, save_backbone
from maskclip.world.datasets import vocabularies


def test_the_pictures_hold_the_training_names_only_and_repeat():
    pictures, again, other = (labelled_pictures(seed, 9, variants=1) for seed in (5, 5, 6))
    words = vocabularies()
    assert set(pictures.names) == {*words.coco, *words.coco_stuff}
    for index in range(9):
        sample, twin = pictures[index], again[index]
        np.testing.assert_array_equal(sample.image, twin.image)
        assert sample.segments and not np.array_equal(sample.image, other[index].image)
        for segment, same in zip(sample.segments, twin.segments, strict=True):
            np.testing.assert_array_equal(segment.mask, same.mask)
            assert segment.isthing == pictures.isthing[segment.category]


def test_the_backbone_is_what_is_kept_of_a_network(tmp_path):
    config = load_study("mini").proposals.mask2former
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, weights=None))
    torch.manual_seed(0)
    network = build_mask2former(config, classes=7)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "network.safetensors")
    weights = save_backbone(tmp_path / "network.safetensors", tmp_path / "backbone.safetensors")
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, weights=str(weights)))
    other = build_mask2former(config, classes=1).state_dict()
    kept = [k for k in other if k.startswith(ENCODER)]
    assert len(kept) == len(load_file(weights))
    for name in kept:
        torch.testing.assert_close(other[name], network.state_dict()[name].half().float(), rtol=0, atol=0)
    save_file({"weight": torch.zeros(1)}, tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match="holds no Mask2Former"):
        save_backbone(tmp_path / "no.safetensors", tmp_path / "out.safetensors")


def test_the_miniatures_mask_rcnn_begins_with_the_committed_one(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    config = load_study("mini").proposals.mask_rcnn
    state = build_mask_rcnn(config).state_dict()
    for name, value in load_file(config.backbone.weights).items():
        torch.testing.assert_close(state["backbone.body." + name], value.float(), rtol=0, atol=0)
