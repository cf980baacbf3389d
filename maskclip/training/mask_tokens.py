"""Stage two's training (Sec. 4.2): the parameters RMA adds to a frozen CLIP, on stored class-agnostic proposals."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from maskclip.data import Dataset
from maskclip.files import check_as_written, checkpoint_bytes, load_checkpoint, settings_hash
from maskclip.model.clip import Clip, classify, preprocess, text_embeddings
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from maskclip.proposals.backbone import check_fit
from maskclip.settings import MaskClipTraining
from maskclip.training.finished import CHECKPOINT, finish, holds_finished
from maskclip.training.fit import Training, cosine, fit, join_processes, parameter_groups
from maskclip.training.losses import Batch, build_criterion, maskclip_losses, match, select

FILES = ("curve.csv", "encoder.pt")  # of a finished training, beside its record
CURVE = ("step", "loss", "loss_ce", "loss_dice", "loss_bce")
TARGET_SIZE_RATIO = 2  # ground truth is sampled on a grid this much finer than CLIP's input
# What does not change the trained weights; the encoder knows its own RMA layers, and the weights it begins with.
UNRELATED = {"checkpoint_every", "workers", "activation_checkpointing", "rma_layers", "start"}


class Examples(torch.utils.data.Dataset):
    """CLIP's input, the stored proposals, and the labels and masks of the annotated segments, maybe mirrored."""

    def __init__(self, clip: Clip, dataset: Dataset, proposals: Mapping[int | str, Proposals], seed: int):
        # on the CPU, whatever CLIP is on: a reading process (`workers`) cannot use the GPU of the one that forked it
        self.clip = dataclasses.replace(clip, mean=clip.mean.cpu(), std=clip.std.cpu())
        self.dataset, self.proposals, self.seed = dataset, proposals, seed

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        epoch, place = divmod(number, len(self.dataset))
        order, mirrored = _order(len(self.dataset), self.seed, epoch)
        sample = self.dataset[order[place]]
        image = preprocess(self.clip, sample.image)
        logits = self.proposals[sample.image_id].mask_logits.float()
        segments = [segment for segment in sample.segments if not segment.iscrowd]
        labels = torch.tensor([segment.category for segment in segments], dtype=torch.long)
        size = (TARGET_SIZE_RATIO * self.clip.image_size,) * 2
        masks = torch.zeros(0, *size, dtype=torch.bool)  # a fourth of the room, on the way from a reading process
        if segments:
            full = torch.stack([torch.from_numpy(segment.mask) for segment in segments])
            masks = interpolate(full[None].float(), size, mode="nearest-exact")[0].bool()
        if mirrored[place]:
            image, logits, masks = image.flip(-1), logits.flip(-1), masks.flip(-1)
        return image, logits, labels, masks


@lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int) -> tuple[list[int], list[bool]]:
    """In which order an epoch takes the pictures, and which places of it are mirrored."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    return order, (torch.rand(count, generator=generator) < 0.5).tolist()


def _to_batch(examples: list[tuple[Tensor, Tensor, Tensor, Tensor]], size: int, device: torch.device) -> Batch:
    """Onto the device, the proposals brought to CLIP's input resolution S as the released code does (bilinear)."""
    images, logits, labels, masks = ([part.to(device) for part in parts] for parts in zip(*examples))
    resized = [
        interpolate(one[None], (size, size), mode="bilinear")[0] if len(one) else one.new_zeros(0, size, size)
        for one in logits
    ]
    return Batch(torch.stack(images), *_padded(resized), labels, [mask.float() for mask in masks])


def _padded(masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Masks [M_b, S, S] of each image as [B, M, S, S], and which of them [B, M] are no padding."""
    valid = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in masks], batch_first=True)
    return pad_sequence(masks, batch_first=True), valid.to(masks[0].device)


def trained_weights(encoder: MaskCLIPVisualEncoder) -> dict[str, Tensor]:
    """What training changes: the RMA parameters alone, without CLIP's frozen ones."""
    return {name: value.detach() for name, value in encoder.named_parameters() if value.requires_grad}


def load_trained_weights(encoder: MaskCLIPVisualEncoder, path: str | Path) -> MaskCLIPVisualEncoder:
    """Put the weights of `train_maskclip`'s encoder.pt into an encoder of the same CLIP and RMA layers.

    Raises:
        ValueError: the file holds other parameters than the encoder trains, or no finite ones (the sentence names
            them), or is not the one that the record.json beside it was written for.
    """
    weights = load_checkpoint(path)
    check_as_written(Path(path))
    for name, value in weights.items():
        if not (isinstance(value, Tensor) and value.dtype == torch.float32 and value.isfinite().all()):
            raise ValueError(f"{path}: {name} is no tensor of finite float32 numbers; delete the file and train again")
    check_fit(weights, trained_weights(encoder), path, of="other RMA layers or of another CLIP")
    encoder.load_state_dict(weights, strict=False)
    return encoder


def batch_losses(
    encoder: MaskCLIPVisualEncoder, batch: Batch, text: Tensor, criterion: Mask2FormerLoss, training: MaskClipTraining
) -> dict[str, Tensor]:
    """The losses of one batch, with the gradients of the full graph.

    CLIP runs once without a graph, mask tokens twice: all of them to be matched, those selected to be trained.

    Args:
        text: normalized embeddings of the training categories and, last, of "other", [K + 1, C].
    """
    features = encoder.see(batch.images)
    with torch.no_grad():
        seen = encoder.encode(features, batch.mask_logits, batch.valid)
        logits = classify(seen.embeddings, text, training.temperature).float()
        matches = [match(criterion, masks, logits, batch) for masks in seen.mask_logits]
    chosen, matches = select(matches, batch.valid, everything=training.no_object_weight > 0)

    masks, valid = _padded([batch.mask_logits[image, keep] for image, keep in enumerate(chosen)])
    seen = encoder.encode(features, masks, valid)
    logits = classify(seen.embeddings, text, training.temperature).float()
    return maskclip_losses(criterion, logits, seen.mask_logits, valid, batch, matches, training)


def training_record(
    encoder: MaskCLIPVisualEncoder,
    clip: Clip,
    dataset: Dataset | None,
    proposals: Mapping[int | str, Proposals],
    training: MaskClipTraining,
    seed: int,
) -> dict[str, Any]:
    """What `record.json` says; its hash changes with all that changes the trained weights, code and versions aside."""
    identity = {
        "settings": TypeAdapter(MaskClipTraining).dump_python(training, exclude=UNRELATED),
        "rma_layers": list(encoder.rma_layers),
        "trained": sorted(trained_weights(encoder)),
        "clip": _digest(clip.model.state_dict()),
        "seed": seed,
    }
    if training.start:
        identity["begun_with"] = _digest(trained_weights(encoder))  # wherever they lay
    if dataset is not None:
        first = proposals[dataset.image_ids[0]].mask_logits  # stands for the proposal network's weights
        identity |= {"proposals": _digest({"first": first}), "dataset": dataset.fingerprint()}
        identity["names"] = [category.name for category in dataset.categories]
    return {"hash": settings_hash(identity), **identity}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def train_maskclip(
    encoder: MaskCLIPVisualEncoder,
    clip: Clip,
    dataset: Dataset | None,
    proposals: Mapping[int | str, Proposals],
    training: MaskClipTraining,
    out: str | Path,
    seed: int,
    *,
    retrain: bool = False,
) -> pd.DataFrame:
    """Train the encoder's RMA parameters in place; AdamW, a constant rate unless its `schedule` is another (f_r's
    is `refinement_factor` of it), CLIP frozen, the class "other" for no object.

    `out` ends with encoder.pt (the trained weights), curve.csv and record.json. A killed training is gone on with as if
    undisturbed; a finished one is kept, another one put beside (`maskclip.training.finished`).

    Args:
        encoder: with fresh weights, or with those of `training.start`.
        dataset: the training set; None, with 0 steps alone: the encoder's weights are the result as they are.
        proposals: stored proposals by image id.
        retrain: put a finished training beside, too, and train again.

    Returns:
        The training curve, one row per step: step, loss, loss_ce, loss_dice, loss_bce (weighted).

    Raises:
        ValueError: the encoder has nothing to train, there is no data set to train on, or a batch does not divide
            among the processes.
        FloatingPointError: the loss is no longer finite.
    """
    if not trained_weights(encoder):
        raise ValueError("this encoder has no RMA layers, so nothing to train; it is the w/o RMA baseline as it is")
    if dataset is None and training.steps:
        raise ValueError(
            f"steps is {training.steps}, but there is no data set to train on; give one, or set steps to 0"
        )
    if dataset is not None and len(dataset) == 0:
        raise ValueError(f"the data set {dataset.name} has no images to train on")
    out, on_cpu = Path(out), clip.device.type == "cpu"
    join_processes("maskclip", training.batch, on_cpu)
    record = training_record(encoder, clip, dataset, proposals, training, seed)
    if holds_finished(out, record["hash"], FILES, retrain):
        load_trained_weights(encoder, out / "encoder.pt")
        return pd.read_csv(out / "curve.csv")

    steps = [] if dataset is None else _train(encoder, clip, dataset, proposals, training, out, record, seed)
    curve = pd.DataFrame(steps, columns=CURVE)
    weights = checkpoint_bytes(trained_weights(encoder))
    finish(out, record, {"curve.csv": curve.to_csv(index=False).encode(), "encoder.pt": weights})
    return curve


def learning_rate(step: int, training: MaskClipTraining) -> float:
    """Linear warm-up, then constant as in the released code, or times a cosine to zero."""
    warmup = min(1, (step + 1) / max(1, training.warmup_steps))
    return training.learning_rate * warmup * (cosine(step, training.steps) if training.schedule == "cosine" else 1)


def _train(
    encoder: MaskCLIPVisualEncoder,
    clip: Clip,
    dataset: Dataset,
    proposals: Mapping[int | str, Proposals],
    training: MaskClipTraining,
    out: Path,
    record: Mapping[str, Any],
    seed: int,
) -> list[dict[str, float]]:
    """The training itself, from its last checkpoint on: its steps' losses."""
    accelerator = Accelerator(mixed_precision=training.mixed_precision, cpu=clip.device.type == "cpu")
    device = accelerator.device
    encoder.to(device)
    groups = parameter_groups(encoder, training.weight_decay, {"residual": training.refinement_factor})
    encoder.checkpointing = training.activation_checkpointing
    text = text_embeddings(clip, [*record["names"], "other"]).to(device)
    criterion = build_criterion(training, len(record["names"])).to(device)
    stage = Training(
        name="MaskCLIP",
        hash=record["hash"],
        accelerator=accelerator,
        settings=training,
        model=encoder,
        optimizer=torch.optim.AdamW(groups, lr=training.learning_rate),
        learning_rate=lambda step: learning_rate(step, training),
        examples=Examples(clip, dataset, proposals, seed),
        losses=lambda read: batch_losses(encoder, _to_batch(read, clip.image_size, device), text, criterion, training),
        random_seed=lambda step: seed * 1_000_003 + step,
    )
    return fit(stage, out / CHECKPOINT)
