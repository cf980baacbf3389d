"""Stage two's training (Sec. 4.2): the parameters RMA adds to a frozen CLIP, on stored class-agnostic proposals."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from maskclip.data import Dataset
from maskclip.files import (
    check_as_written,
    code_digest,
    file_digests,
    finished,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)
from maskclip.model.clip import Clip, preprocess, text_embeddings
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from maskclip.settings import MaskClipTraining
from maskclip.training.losses import Targets, build_criterion, losses_of_matched_masks

ENCODER_CODE = ("model/clip.py", "model/visual_encoder.py", "model/relative_mask_attention.py")
TRAINING_CODE = ("training", *ENCODER_CODE, "data", "proposals")
FILES = ("encoder.pt", "curve.csv")  # of a finished training, beside its record
CURVE = ("step", "loss", "loss_ce", "loss_dice", "loss_bce")
TARGET_SIZE_RATIO = 2  # ground truth is sampled on a grid this much finer than CLIP's input


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


def _decayed(encoder: MaskCLIPVisualEncoder, weight_decay: float) -> list[dict[str, Any]]:
    """What trains, in two groups: norms are not decayed, as released."""
    norms = {
        id(value) for part in encoder.modules() if isinstance(part, torch.nn.LayerNorm) for value in part.parameters()
    }
    trained = [value for value in encoder.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trained if id(value) not in norms], "weight_decay": weight_decay},
        {"params": [value for value in trained if id(value) in norms], "weight_decay": 0.0},
    ]


def _batch_losses(
    encoder: MaskCLIPVisualEncoder, batch: Batch, text: Tensor, criterion: Mask2FormerLoss, training: MaskClipTraining
) -> dict[str, Tensor]:
    """CLIP once without a graph, mask tokens twice: all of them to be matched, the matched ones to be trained."""
    features = encoder.see(batch.images)

    def encode(mask_logits: Tensor, valid: Tensor) -> tuple[Tensor, list[Tensor]]:
        output = encoder.encode(features, mask_logits, valid)
        return output.embeddings, output.mask_logits

    return losses_of_matched_masks(encode, batch.mask_logits, batch.valid, text, batch.targets, criterion, training)


def train_maskclip(
    encoder: MaskCLIPVisualEncoder,
    clip: Clip,
    dataset: Dataset,
    proposals: Mapping[int | str, Proposals],
    training: MaskClipTraining,
    out: str | Path,
    seed: int,
) -> pd.DataFrame:
    """Train the encoder's RMA parameters in place; AdamW, constant rate, CLIP frozen, the class "other" for no object.

    Checkpoints go to `out`/checkpoint.pt every `training.checkpoint_every` steps; called again after a kill, the
    function goes on from there with the pictures, mirrorings and sampled points of an undisturbed run. A checkpoint
    of other parameters, data, words or code is not resumed. At the end `out` holds encoder.pt, the trained weights,
    curve.csv and record.json, with digests of both: called again for the very same training, by the same code, the
    function finds it finished, unless one of them has changed since.

    Args:
        proposals: stored proposals by image id.

    Returns:
        The training curve, one row per step: step, loss, loss_ce, loss_dice, loss_bce (weighted).

    Raises:
        ValueError: the encoder has nothing to train, a batch does not divide among the processes, or a loss is not
            finite.
    """
    parameters = [value for value in encoder.parameters() if value.requires_grad]
    if not parameters:
        raise ValueError("this encoder has no RMA layers, so nothing to train; it is the w/o RMA baseline as it is")
    out = Path(out)
    processes = PartialState().num_processes
    if training.batch % processes:
        raise ValueError(
            f"a batch of {training.batch} does not divide among {processes} processes; set maskclip.batch to a multiple"
        )
    accelerator = Accelerator(mixed_precision=training.mixed_precision, cpu=clip.device.type == "cpu")
    device = accelerator.device
    encoder.to(device).train()
    with torch.no_grad():
        for value in parameters:  # every process begins where the first one does
            value.copy_(broadcast(value))
    encoder.checkpointing = training.activation_checkpointing
    names = [category.name for category in dataset.categories]
    text = text_embeddings(clip, [*names, "other"]).to(device)
    relevant = {**dataclasses.asdict(training), "checkpoint_every": None, "workers": None}
    first = proposals[dataset.image_ids[0]].mask_logits
    identity = [relevant, encoder.rma_layers, sorted(trained_weights(encoder)), dataset.fingerprint(), names, seed]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for content in (text, first):  # stands for CLIP's weights, and for the proposal network's
        digest.update(content.float().cpu().numpy().tobytes())
    record = {"fingerprint": digest.hexdigest(), "code": code_digest(*TRAINING_CODE)}
    if finished(out, record, FILES):
        accelerator.print(f"{out} holds this training, finished")
        load_trained_weights(encoder, out / "encoder.pt")
        return pd.read_csv(out / "curve.csv")

    criterion = build_criterion(training, len(names)).to(device)
    optimizer = accelerator.prepare(
        torch.optim.AdamW(_decayed(encoder, training.weight_decay), lr=training.learning_rate)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / max(1, training.warmup_steps))
    )

    curve: list[dict[str, float]] = []
    checkpoint = out / "checkpoint.pt"
    if checkpoint.is_file():
        state = load_checkpoint(checkpoint, device)
        if all(state.get(key) == value for key, value in record.items()):
            encoder.load_state_dict(state["encoder"], strict=False)
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            if accelerator.scaler is not None and "scaler" in state:
                accelerator.scaler.load_state_dict(state["scaler"])
            curve = state["curve"]
            accelerator.print(f"resuming at step {len(curve)} of {training.steps}")
        else:
            accelerator.print(f"{checkpoint} belongs to other parameters, data or code; starting anew")

    def save() -> None:
        if accelerator.is_main_process:
            state = {**record, "encoder": trained_weights(encoder), "curve": curve}
            state |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            if accelerator.scaler is not None:
                state["scaler"] = accelerator.scaler.state_dict()
            save_checkpoint(checkpoint, state)

    order = _order(len(dataset), training.batch, seed, len(curve), accelerator.process_index, accelerator.num_processes)
    loader = torch.utils.data.DataLoader(
        _Items(clip, dataset, proposals), batch_sampler=order, collate_fn=_collate, num_workers=training.workers
    )
    steps = range(len(curve), training.steps)
    bar = tqdm(
        zip(steps, loader), total=training.steps, initial=len(curve), desc="MaskCLIP", unit="step", mininterval=5,
        disable=not accelerator.is_main_process,
    )  # fmt: skip
    for step, collated in bar:
        torch.manual_seed(seed * 1_000_003 + step)  # the sampled points of this step, resumed or not
        batch = _to_batch(collated, clip.image_size, device)
        with accelerator.autocast():
            losses = _batch_losses(encoder, batch, text, criterion, training)
        loss = sum(losses.values(), torch.zeros((), device=device))
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()} at step {step}; lower maskclip.learning_rate or use float32")
        optimizer.zero_grad()
        if loss.requires_grad:  # not where no picture of the batch has a segment
            accelerator.backward(loss)
        if accelerator.num_processes > 1:
            for value in parameters:
                gradient = torch.zeros_like(value) if value.grad is None else value.grad
                value.grad = accelerator.reduce(gradient, "mean")
        accelerator.clip_grad_norm_(parameters, training.gradient_norm)
        optimizer.step()
        scheduler.step()
        shown = accelerator.reduce({"loss": loss.detach(), **{k: v.detach() for k, v in losses.items()}}, "mean")
        row = {"step": step, **{name: value.item() for name, value in shown.items()}}
        curve.append(row)
        bar.set_postfix(loss=f"{row['loss']:.2f}", refresh=False)
        if (step + 1) % training.checkpoint_every == 0 and step + 1 < training.steps:
            save()
    if accelerator.is_main_process:
        frame = pd.DataFrame(curve, columns=CURVE)
        (out / "record.json").unlink(missing_ok=True)  # of another training; the new one comes last, when all is there
        write_atomically(out / "curve.csv", lambda path: frame.to_csv(path, index=False))
        save_checkpoint(out / "encoder.pt", trained_weights(encoder))
        said = json.dumps({**record, "files": file_digests(out, FILES)}, indent=2) + "\n"
        write_atomically(out / "record.json", lambda path: path.write_text(said))
        checkpoint.unlink(missing_ok=True)  # a finished training is not gone on with
    accelerator.wait_for_everyone()
    return pd.DataFrame(curve, columns=CURVE)
