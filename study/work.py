"""What one training step and one picture take, counted on the study's own networks and losses.

Networks are run on a CPU on small pictures, and CLIPs with one or two of their layers: their work is a constant plus a
multiple of pictures, pixels, layers, so two or three counts give it at any size. Weights are random and cost as much.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import open_clip
import torch
from torch import Tensor

from maskclip.model.clip import Clip
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.pipeline import MaskCLIP, NamedMasks
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from maskclip.proposals.load import NetworkConfig, build_network
from maskclip.roofline import Work, count
from maskclip.settings import MaskClipTraining, MaskRCNNConfig
from maskclip.training.augmentation import Example
from maskclip.training.fit import parameter_groups
from maskclip.training.losses import Batch, build_criterion
from maskclip.training.mask_tokens import TARGET_SIZE_RATIO, batch_losses
from maskclip.training.proposal_networks import network_losses

SIDES = 64, 128  # pixels, of the pictures that networks are counted on
SEGMENTS = 12  # of an annotated picture: COCO has 11, ADE20K a few more
FEWER = 8  # times fewer boxes, or points, are counted
STATES = {"adamw": 2, "sgd": 1}  # numbers that an optimizer keeps for each weight
MASKS, CLASSES = 100, 133  # of a picture's proposals; COCO's
AT_ONCE = 16  # passes of the CLIP Baseline
LOGITS = 200, 272  # height and width of stored mask logits
Found = TypeVar("Found")


def _once(function: Callable[..., Found]) -> Callable[..., Found]:
    """Count once; chance, which decides what is matched, begins anew, so that the order of counting does not matter."""

    @wraps(function)
    def seeded(*arguments: Any) -> Found:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*arguments)

    return cache(seeded)


@dataclass(frozen=True)
class Step:
    """The work of one step, or picture, on one GPU, and what lies on the GPU besides: weights, their gradients, and
    the optimizer's state, in bytes."""

    work: Work = field(default_factory=Work)
    weights: float = 0.0
    trained: float = 0.0  # of the weights
    states: int = 0  # of the optimizer for each weight

    @property
    def memory(self) -> float:
        """GB on the GPU."""
        return (self.weights + (1 + self.states) * self.trained + self.work.memory) / 1e9

    @property
    def checkpoint(self) -> float:
        """GB on disk of weights and optimizer."""
        return (1 + self.states) * self.trained / 1e9


def several(one: Work, two: Work, number: float) -> Work:
    """The work of `number` pictures, layers or masks, from that of one and that of two."""
    return one + (number - 1) * (two - one)


def network_step(config: NetworkConfig, batch: int) -> Step:
    """A training step of a proposal network on `batch` pictures of its size, optimizer included."""
    if (side := config.training.crop) == 0:
        sides = getattr(config, "train_short_sides", (config.short_side,))
        side = sum(sides) / len(sides) * (4 / 3) ** 0.5  # COCO's pictures are 4 : 3
    one, two, of_pixels, update = _training(_without_weights(config))
    return replace(update, work=several(one, two, batch) + batch * side**2 * of_pixels + update.work)


def network_picture(config: NetworkConfig, size: tuple[int, int]) -> Step:
    """Proposing for a picture of `size`, as stored proposals are made."""
    constant, of_pixels, network = _proposing(_without_weights(config))
    return replace(network, work=constant + seen_scale(config, size) ** 2 * size[0] * size[1] * of_pixels)


def seen_scale(config: NetworkConfig, size: tuple[int, int]) -> float:
    """How much larger than `size` a network sees a picture."""
    return min(config.short_side / min(size), config.long_side / max(size))


def _without_weights(config: NetworkConfig) -> NetworkConfig:
    """What is alike of all trainings of a network, with random weights."""
    training = replace(config.training, steps=0)
    training, backbone = replace(config.training, steps=0), replace(config.backbone, weights=None)
    return replace(config, training=training, backbone=backbone, start=None, test_sizes={})


@_once
def _training(config: NetworkConfig) -> tuple[Work, Work, Work, Step]:
    """Loss and gradients of one picture and of two without pixels, of a pixel, and what no picture changes."""
    settings, few = config.training, _with_fewer(config)
    network: Any = build_network(few, 1).train()
    if isinstance(config, MaskRCNNConfig):
        body = network.backbone.body
        for part in (body.embedder, body.encoder.stages[0]):  # as with ImageNet's weights
            part.requires_grad_(False)

    def losses(batch: int, side: int) -> Work:
        if isinstance(config, MaskRCNNConfig):
            network.transform.min_size = (side,)
        examples = [_example(side, number) for number in range(batch)]
        network.zero_grad()
        with _mixed(settings.mixed_precision):
            return count(lambda: network_losses(network, examples, few)["loss"])

    small, large = SIDES
    one, two, larger = losses(1, small), losses(2, small), losses(1, large)
    of_pixels = replace(1 / (large**2 - small**2) * (larger - one), kernels=0)
    if isinstance(config, MaskRCNNConfig):  # its heads see so many boxes, whatever the pixels
        network.roi_heads.fg_bg_sampler.batch_size_per_image //= 2
    else:  # masks are compared at so many points
        network.criterion.num_points //= 2
        network.criterion.matcher.num_points //= 2
    of_samples = (FEWER - 1) * 2 * replace(one - losses(1, small), kernels=0)
    one, two = one + of_samples - small**2 * of_pixels, two + 2 * of_samples - 2 * small**2 * of_pixels

    update, size = _update(network, settings.optimizer, settings.weight_decay)
    return one, two, of_pixels, Step(update, _size(network), size, STATES[settings.optimizer])


def _update(network: torch.nn.Module, optimizer: str, weight_decay: float) -> tuple[Work, float]:
    """Clipping of gradients and the optimizer's step; and the bytes of what is trained."""
    trained = [value for value in network.parameters() if value.requires_grad]
    kind = torch.optim.AdamW if optimizer == "adamw" else partial(torch.optim.SGD, momentum=0.9)
    made = kind(parameter_groups(network, weight_decay), lr=0.0, foreach=True)
    work = count(lambda: (torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True), made.step()))
    return replace(work, memory=0), sum(value.nbytes for value in trained)


@_once
def _proposing(config: NetworkConfig) -> tuple[Work, Work, Step]:
    """Proposing for a picture without pixels, for a pixel, and the network."""
    network: Any = build_network(_with_fewer(config), 1).eval()

    def propose(side: int) -> Work:
        picture = torch.rand(1, 3, side, side)
        if isinstance(config, MaskRCNNConfig):
            return count(lambda: network.rpn.head([*network.backbone(picture).values()]))
        return count(lambda: network(pixel_values=picture))

    with torch.no_grad():
        small, large = map(propose, SIDES)
        heads = Work()
        if isinstance(config, MaskRCNNConfig):  # they see boxes, not pixels
            roi, width = network.roi_heads, config.fpn_dim
            boxes, masks = torch.rand(64, width, 7, 7), torch.rand(8, width, 14, 14)
            heads = config.rpn_proposals / 64 * count(lambda: roi.box_predictor(roi.box_head(boxes)))
            heads += config.detections / 8 * count(lambda: roi.mask_predictor(roi.mask_head(masks)))
    of_pixels = replace(1 / (SIDES[1] ** 2 - SIDES[0] ** 2) * (large - small), kernels=0)
    constant = small - SIDES[0] ** 2 * of_pixels + heads
    return constant, of_pixels, Step(Work(), _size(network))


def _with_fewer(config: NetworkConfig) -> NetworkConfig:
    """With an eighth of the boxes, which small pictures have, too, or points; on torchvision, detectron2's equal."""
    if isinstance(config, MaskRCNNConfig):
        return replace(config, box_samples=config.box_samples // FEWER, implementation="torchvision")
    return replace(config, points=config.points // FEWER)


def _size(network: torch.nn.Module) -> int:
    return sum(value.nbytes for value in (*network.parameters(), *network.buffers()))


def _mixed(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision != "no")


def _example(side: int, seed: int) -> Example:
    """A picture of noise with rectangles for segments."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(SEGMENTS, side, side)
    for mask in masks:
        top, left, height, width = (torch.rand(4, generator=generator) * side / 2).int().tolist()
        mask[top : top + height + side // 4, left : left + width + side // 4] = 1
    image = 255 * torch.rand(3, side, side, generator=generator)
    return Example(image, masks, torch.zeros(SEGMENTS, dtype=torch.long))


@dataclass(frozen=True)
class ClipSize:
    """What a CLIP's cost depends on; `of` finds it by an open_clip name or folder."""

    name: str
    embed_dim: int
    vision: tuple[tuple[str, Any], ...]
    weights: float  # bytes in float32, words' end included

    @classmethod
    def of(cls, name: str) -> ClipSize:
        """By an open_clip name or a folder; ValueError where there is none, or it is no ViT."""
        file = Path(name) / "open_clip_config.json"
        config = json.loads(file.read_text())["model_cfg"] if file.is_file() else open_clip.get_model_config(name)
        if config is None or not isinstance(config["vision_cfg"].get("layers"), int):
            raise ValueError(f"{name} is no ViT of open_clip's, and no folder of one; try ViT-L-14-336 or ViT-H-14")
        text = {key: value for key, value in config["text_cfg"].items() if key != "tokenizer_kwargs"}
        with torch.device("meta"):
            whole = open_clip.model.CLIP(config["embed_dim"], config["vision_cfg"], text)
        return cls(name, config["embed_dim"], tuple(config["vision_cfg"].items()), _size(whole))

    @property
    def layers(self) -> int:
        """Of its ViT."""
        return dict(self.vision)["layers"]

    @property
    def side(self) -> int:
        """Pixels a side of what it sees."""
        return dict(self.vision)["image_size"]

    def shallow(self, layers: int) -> Clip:
        """The CLIP with so few layers, random weights and hardly a text tower."""
        text = dict(context_length=1, vocab_size=1, width=8, heads=1, layers=1)
        model = open_clip.model.CLIP(self.embed_dim, {**dict(self.vision), "layers": layers}, text)
        return Clip.of(model.eval().requires_grad_(False))


def maskclip_step(clip: ClipSize, training: MaskClipTraining, rma_layers: int, batch: int) -> Step:
    """A training step of stage two on `batch` pictures of 100 masks each, optimizer included."""
    (one, update, size), (deeper, *_), (both, larger, sizes) = _stage_two(clip, json.dumps(asdict(training)))
    work = several(one, deeper, clip.layers) + (rma_layers - 1) * (both - deeper)
    work = replace(batch * work, kernels=work.kernels)  # a batch goes through the same kernels
    trained = size + (rma_layers - 1) * (sizes - size)
    return Step(work + several(update, larger, rma_layers), clip.weights + trained, trained, STATES["adamw"])


@_once
def _stage_two(clip: ClipSize, settings: str) -> tuple[tuple[Work, Work, float], ...]:
    """A picture's step, the optimizer's, and bytes that are trained, of one layer, of two, and of two with RMA."""
    training = MaskClipTraining(**json.loads(settings))

    def counted(layers: int, rma: int) -> tuple[Work, Work, float]:
        encoder, shallow = _encoder(clip, layers, rma)
        criterion, side = build_criterion(training, CLASSES), shallow.image_size
        text = torch.nn.functional.normalize(torch.randn(CLASSES + 1, clip.embed_dim), dim=-1)
        example, image = _example(TARGET_SIZE_RATIO * side, 0), torch.randn(1, 3, side, side)
        valid = torch.ones(1, MASKS, dtype=torch.bool)
        read = Batch(image, _blobs(side), valid, [example.classes], [example.masks])
        with _mixed(training.mixed_precision):
            work = count(lambda: batch_losses(encoder, read, text, criterion, training)["loss"])
        return work, *_update(encoder, "adamw", training.weight_decay)

    return counted(1, 1), counted(2, 1), counted(2, 2)


def maskclip_picture(clip: ClipSize, rma_layers: int) -> Step:
    """Embeddings and refined masks of a picture's 100 masks; without RMA layers, MaskCLIP w/o RMA."""
    one, deeper, rma = _picture(clip)
    work = several(one, deeper, clip.layers) + rma_layers * (rma - one)
    memory = rma.memory if rma_layers else one.memory  # a layer's features are gone when the next begins
    return Step(replace(work, memory=memory), clip.weights)


@_once
def _picture(clip: ClipSize) -> tuple[Work, Work, Work]:
    """The work of a CLIP of one layer, of two, and of one with RMA."""

    def counted(layers: int, rma: int) -> Work:
        encoder, shallow = _encoder(clip, layers, rma)
        return _embedded(MaskCLIP(shallow, encoder), MASKS)

    return counted(1, 0), counted(2, 0), counted(1, 1)


@_once
def baseline_mask(clip: ClipSize) -> Step:
    """One mask's pass of CLIP, of 16 that the CLIP Baseline makes at once."""

    def counted(layers: int, masks: int) -> Work:
        shallow = clip.shallow(layers)
        return _embedded(MaskCLIP(shallow, MaskedImages(shallow)), masks)

    shallow, deeper = (several(counted(layers, 1), counted(layers, 2), AT_ONCE) for layers in (1, 2))
    work = 1 / AT_ONCE * several(shallow, deeper, clip.layers)
    return Step(replace(work, memory=shallow.memory), clip.weights)


@_once
def naming(classes: int, task: str, size: tuple[int, int], side: int) -> Work:
    """Merging of a picture's named masks [100, side, side] at its own size, for a task of `maskclip.data.datasets`."""
    small = size[0] // 4, size[1] // 4  # a sixteenth of the pixels, of masks as well
    named = NamedMasks(torch.randn(MASKS, classes).softmax(-1), _blobs(side // 4)[0], small)
    merge: dict[str, Callable[[], object]] = {
        "panoptic": lambda: named.panoptic([True] * classes, score_threshold=0.0),
        "semantic": named.semantic,
    }
    work = count(merge.get(task, lambda: named.instances([True] * classes)))
    return replace(16 * work, memory=work.memory)


def _encoder(clip: ClipSize, layers: int, rma: int) -> tuple[MaskCLIPVisualEncoder, Clip]:
    shallow, generator = clip.shallow(layers), torch.Generator().manual_seed(0)
    which = range(layers - rma + 1, layers + 1)
    return MaskCLIPVisualEncoder.from_open_clip(shallow.model, which, generator=generator), shallow


def _embedded(model: MaskCLIP, masks: int) -> Work:
    picture, proposals = np.zeros((480, 640, 3), np.uint8), Proposals(_blobs(LOGITS)[0, :masks], torch.ones(masks))
    return count(lambda: model.embed(picture, proposals))


def _blobs(size: int | tuple[int, int]) -> Tensor:
    """Mask logits [1, 100, H, W], each over about half of the patches."""
    coarse = torch.randn(1, MASKS, 6, 6, generator=torch.Generator().manual_seed(0))
    return 5 * torch.nn.functional.interpolate(coarse, size, mode="bicubic")
