"""What MaskCLIP is trained for (Sec. 4.2): 2 L_ce + 5 L_dice + 5 L_bce over Hungarian-matched masks.

Matching and point-sampled mask losses are transformers'. Ours is an economy (docs/paper_and_released_code.md): masks
do not see one another and no object weighs nothing, so only matched masks, which `match` finds without a graph and
`select` names, contribute a gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from maskclip.settings import MaskClipTraining

Indices = list[tuple[Tensor, Tensor]]  # per image: matched masks and their targets


@dataclass
class Batch:
    """Pictures and proposals, padded where `valid` [B, M] is False, and the annotated segments of each picture."""

    images: Tensor  # [B, 3, S, S]
    mask_logits: Tensor  # [B, M, S, S]
    valid: Tensor
    labels: list[Tensor]  # B of class indices [n_b]
    masks: list[Tensor]  # B of binary masks [n_b, T, T]


def build_criterion(training: MaskClipTraining, num_classes: int) -> Mask2FormerLoss:
    """Mask2Former's criterion at the study's weights; class `num_classes` is "other", the no-object text."""
    config = Mask2FormerConfig(
        num_labels=num_classes,  # type: ignore[call-arg]  # every transformers config takes it
        no_object_weight=training.no_object_weight,
        train_num_points=training.points,
        class_weight=training.class_weight,
        dice_weight=training.dice_weight,
        mask_weight=training.mask_weight,
    )
    return Mask2FormerLoss(config, {})


def masks_per_process(labels: Sequence[Tensor], device: torch.device) -> Tensor:
    """How many segments a process has on average, at least 1: what the mask losses are divided by.

    In place of transformers' `get_num_masks`, which divides a mean over the processes by their number
    once more, and so weighs masks against classes by that number too much.
    """
    count = torch.tensor(float(sum(len(one) for one in labels)), device=device)
    return reduce(count, "mean").clamp(min=1)


def match(criterion: Mask2FormerLoss, masks: Tensor, logits: Tensor, batch: Batch) -> Indices:
    """Hungarian matching of mask logits [B, M, S, S] and class logits [B, M, K + 1], picture by picture, no padding."""
    matches: Indices = []
    for image, count in enumerate(batch.valid.sum(1).tolist()):
        one = slice(image, image + 1)
        matches += criterion.matcher(
            masks[one, :count].float(), logits[one, :count], batch.masks[one], batch.labels[one]
        )
    return matches


def select(layers: list[Indices], valid: Tensor, everything: bool) -> tuple[list[Tensor], list[Indices]]:
    """The masks of each image that any layer has matched, or `everything`; and the matches, counted among those."""
    if everything:
        chosen = [torch.arange(int(count)) for count in valid.sum(1)]
    else:
        chosen = [torch.cat([layer[image][0] for layer in layers]).unique() for image in range(len(valid))]
    place = [torch.full((valid.shape[1],), -1).index_put((keep,), torch.arange(len(keep))) for keep in chosen]
    return chosen, [[(place[image][masks], labels) for image, (masks, labels) in enumerate(one)] for one in layers]


def maskclip_losses(
    criterion: Mask2FormerLoss,
    logits: Tensor,
    layers: list[Tensor],
    valid: Tensor,
    batch: Batch,
    matches: list[Indices],
    training: MaskClipTraining,
) -> dict[str, Tensor]:
    """The weighted losses of one batch.

    Args:
        logits: class logits [B, M, K + 1] of the selected masks; padding where `valid` [B, M] is False.
        layers: mask logits [B, M, S, S] after each RMA layer, and `matches` of each.

    Returns:
        `loss`, the sum of `loss_ce`, `loss_dice`, `loss_bce`: scalars. The mask losses are summed over
        all layers (each layer's own, as the paper means it); classes are supervised once.
    """
    count = masks_per_process(batch.labels, logits.device)
    ce = training.class_weight * _class_loss(criterion, logits, valid, batch.labels, matches[-1])
    dice, bce = logits.new_zeros(()), logits.new_zeros(())
    for masks, matched in zip(layers, matches):
        if masks.requires_grad:  # masks that are not refined have nothing to learn (Table 8, w/o MR)
            part = criterion.loss_masks(masks.float(), batch.masks, matched, count)  # type: ignore[arg-type]
            dice = dice + training.dice_weight * part["loss_dice"]
            bce = bce + training.mask_weight * part["loss_mask"]
    return {"loss": ce + dice + bce, "loss_ce": ce, "loss_dice": dice, "loss_bce": bce}


def _class_loss(
    criterion: Mask2FormerLoss, logits: Tensor, valid: Tensor, labels: list[Tensor], match: Indices
) -> Tensor:
    """Cross entropy over [B, M, K + 1]; masks matched to nothing count as "other", padding counts not at all."""
    weight = criterion.empty_weight
    wanted = torch.full(logits.shape[:2], len(weight) - 1, device=logits.device)
    for image, (masks, segments) in enumerate(match):
        wanted[image, masks] = labels[image][segments]
    wanted[~valid] = -100
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, weight, reduction="sum")
    return loss / weight[wanted[valid]].sum().clamp(min=1)
