"""Training examples for the proposal networks: large scale jittering as in Mask2Former, or whole images with a flip."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskclip.proposals.base import resize_image
from maskclip.proposals.mask_rcnn import boxes_of_masks
from maskclip.settings import MaskRCNNConfig, TrainingConfig


@dataclass
class Example:
    """`image [3, h, w]` in 0 to 255, `masks [n, h, w]` bool, `classes [n]`; its place in the whole training."""

    image: Tensor
    masks: Tensor
    classes: Tensor
    number: int = 0


def augment(sample: Any, config: TrainingConfig, rng: np.random.Generator) -> Example:
    """Flip, jitter colours and, where `config.crop` is set, the scale (large scale jittering), cropping or padding.

    Crowd regions and segments that fall out of the crop are dropped; n may be 0.
    """
    segments = [segment for segment in sample.segments if not segment.iscrowd]
    image = sample.image
    masks = np.array([segment.mask for segment in segments], bool).reshape(-1, *image.shape[:2])
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    if config.crop:
        pixels, masks = _jitter_scale(image, masks, config, rng)
    else:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    if config.color_jitter:
        pixels = _jitter_color(pixels, config.color_jitter, rng)
    present = masks.any((1, 2))
    classes = np.array([segment.category for segment in segments], np.int64)[present]
    return Example(pixels, torch.from_numpy(np.ascontiguousarray(masks[present])), torch.from_numpy(classes))


def _jitter_scale(
    image: np.ndarray, masks: np.ndarray, config: TrainingConfig, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """Resize so that the image fits `scale` x `crop`, then crop a square, padded below and right with grey."""
    height, width = image.shape[:2]
    low, high = config.scale
    ratio = rng.uniform(low, high) * config.crop / max(height, width)
    size = max(1, round(height * ratio)), max(1, round(width * ratio))
    top, left = (int(rng.integers(0, max(0, side - config.crop) + 1)) for side in size)
    bottom, right = min(size[0], top + config.crop), min(size[1], left + config.crop)
    pixels = torch.full((3, config.crop, config.crop), 128.0)
    pixels[:, : bottom - top, : right - left] = resize_image(image, size)[:, top:bottom, left:right]
    # nearest neighbour, at pixel centres, only where the crop lies
    rows = np.minimum(((np.arange(top, bottom) + 0.5) * height / size[0]).astype(int), height - 1)
    columns = np.minimum(((np.arange(left, right) + 0.5) * width / size[1]).astype(int), width - 1)
    cropped = np.zeros((len(masks), config.crop, config.crop), dtype=bool)
    cropped[:, : bottom - top, : right - left] = masks[:, rows[:, None], columns[None, :]]
    return pixels, cropped


def _jitter_color(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Random gain and offset of each channel, and with probability `strength` a random order of the channels."""
    gain = torch.from_numpy(rng.uniform(1 - strength / 2, 1 + strength / 2, (3, 1, 1))).float()
    offset = torch.from_numpy(rng.uniform(-64, 64, (3, 1, 1)) * strength).float()
    order = torch.from_numpy(rng.permutation(3)) if rng.random() < strength else torch.arange(3)
    return ((pixels - 128) * gain + 128 + offset).clamp(0, 255)[order]


class StepExamples(Dataset):
    """The examples of step after step; which images, and how augmented, follows from (seed, step) alone.

    So a resumed run sees what an undisturbed one would, whatever the number of processes or reading workers. Item
    `n` is example `n % batch` of step `n // batch`. All classes are 0, unless the network is `class_aware`.
    """

    def __init__(self, dataset: Any, config: TrainingConfig, seed: int, class_aware: bool = False) -> None:
        self.dataset, self.config, self.seed, self.class_aware = dataset, config, seed, class_aware

    def __getitem__(self, number: int) -> Example:
        epoch, position = divmod(number, len(self.dataset))
        index = _order(len(self.dataset), self.seed, epoch)[position]
        example = augment(self.dataset[int(index)], self.config, np.random.default_rng([self.seed, 1, number]))
        example.number = number
        example.classes *= self.class_aware
        return example


@lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def to_detectron2(example: Example, config: MaskRCNNConfig) -> dict[str, Any]:
    """One training example as detectron2's models take it: BGR, resized by its own transform, `Instances`."""
    from detectron2.data import transforms
    from detectron2.structures import BitMasks, Boxes, Instances

    short_side = config.train_short_sides[example.number % len(config.train_short_sides)]
    image = transforms.AugInput(example.image.permute(1, 2, 0).numpy()[:, :, ::-1].copy())
    resize = transforms.ResizeShortestEdge(short_side, config.long_side)(image)
    size = image.image.shape[:2]
    resized = [resize.apply_segmentation(mask) for mask in example.masks.numpy().astype(np.uint8)]
    masks = torch.from_numpy(np.array(resized, bool).reshape(-1, *size))
    present = masks.flatten(1).any(1)
    masks = masks[present]
    instances = Instances(
        size, gt_boxes=Boxes(boxes_of_masks(masks)), gt_classes=example.classes[present], gt_masks=BitMasks(masks)
    )
    return {"image": torch.from_numpy(image.image.transpose(2, 0, 1).copy()), "instances": instances}


def detectron2_batch(examples: list[Example], config: MaskRCNNConfig) -> list[dict[str, Any]]:
    """A batch of them."""
    return [to_detectron2(example, config) for example in examples]
