"""Training builds the graph for matched masks only; the gradients must be those of the full graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskclip.model.visual_encoder import MaskEncoding
from maskclip.training.losses import Batch, build_criterion
from maskclip.training.mask_tokens import batch_losses
from study.params import load_study

TRAINING = load_study("mini", configs=Path(__file__).parent.parent / "configs").maskclip
TRAINING = dataclasses.replace(TRAINING, points=64)
B, M, S, C, K = 3, 9, 16, 8, 5
Targets = tuple[list[Tensor], list[Tensor]]  # labels and masks


class Encoder(torch.nn.Module):
    """Anything in which masks do not see one another: embeddings and two rounds of refined masks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(S * S, C)
        self.refine = torch.nn.ModuleList(torch.nn.Linear(S * S, S * S) for _ in range(2))
        self.seen: list[int] = []

    def see(self, images: Tensor) -> None:
        assert len(images) == B

    def encode(self, features: None, mask_logits: Tensor, valid: Tensor) -> MaskEncoding:
        self.seen.append(mask_logits.shape[1])
        flat, layers = mask_logits.flatten(2), []
        for layer in self.refine:
            flat = flat + 0.1 * layer(flat.tanh())
            layers.append(flat.view(mask_logits.shape))
        return MaskEncoding(self.embed(flat.tanh()), layers, layers[-1])


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Targets]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(B, M, S, S, generator=generator) * 3
    valid = torch.ones(B, M, dtype=torch.bool)
    valid[1, 6:] = False
    text = torch.nn.functional.normalize(torch.randn(K + 1, C, generator=generator), dim=-1)
    counts = (4, 2, 0)
    targets = (
        [torch.randint(0, K, (n,), generator=generator) for n in counts],
        [(torch.rand(n, 2 * S, 2 * S, generator=generator) < 0.4).float() for n in counts],
    )
    return masks, valid, text, targets


def losses(encoder: Encoder, masks: Tensor, valid: Tensor, text: Tensor, targets: Targets) -> dict[str, Tensor]:
    """What training takes: matched masks alone."""
    given = Batch(torch.zeros(B, 3, S, S), masks, valid, *targets)
    return batch_losses(encoder, given, text, build_criterion(TRAINING, K), TRAINING)


def full_graph(encoder: Encoder, masks: Tensor, valid: Tensor, text: Tensor, targets: Targets) -> dict[str, Tensor]:
    """The plain form: every mask in the graph, losses by transformers' own criterion, image by image where ragged."""
    criterion = build_criterion(TRAINING, K)
    seen = encoder.encode(None, masks, valid)
    embeddings, layers = seen.embeddings, seen.mask_logits
    logits = torch.nn.functional.normalize(embeddings, dim=-1) @ text.T / TRAINING.temperature
    cut = [[layer[i : i + 1, : valid[i].sum()] for i in range(B)] for layer in layers]
    with torch.no_grad():
        matches = [
            [
                criterion.matcher(one, logits[i : i + 1, : one.shape[1]], targets[1][i : i + 1], targets[0][i : i + 1])[
                    0
                ]
                for i, one in enumerate(layer)
            ]
            for layer in cut
        ]
    count = criterion.get_num_masks(targets[0], device=masks.device)
    classes = criterion.loss_labels(logits, targets[0], matches[-1])["loss_cross_entropy"]
    found = {"loss_ce": TRAINING.class_weight * classes}
    parts = [criterion.loss_masks(layer, targets[1], match, count) for layer, match in zip(layers, matches)]
    found["loss_dice"] = TRAINING.dice_weight * torch.stack([part["loss_dice"] for part in parts]).sum()
    found["loss_bce"] = TRAINING.mask_weight * torch.stack([part["loss_mask"] for part in parts]).sum()
    return {"loss": sum(found.values()), **found}


@pytest.mark.parametrize("seed", range(4))
def test_losses_and_gradients_equal_the_full_graphs(seed: int) -> None:
    torch.manual_seed(seed)
    encoder = Encoder()
    inputs = batch(seed)
    gradients = []
    values = []
    for form in (full_graph, losses):
        encoder.zero_grad()
        torch.manual_seed(7)  # both draw the same points, in the same order
        found = form(encoder, *inputs)
        found["loss"].backward()
        values.append({name: loss.item() for name, loss in found.items()})
        gradients.append([value.grad.clone() for value in encoder.parameters()])
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    for plain, fast in zip(*gradients):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)
        assert plain.abs().max() > 0


def test_only_matched_masks_get_a_graph() -> None:
    encoder = Encoder()
    losses(encoder, *batch(0))
    everything, graph = encoder.seen
    assert everything == M and graph < M


def test_each_layers_masks_have_a_loss_of_their_own() -> None:
    encoder = Encoder()
    masks, valid, text, targets = batch(1)
    torch.manual_seed(0)
    both = losses(encoder, masks, valid, text, targets)

    whole = encoder.encode

    def last_only(features: None, mask_logits: Tensor, valid: Tensor) -> MaskEncoding:
        seen = whole(features, mask_logits, valid)
        return MaskEncoding(seen.embeddings, seen.mask_logits[-1:], seen.masks)

    encoder.encode = last_only  # type: ignore[method-assign]
    torch.manual_seed(0)
    last = losses(encoder, masks, valid, text, targets)
    assert both["loss_dice"] > 1.5 * last["loss_dice"]


def test_a_batch_without_segments_is_survived() -> None:
    masks, valid, text, _ = batch(2)
    none = ([torch.zeros(0, dtype=torch.long)] * B, [torch.zeros(0, S, S)] * B)
    assert losses(Encoder(), masks, valid, text, none)["loss"].item() == 0
