"""Stage two's training (Sec. 4.2): the parameters RMA adds to a frozen CLIP, on stored class-agnostic proposals."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from maskclip.data import Dataset
from maskclip.files import check_as_written, load_checkpoint, settings_hash, write_tensors
from maskclip.model.clip import Clip, classify, preprocess, text_embeddings
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from maskclip.settings import MaskClipTraining
from maskclip.training.finished import CHECKPOINT, finish, holds_finished
from maskclip.training.fit import Training, fit, join_processes
from maskclip.training.losses import Targets, build_criterion, maskclip_losses, match, select

FILES = ("curve.csv", "encoder.pt")  # of a finished training, beside its record
CURVE = ("step", "loss", "loss_ce", "loss_dice", "loss_bce")
TARGET_SIZE_RATIO = 2  # ground truth is sampled on a grid this much finer than CLIP's input
# What does not change the trained weights; the encoder knows its own RMA layers.
UNRELATED = ("checkpoint_every", "workers", "activation_checkpointing", "rma_layers")


@dataclasses.dataclass
class Batch:
    """`images` [B, 3, S, S]; `mask_logits` [B, M, S, S] padded where `valid` [B, M] is False; `targets`."""

    images: Tensor
    mask_logits: Tensor
    valid: Tensor
    targets: Targets


class _Items(torch.utils.data.Dataset):
    """One training picture: CLIP's input, the stored proposals and the annotated segments, maybe mirrored."""

    def __init__(self, clip: Clip, dataset: Dataset, proposals: Mapping[int | str, Proposals]):
        # on the CPU, whatever CLIP is on: a reading process (`workers`) cannot use the GPU of the one that forked it
        self.clip = dataclasses.replace(clip, mean=clip.mean.cpu(), std=clip.std.cpu())
        self.dataset, self.proposals = dataset, proposals

    def __getitem__(self, key: tuple[int, bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index, mirror = key
        sample = self.dataset[index]
        image = preprocess(self.clip, sample.image)
        logits = self.proposals[sample.image_id].mask_logits.float()
        segments = [segment for segment in sample.segments if not segment.iscrowd]
        labels = torch.tensor([segment.category for segment in segments], dtype=torch.long)
        size = (TARGET_SIZE_RATIO * self.clip.image_size,) * 2
        masks = torch.zeros(0, *size)
        if segments:
            full = torch.stack([torch.from_numpy(segment.mask) for segment in segments])
            masks = interpolate(full[None].float(), size, mode="nearest-exact")[0]
        if mirror:
            image, logits, masks = image.flip(-1), logits.flip(-1), masks.flip(-1)
        return image, logits, labels, masks


def _order(count: int, batch: int, seed: int, first_step: int, rank: int, ranks: int) -> Iterator[list]:
    """Endless batches of (index, mirrored), a pure function of seed and step: a resumed run sees the same pictures."""
    epoch, keys = -1, []
    for position in itertools.count(first_step * batch):
        if position // count != epoch:
            epoch = position // count
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(count, generator=generator).tolist()
            mirrored = (torch.rand(count, generator=generator) < 0.5).tolist()
        offset = position % count
        keys.append((order[offset], mirrored[offset]))
        if len(keys) == batch:
            yield keys[rank::ranks]
            keys = []


def _collate(items: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple:
    images, logits, labels, masks = zip(*items)
    return torch.stack(images), logits, list(labels), list(masks)


def _to_batch(collated: tuple, size: int, device: torch.device) -> Batch:
    """Onto the device, the proposals brought to CLIP's input resolution S as the released code does (bilinear)."""
    images, logits, labels, masks = collated
    # an image without proposals carries one padding place, so that the batch keeps its shape
    resized = [
        interpolate(one[None].to(device), (size, size), mode="bilinear", align_corners=False)[0]
        if len(one)
        else torch.zeros(0, size, size, device=device)
        for one in logits
    ]
    valid = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in resized], batch_first=True)
    targets = Targets([one.to(device) for one in labels], [one.to(device) for one in masks])
    return Batch(images.to(device), pad_sequence(resized, batch_first=True), valid.to(device), targets)


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
    wanted = trained_weights(encoder)
    for name in sorted(weights.keys() ^ wanted.keys()):
        raise ValueError(f"{path} {'has' if name in weights else 'lacks'} {name}; it was trained with other RMA layers")
    for name, value in wanted.items():
        found = weights[name]
        if not (isinstance(found, Tensor) and found.dtype == torch.float32 and found.isfinite().all()):
            raise ValueError(f"{path}: {name} is no tensor of finite float32 numbers; delete the file and train again")
        if found.shape != value.shape:
            raise ValueError(f"{path}: {name} is {tuple(found.shape)}, this CLIP needs {tuple(value.shape)}")
    encoder.load_state_dict(weights, strict=False)
    return encoder


def decayed(encoder: MaskCLIPVisualEncoder, weight_decay: float) -> list[dict[str, Any]]:
    """What trains, in two groups: norms are not decayed, as released."""
    norms = {
        id(value) for part in encoder.modules() if isinstance(part, torch.nn.LayerNorm) for value in part.parameters()
    }
    trained = [value for value in encoder.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trained if id(value) not in norms], "weight_decay": weight_decay},
        {"params": [value for value in trained if id(value) in norms], "weight_decay": 0.0},
    ]


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
        matches = [match(criterion, masks, logits, batch.valid, batch.targets) for masks in seen.mask_logits]
    chosen, matches = select(matches, batch.valid, everything=training.no_object_weight > 0)

    masks = pad_sequence([batch.mask_logits[image, keep] for image, keep in enumerate(chosen)], batch_first=True)
    valid = pad_sequence([torch.ones(len(keep), dtype=torch.bool) for keep in chosen], batch_first=True)
    seen = encoder.encode(features, masks, valid.to(masks.device))
    logits = classify(seen.embeddings, text, training.temperature).float()
    return maskclip_losses(criterion, logits, seen.mask_logits, valid, batch.targets, matches, training)


def training_record(
    encoder: MaskCLIPVisualEncoder,
    clip: Clip,
    dataset: Dataset,
    proposals: Mapping[int | str, Proposals],
    training: MaskClipTraining,
    seed: int,
) -> dict[str, Any]:
    """What `record.json` says; its hash changes with all that changes the trained weights, code and versions aside."""
    first = proposals[dataset.image_ids[0]].mask_logits  # stands for the proposal network's weights
    identity = {
        "settings": {name: value for name, value in dataclasses.asdict(training).items() if name not in UNRELATED},
        "rma_layers": list(encoder.rma_layers),
        "trained": sorted(trained_weights(encoder)),
        "clip": _digest(clip.model.state_dict()),
        "proposals": _digest({"first": first}),
        "dataset": dataset.fingerprint(),
        "names": [category.name for category in dataset.categories],
        "seed": seed,
    }
    return {"hash": settings_hash(identity), **identity}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def train_maskclip(
    encoder: MaskCLIPVisualEncoder,
    clip: Clip,
    dataset: Dataset,
    proposals: Mapping[int | str, Proposals],
    training: MaskClipTraining,
    out: str | Path,
    seed: int,
    *,
    retrain: bool = False,
) -> pd.DataFrame:
    """Train the encoder's RMA parameters in place; AdamW, constant rate, CLIP frozen, the class "other" for no object.

    `out` ends with encoder.pt (the trained weights), curve.csv and record.json. Called again for the same settings,
    data and seed, the function goes on where it was killed, with the pictures, mirrorings and sampled points of an
    undisturbed run, or finds the training finished and keeps it. Another training that was there is put beside
    (`maskclip.training.finished`).

    Args:
        proposals: stored proposals by image id.
        retrain: put a finished training beside, too, and train again.

    Returns:
        The training curve, one row per step: step, loss, loss_ce, loss_dice, loss_bce (weighted).

    Raises:
        ValueError: the encoder has nothing to train, or a batch does not divide among the processes.
        FloatingPointError: the loss is no longer finite.
    """
    if not trained_weights(encoder):
        raise ValueError("this encoder has no RMA layers, so nothing to train; it is the w/o RMA baseline as it is")
    out, on_cpu = Path(out), clip.device.type == "cpu"
    join_processes(on_cpu, "maskclip", training.batch)
    record = training_record(encoder, clip, dataset, proposals, training, seed)
    if holds_finished(out, record["hash"], FILES, retrain):
        load_trained_weights(encoder, out / "encoder.pt")
        return pd.read_csv(out / "curve.csv")

    accelerator = Accelerator(mixed_precision=training.mixed_precision, cpu=on_cpu)
    device, rank, ranks = accelerator.device, accelerator.process_index, accelerator.num_processes
    encoder.to(device)
    encoder.checkpointing = training.activation_checkpointing
    text = text_embeddings(clip, [*record["names"], "other"]).to(device)
    criterion = build_criterion(training, len(record["names"])).to(device)
    items = _Items(clip, dataset, proposals)

    def batches(first: int) -> torch.utils.data.DataLoader:
        order = _order(len(dataset), training.batch, seed, first, rank, ranks)
        return torch.utils.data.DataLoader(
            items, batch_sampler=order, collate_fn=_collate, num_workers=training.workers
        )

    stage = Training(
        name="MaskCLIP",
        hash=record["hash"],
        model=encoder,
        optimizer=torch.optim.AdamW(decayed(encoder, training.weight_decay), lr=training.learning_rate),
        learning_rate=lambda step: training.learning_rate * min(1, (step + 1) / max(1, training.warmup_steps)),
        batches=batches,
        losses=lambda read: batch_losses(encoder, _to_batch(read, clip.image_size, device), text, criterion, training),
        random_seed=lambda step: seed * 1_000_003 + step,
        settings=training,
    )
    curve = pd.DataFrame(fit(stage, out / CHECKPOINT, accelerator), columns=CURVE)
    if accelerator.is_main_process:
        weights = trained_weights(encoder)
        finish(
            out,
            record,
            {
                "curve.csv": lambda path: curve.to_csv(path, index=False),
                "encoder.pt": lambda path: write_tensors(path, weights),
            },
        )
    accelerator.wait_for_everyone()
    return curve
