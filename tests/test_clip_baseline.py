"""Alg. 1, one mask at a time, against the batched function."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from open_clip.model import CLIP

from maskclip.model.clip import Clip
from maskclip.model.clip_baseline import MaskedImages

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    vision = dict(image_size=16, patch_size=4, width=16, head_width=8, layers=2)
    return CLIP(12, vision, dict(context_length=4, vocab_size=10, width=8, heads=1, layers=1)).eval()


@pytest.fixture
def clip(network):
    return dataclasses.replace(Clip.of(network), mean=MEAN.view(3, 1, 1), std=STD.view(3, 1, 1))


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 16, 16, generator=generator), torch.randn(2, 5, 16, 16, generator=generator)


def normalize(pictures):
    return (pictures - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_is_algorithm_1(network, clip, case, batch):
    pictures, logits = case
    baseline = MaskedImages(clip, batch=batch)
    result = baseline.encode(baseline.see(normalize(pictures)), logits)
    assert result.embeddings.shape == (2, 5, 12) and not result.embeddings.requires_grad
    assert result.masks is logits and result.mask_logits == []  # the baseline refines nothing
    assert torch.equal(baseline(normalize(pictures), logits).embeddings, result.embeddings)
    for i, picture in enumerate(pictures):
        for t, mask in enumerate(logits[i]):
            region = picture * (mask >= 0)  # R = M_t * I, on the picture itself: black elsewhere
            expected = network.encode_image(normalize(region)[None])[0]  # V = f_v(R)
            torch.testing.assert_close(result.embeddings[i, t], expected, rtol=1e-4, atol=1e-5)


def test_cropping_enlarges_the_box(network, clip, case):
    pictures, _ = case
    logits = torch.full((2, 3, 16, 16), -1.0)
    logits[:, 0, 4:12, 8:16] = 1  # a box of 8 x 8
    logits[:, 1] = 1  # everything: nothing to crop
    result = MaskedImages(clip, crop=True)(normalize(pictures), logits).embeddings
    cut = normalize(pictures)[:, :, 4:12, 8:16]
    box = torch.nn.functional.interpolate(cut, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(result[:, 0], network.encode_image(box), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result[:, 1], network.encode_image(normalize(pictures)), rtol=1e-4, atol=1e-5)
    black = network.encode_image(normalize(torch.zeros(1, 3, 16, 16)))
    torch.testing.assert_close(result[:, 2], black.expand(2, -1), rtol=1e-4, atol=1e-5)  # an empty mask


@pytest.mark.parametrize("crop", [False, True])
def test_masks_without_a_pixel_share_one_pass(network, clip, case, crop):
    pictures, logits = case
    logits[0, [0, 3]], logits[1, 1] = -1, -1
    sizes, baseline = [], MaskedImages(clip, crop, batch=4)

    def f_v(batch):
        sizes.append(len(batch))
        return network.encode_image(batch)

    baseline.f_v = f_v
    result = baseline(pictures, logits).embeddings
    assert sizes == [4, 4]  # seven masks and black
    alone = [MaskedImages(clip, crop)(pictures, logits[:, t : t + 1]).embeddings for t in range(5)]
    torch.testing.assert_close(result, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    nothing = baseline(pictures, torch.full_like(logits, -1)).embeddings
    assert sizes[2:] == [1] and torch.equal(nothing, nothing[:1, :1].expand(2, 5, -1))


def test_black_is_by_the_models_own_normalization(network, clip, case):
    pictures, logits = case
    plain = MaskedImages(Clip.of(network))(normalize(pictures), logits).embeddings
    network.visual.image_mean, network.visual.image_std = tuple(MEAN.tolist()), tuple(STD.tolist())
    own = MaskedImages(Clip.of(network))(normalize(pictures), logits).embeddings
    del network.visual.image_mean, network.visual.image_std
    assert torch.equal(own, MaskedImages(clip)(normalize(pictures), logits).embeddings)
    assert not torch.equal(own, plain)


def test_no_masks_and_no_images(clip, case):
    pictures, logits = case
    for images, masks in ((pictures, logits[:, :0]), (pictures[:0], logits[:0])):
        result = MaskedImages(clip)(images, masks)
        assert result.embeddings.shape == (*masks.shape[:2], 12) and result.masks.shape == masks.shape


@pytest.mark.parametrize(
    "change, names",
    [
        (dict(images=torch.zeros(3, 16, 16)), r"images is torch.float32 \(3, 16, 16\)"),
        (dict(images=torch.zeros(2, 3, 18, 18)), "multiple of the patch, 4"),
        (dict(mask_logits=torch.zeros(2, 5, 8, 8)), r"mask_logits is torch.float32 \(2, 5, 8, 8\).*\(2, M, 16, 16\)"),
        (dict(mask_logits=torch.zeros(3, 5, 16, 16)), r"mask_logits is torch.float32 \(3, 5, 16, 16\)"),
        (dict(mask_logits=torch.zeros(2, 5, 16, 16, dtype=torch.bool)), "mask_logits is torch.bool"),
        (dict(mask_logits=torch.full((2, 5, 16, 16), math.nan)), "mask_logits.*not finite"),
    ],
)
def test_bad_input_is_named(clip, case, change, names):
    with pytest.raises(ValueError, match=names):
        MaskedImages(clip)(**(dict(images=case[0], mask_logits=case[1]) | change))


def test_a_batch_has_pictures(clip):
    with pytest.raises(ValueError, match="batch is 0"):
        MaskedImages(clip, batch=0)
