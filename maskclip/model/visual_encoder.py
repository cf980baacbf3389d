"""The MaskCLIP visual encoder (Sec. 3.2, Fig. 1 right, Fig. 2): CLIP's frozen ViT, mask tokens, RMA.

Image and class tokens never look at mask tokens (Eq. 1). So CLIP runs once per image, untouched and
without a graph, and mask class tokens are cross-attention on each layer's keys and values.

Shapes: B images, M masks, N image patches of p x p pixels, D channels in H heads, S pixels a side,
C channels of CLIP's joint space.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskclip.model.inputs import check_images, check_masks, check_rma, plain_vit
from maskclip.model.relative_mask_attention import RelativeMaskAttention, visible_tokens

ViT = Any  # open_clip's vision transformer, and one of its layers: a module's parts have no types
Block = Any


@dataclass(frozen=True)
class LayerFeatures:
    """What one CLIP layer shows to mask class tokens.

    keys, values: [B, H, 1 + N, D / H], the class token first.
    image_tokens: [B, N, D] T_IM, after the layer's first LayerNorm; None in layers without RMA.
    class_token: [B, 1, D] as it enters the layer.
    """

    keys: Tensor
    values: Tensor
    image_tokens: Tensor | None
    class_token: Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """One CLIP pass over B images: `encode` answers any number of mask sets from it.

    layers: one `LayerFeatures` per CLIP layer.
    image_embedding: [B, C], CLIP's own embedding of the whole image, not normalized.
    size: S, the images' side in pixels.
    """

    layers: list[LayerFeatures]
    image_embedding: Tensor
    size: int


@dataclass(frozen=True)
class MaskEncoding:
    """What becomes of M masks.

    embeddings: [B, M, C] in CLIP's joint space, not normalized.
    mask_logits: one [B, M, S, S] per RMA layer in order, refined if the encoder refines.
    masks: [B, M, S, S], the final logits: the last of `mask_logits`, or the given ones.
    """

    embeddings: Tensor
    mask_logits: list[Tensor]
    masks: Tensor


class MaskCLIPVisualEncoder(nn.Module):
    """CLIP's ViT with M mask class tokens and, in some layers, RMA. Build with `from_open_clip`.

    Only `encoder.rma` trains (5.8 M parameters for ViT-L/14@336 and four layers); its state_dict is
    all that a checkpoint needs. `encoder.visual` is the given CLIP's own image tower, frozen, in eval
    mode for good. `encoder.checkpointing = True` trades memory for time in training: activations are
    computed again in backward.
    """

    visual: ViT

    def __init__(self, visual: ViT, rma: nn.ModuleDict) -> None:
        super().__init__()
        self.visual = visual.requires_grad_(False).eval()
        self.rma = rma
        self.patch: int = visual.patch_size[0]
        self.checkpointing = False

    @classmethod
    def from_open_clip(
        cls,
        clip_model: nn.Module,
        rma_layers: Sequence[int] = (6, 12, 18, 24),
        refine_masks: bool = True,
        query_form: str = "layernorm",
        zero_init_refinement: bool = False,
        generator: torch.Generator | None = None,
    ) -> MaskCLIPVisualEncoder:
        """An encoder on the image tower of `clip_model`, which is shared, not copied, and frozen.

        Args:
            clip_model: an open_clip CLIP whose image tower is a ViT that answers with its class token.
            rma_layers: layers with RMA, counted from 1 as in the paper; () is "MaskCLIP w/o RMA".
            refine_masks: False leaves out Eq. 5 (Table 8, "w/o MR").
            query_form: phi_Qm of Eq. 3, "layernorm" (released code) or "linear" (paper).
            zero_init_refinement: begin with residuals of zero, not the released code's random ones.
            generator: randomness of RMA's initial weights (torch's global one if None).
        Raises:
            ValueError: not such a CLIP, layers that it lacks, or an unknown query_form.
        """
        visual = plain_vit(clip_model)
        blocks = visual.transformer.resblocks
        check_rma(rma_layers, len(blocks), query_form)
        width, heads, patch = visual.conv1.out_channels, blocks[0].attn.num_heads, visual.patch_size[0]
        rma = nn.ModuleDict()
        for n in sorted(rma_layers):
            rma[str(n)] = RelativeMaskAttention(
                width, heads, patch, query_form, refine_masks, zero_init_refinement, generator
            )
        weight = visual.conv1.weight  # RMA trains, so it is never kept in half precision
        return cls(visual, rma.to(weight.device, torch.promote_types(weight.dtype, torch.float32)))

    @property
    def blocks(self) -> Sequence[Block]:
        """CLIP's layers."""
        return self.visual.transformer.resblocks

    @property
    def rma_layers(self) -> tuple[int, ...]:
        """The layers with RMA, counted from 1."""
        return tuple(int(n) for n in self.rma)

    def train(self, mode: bool = True) -> MaskCLIPVisualEncoder:
        """As in torch, except that CLIP stays in eval mode."""
        super().train(mode)
        self.visual.eval()
        return self

    def forward(self, images: Tensor, mask_logits: Tensor, valid: Tensor | None = None) -> MaskEncoding:
        """`encode(see(images), ...)`, keeping one layer's features at a time.

        Args:
            images: [B, 3, S, S], CLIP-normalized; S a multiple of the patch (positions are
                interpolated to it).
            mask_logits: [B, M, S, S], finite; a pixel is in its mask where the logit is at least 0.
            valid: bool [B, M], False for padding where images have different numbers of masks: there
                all results are 0, whatever is given, and no gradient comes from it. None: all valid.
        Raises:
            ValueError: a shape, type or value that does not fit, named.
        """
        check_images(images, self.patch)
        mask_logits = check_masks(mask_logits, valid, len(images), images.shape[-1])
        return self._mask_tokens(self._image_tokens(images), mask_logits, valid)

    @torch.no_grad()
    def see(self, images: Tensor) -> ImageFeatures:
        """CLIP's pass over `images` [B, 3, S, S], once for all masks to come. No graph: CLIP is frozen."""
        check_images(images, self.patch)
        layers = list(self._image_tokens(images))
        return ImageFeatures(layers, self._image_embedding(layers[-1]), images.shape[-1])

    @torch.no_grad()
    def embed_image(self, images: Tensor) -> Tensor:
        """CLIP's own embeddings [B, C] of whole `images` [B, 3, S, S]; nothing is kept for masks."""
        check_images(images, self.patch)
        return self._image_embedding(deque(self._image_tokens(images), maxlen=1).pop())

    def encode(self, features: ImageFeatures, mask_logits: Tensor, valid: Tensor | None = None) -> MaskEncoding:
        """Embeddings and refined masks on images already seen; arguments as in `forward`.

        Masks never see one another, so any subset gives the same results: in training, match all
        masks under `torch.no_grad()`, then build the graph for the matched ones alone.
        """
        mask_logits = check_masks(mask_logits, valid, len(features.image_embedding), features.size)
        return self._mask_tokens(features.layers, mask_logits, valid)

    @torch.no_grad()
    def _image_tokens(self, images: Tensor) -> Iterator[LayerFeatures]:
        """Image and class tokens, layer by layer, exactly as in CLIP (upper rows of Eq. 1)."""
        visual = self.visual
        patches = visual.conv1(images.to(visual.conv1.weight.dtype))
        tokens = patches.flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([class_token, tokens], dim=1) + self._positions(patches.shape[-1]).to(tokens.dtype)
        tokens = visual.ln_pre(tokens)
        for number, block in enumerate(self.blocks, 1):
            normed = block.ln_1(tokens)
            keys, values = _project(block.attn, normed, "kv")
            layer = LayerFeatures(keys, values, normed[:, 1:] if str(number) in self.rma else None, tokens[:, :1])
            yield layer
            if number < len(self.blocks):  # after the last layer, no image token matters
                tokens = self._layer(block, layer, tokens, normed)

    def _mask_tokens(self, layers: Iterable[LayerFeatures], mask_logits: Tensor, valid: Tensor | None) -> MaskEncoding:
        """Mask class tokens, layer by layer (lower row of Eq. 1; Fig. 2 in the RMA layers)."""
        if mask_logits.numel() == 0:  # no images or no masks
            empty = self.visual.class_embedding.new_zeros(*mask_logits.shape[:2], self.visual.output_dim)
            return MaskEncoding(empty, [mask_logits] * len(self.rma), mask_logits)
        visible, refined, given = visible_tokens(mask_logits, self.patch), [], mask_logits
        for number, (block, layer) in enumerate(zip(self.blocks, layers, strict=True), 1):
            if number == 1:  # each mask class token starts as CLIP's class token
                tokens = layer.class_token.expand(-1, mask_logits.shape[1], -1)
            if str(number) not in self.rma:
                tokens = self._maybe_checkpoint(self._layer, block, layer, tokens, None, visible[:, None])
                continue
            tokens, mask_logits = self._maybe_checkpoint(self._rma_layer, number, layer, tokens, mask_logits, visible)
            refined.append(mask_logits)
            if number < len(self.blocks):
                visible = visible_tokens(mask_logits, self.patch)
        embeddings = self._joint_space(tokens)
        if valid is not None and not valid.all():
            embeddings = embeddings.masked_fill(~valid[..., None], 0)
            refined = [torch.where(valid[..., None, None], logits, given) for logits in refined]
        return MaskEncoding(embeddings, refined, refined[-1] if refined else given)

    def _layer(
        self,
        block: Block,
        layer: LayerFeatures,
        tokens: Tensor,
        normed: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """One CLIP layer for `tokens` [B, T, D]; they look at `layer` where `visible` lets them."""
        (queries,) = _project(block.attn, block.ln_1(tokens) if normed is None else normed, "q")
        attended = F.scaled_dot_product_attention(queries, layer.keys, layer.values, attn_mask=visible)
        return _finish(block, tokens, attended)

    def _rma_layer(
        self, number: int, layer: LayerFeatures, tokens: Tensor, mask_logits: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One CLIP layer with Relative Mask Attention (Fig. 2): new mask tokens, and refined masks."""
        block: Block = self.blocks[number - 1]
        rma: Any = self.rma[str(number)]
        (queries,) = _project(block.attn, block.ln_1(tokens), "q")
        mask_attention = rma.mask_attention(mask_logits, layer.image_tokens, visible)
        keys, additive = rma.relative_attention(mask_attention, visible, layer.keys)
        attended = F.scaled_dot_product_attention(queries, keys, layer.values, attn_mask=additive)
        return _finish(block, tokens, attended), rma.refine_masks(mask_logits, queries, layer.keys)

    def _image_embedding(self, last: LayerFeatures) -> Tensor:
        """The class token [B, C] after the last layer, in joint space."""
        return self._joint_space(self._layer(self.blocks[-1], last, last.class_token))[:, 0]

    def _joint_space(self, tokens: Tensor) -> Tensor:
        """CLIP's last LayerNorm and projection: [B, T, D] -> [B, T, C]."""
        tokens = self.visual.ln_post(tokens)
        return tokens if self.visual.proj is None else tokens @ self.visual.proj

    def _positions(self, grid: int) -> Tensor:
        """Positional embedding [1 + N, D] for grid x grid patches, interpolated if CLIP's are others."""
        positions, own = self.visual.positional_embedding, self.visual.grid_size
        if own == (grid, grid):
            return positions
        pictures = positions[1:].T.reshape(1, -1, *own)
        pictures = F.interpolate(pictures.float(), (grid, grid), mode="bicubic", antialias=True).to(positions.dtype)
        return torch.cat([positions[:1], pictures.flatten(2)[0].T])

    def _maybe_checkpoint(self, function: Callable, *arguments: Any) -> Any:
        """With `encoder.checkpointing`, a layer keeps only its input, and backward computes it again."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)


def _project(attention: nn.MultiheadAttention, normed: Tensor, which: str) -> list[Tensor]:
    """CLIP's frozen phi_Q ("q") or phi_K and phi_V ("kv"): [B, T, D] -> a [B, H, T, D / H] each."""
    width = attention.embed_dim
    rows = slice(0, width) if which == "q" else slice(width, 3 * width)
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
    projected = F.linear(normed, attention.in_proj_weight[rows], bias)
    heads = projected.unflatten(-1, (len(which), attention.num_heads, -1))
    return [part.transpose(1, 2) for part in heads.unbind(2)]


def _finish(block: Block, tokens: Tensor, attended: Tensor) -> Tensor:
    """A CLIP layer after its attention [B, H, T, D / H]: output projection and MLP, both residual."""
    tokens = tokens + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
