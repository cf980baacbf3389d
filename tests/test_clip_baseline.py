"""Alg. 1, one mask at a time, against the batched function."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from open_clip.model import CLIP

from maskclip.model.clip_baseline import clip_baseline
from maskclip.model.pipeline import encode_masked_images
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vision = dict(image_size=16, patch_size=4, width=16, head_width=8, layers=2)
    return CLIP(12, vision, dict(context_length=4, vocab_size=10, width=8, heads=1, layers=1)).eval()


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 16, 16, generator=generator), torch.randn(2, 5, 16, 16, generator=generator)


def normalize(pictures):
    return (pictures - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("own", [False, True])
def test_is_algorithm_1(clip, case, batch, own):
    """With open_clip's pass of CLIP, and with the visual encoder's, which the study takes."""
    pictures, logits = case
    f_v = MaskCLIPVisualEncoder.from_open_clip(clip, ()).embed_image if own else None
    result = clip_baseline(clip, normalize(pictures), logits, batch=batch, mean=MEAN, std=STD, encode_image=f_v)
    assert result.shape == (2, 5, 12) and not result.requires_grad
    for i, picture in enumerate(pictures):
        for t, mask in enumerate(logits[i]):
            region = picture * (mask >= 0)  # R = M_t * I, on the picture itself: black elsewhere
            expected = clip.encode_image(normalize(region)[None])[0]  # V = f_v(R)
            torch.testing.assert_close(result[i, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crop", [False, True])
def test_the_studys_masked_images_are_algorithm_1s(clip, case, crop):
    pictures, logits = case
    logits[:, :, :5] = -1  # room to crop
    embeddings, masks = encode_masked_images(SimpleNamespace(model=clip), crop=crop)(pictures, logits)
    torch.testing.assert_close(embeddings, clip_baseline(clip, pictures, logits, crop=crop), rtol=1e-4, atol=1e-5)
    assert masks is logits  # the baseline refines nothing


def test_cropping_enlarges_the_box(clip, case):
    pictures, _ = case
    logits = torch.full((2, 3, 16, 16), -1.0)
    logits[:, 0, 4:12, 8:16] = 1  # a box of 8 x 8
    logits[:, 1] = 1  # everything: nothing to crop
    result = clip_baseline(clip, normalize(pictures), logits, crop=True, mean=MEAN, std=STD)
    cut = normalize(pictures)[:, :, 4:12, 8:16]
    box = torch.nn.functional.interpolate(cut, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(result[:, 0], clip.encode_image(box), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result[:, 1], clip.encode_image(normalize(pictures)), rtol=1e-4, atol=1e-5)
    black = clip.encode_image(normalize(torch.zeros(1, 3, 16, 16)))
    torch.testing.assert_close(result[:, 2], black.expand(2, -1), rtol=1e-4, atol=1e-5)  # an empty mask


@pytest.mark.parametrize("crop", [False, True])
def test_masks_without_a_pixel_share_one_pass(clip, case, crop):
    pictures, logits = case
    logits[0, [0, 3]], logits[1, 1] = -1, -1
    sizes = []

    def f_v(batch):
        sizes.append(len(batch))
        return clip.encode_image(batch)

    result = clip_baseline(clip, pictures, logits, crop=crop, batch=4, encode_image=f_v)
    assert sizes == [4, 4]  # seven masks and black
    alone = [clip_baseline(clip, pictures, logits[:, t : t + 1], crop=crop) for t in range(5)]
    torch.testing.assert_close(result, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)
    nothing = clip_baseline(clip, pictures, torch.full_like(logits, -1), crop=crop, encode_image=f_v)
    assert sizes[2:] == [1] and torch.equal(nothing, nothing[:1, :1].expand(2, 5, -1))


def test_black_is_by_the_models_own_normalization(clip, case):
    pictures, logits = case
    clip.visual.image_mean, clip.visual.image_std = tuple(MEAN.tolist()), tuple(STD.tolist())
    own = clip_baseline(clip, normalize(pictures), logits)
    del clip.visual.image_mean, clip.visual.image_std
    assert torch.equal(own, clip_baseline(clip, normalize(pictures), logits, mean=MEAN, std=STD))
    assert not torch.equal(own, clip_baseline(clip, normalize(pictures), logits))


def test_no_masks_and_no_images(clip, case):
    pictures, logits = case
    assert clip_baseline(clip, pictures, logits[:, :0]).shape == (2, 0, 12)
    assert clip_baseline(clip, pictures[:0], logits[:0]).shape == (0, 5, 12)


@pytest.mark.parametrize(
    "change, names",
    [
        (dict(images=torch.zeros(3, 16, 16)), r"images is \(3, 16, 16\)"),
        (dict(mask_logits=torch.zeros(2, 5, 8, 8)), r"mask_logits is \(2, 5, 8, 8\).*\[2, M, 16, 16\]"),
        (dict(mask_logits=torch.zeros(3, 5, 16, 16)), r"mask_logits is \(3, 5, 16, 16\)"),
        (dict(mask_logits=torch.full((2, 5, 16, 16), math.nan)), "mask_logits.*not finite"),
        (dict(batch=0), "batch is 0"),
    ],
)
def test_bad_input_is_named(clip, case, change, names):
    with pytest.raises(ValueError, match=names):
        clip_baseline(**(dict(clip_model=clip, images=case[0], mask_logits=case[1]) | change))
