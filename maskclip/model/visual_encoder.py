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

from maskclip.model.relative_mask_attention import RelativeMaskAttention, visible_tokens

ViT = Any  # open_clip's vision transformer, and one of its layers: a module's parts have no types
Block = Any


@dataclass(frozen=True)
class LayerFeatures:
    """What one CLIP layer shows to mask class tokens."""

    keys: Tensor  # [B, H, 1 + N, D / H], the class token first
    values: Tensor  # the same
    image_tokens: Tensor | None  # [B, N, D] T_IM, after the first LayerNorm; None in layers without RMA
    class_token: Tensor  # [B, 1, D] as it enters the layer


@dataclass(frozen=True)
class ImageFeatures:
    """One CLIP pass over B images: `encode` answers any number of mask sets from it."""

    layers: list[LayerFeatures]
    image_embedding: Tensor  # [B, C], CLIP's own, of the whole image, not normalized
    size: int  # S


@dataclass(frozen=True)
class MaskEncoding:
    """What becomes of M masks."""

    embeddings: Tensor  # [B, M, C] in CLIP's joint space, not normalized
    mask_logits: list[Tensor]  # [B, M, S, S] after each RMA layer, refined if the encoder refines
    masks: Tensor  # the last of them, or the given ones


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
        refinement_form: str = "product",
        zero_init_refinement: bool = False,
        generator: torch.Generator | None = None,
    ) -> MaskCLIPVisualEncoder:
        """An encoder on the image tower of `clip_model`, which is shared, not copied, and frozen.

        Args:
            clip_model: an open_clip CLIP whose image tower is a ViT that answers with its class token.
            rma_layers: layers with RMA, counted from 1 as in the paper; () is "MaskCLIP w/o RMA".
            refine_masks: False leaves out Eq. 5 (Table 8, "w/o MR").
            query_form: phi_Qm of Eq. 3, "layernorm" (released code) or "linear" (paper).
            refinement_form: f_r of Eq. 5, "product" (released code) or "attention" (paper).
            zero_init_refinement: begin with residuals of zero, not the released code's random ones.
            generator: randomness of RMA's initial weights.
        Raises:
            ValueError: not such a CLIP, layers that it lacks, or an unknown form.
        """
        visual = _plain_vit(clip_model)
        blocks = visual.transformer.resblocks
        layers = tuple(rma_layers)
        if any(type(n) is not int or not 1 <= n <= len(blocks) for n in layers) or len(set(layers)) < len(layers):
            raise ValueError(f"rma_layers is {layers}; it must hold layers of the ViT, 1 to {len(blocks)}, none twice")
        if query_form not in ("layernorm", "linear"):
            raise ValueError(f"query_form is {query_form!r}; it must be 'layernorm' (released) or 'linear' (paper)")
        if refinement_form not in ("product", "attention"):
            raise ValueError(
                f"refinement_form is {refinement_form!r}; it must be 'product' (released) or 'attention' (paper)"
            )
        weight, heads = visual.conv1.weight, blocks[0].attn.num_heads
        options = query_form, refinement_form if refine_masks else "none", zero_init_refinement, generator
        rma = {str(n): RelativeMaskAttention(len(weight), heads, weight.shape[-1], *options) for n in sorted(layers)}
        dtype = torch.promote_types(weight.dtype, torch.float32)  # RMA trains: never in half precision
        return cls(visual, nn.ModuleDict(rma).to(weight.device, dtype))

    @property
    def blocks(self) -> Sequence[Block]:
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
                all results are 0, whatever is given, and no gradient comes from it.
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
        asking = queries
        if additive.requires_grad and not queries.requires_grad:  # in the first RMA layer; CUDA's fused attention fails
            asking = queries.detach().requires_grad_()  # where only the mask has a gradient (pytorch/pytorch#148476)
        attended = F.scaled_dot_product_attention(asking, keys, layer.values, attn_mask=additive)
        refined = rma.refine_masks(mask_logits, queries, layer.keys, mask_attention, visible)
        return _finish(block, tokens, attended), refined

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


def _plain_vit(clip_model: nn.Module) -> ViT:
    """The image tower, if it is a ViT as `_image_tokens` and `_layer` compute it."""
    visual: Any = getattr(clip_model, "visual", None)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    parts = ("conv1", "class_embedding", "positional_embedding", "ln_post")
    plain = (
        blocks
        and all(hasattr(visual, part) for part in parts)
        and getattr(visual, "pool_type", "tok") == "tok"
        and getattr(visual, "attn_pool", None) is None
        and all(isinstance(block.attn, nn.MultiheadAttention) and block.attn.batch_first for block in blocks)
        and visual.patch_size[0] == visual.patch_size[1]
    )
    if not plain:
        raise ValueError(
            f"clip_model is a {type(clip_model).__name__} with image tower {type(visual).__name__}; it must be an "
            "open_clip CLIP with a plain ViT: square patches, torch's multi-head attention and a class token that is "
            "its answer (no ResNet, no timm tower, no pooling of image tokens)"
        )
    return visual


def check_images(images: Tensor, patch: int) -> None:
    """CLIP-normalized images [B, 3, S, S], S a multiple of the patch."""
    shape = tuple(images.shape)
    square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0
    if not (square and shape[2] % patch == 0 and images.is_floating_point()):
        raise ValueError(
            f"images is {images.dtype} {shape}; it must be floating point [B, 3, S, S], normalized as CLIP's images "
            f"are, with S a multiple of the patch, {patch}"
        )


def check_masks(mask_logits: Tensor, valid: Tensor | None, batch: int, size: int) -> Tensor:
    """Mask logits [B, M, S, S], with zeros for padding, so that nothing in it can matter."""
    shape = tuple(mask_logits.shape)
    if len(shape) != 4 or shape != (batch, shape[1], size, size) or not mask_logits.is_floating_point():
        raise ValueError(
            f"mask_logits is {mask_logits.dtype} {shape}; it must be logits in floating point, [B, M, S, S], here "
            f"({batch}, M, {size}, {size})"
        )
    if valid is not None:
        if valid.dtype != torch.bool or valid.shape != shape[:2]:
            raise ValueError(f"valid is {valid.dtype} {tuple(valid.shape)}; it must be bool [B, M], {shape[:2]}")
        if not valid.all():
            mask_logits = mask_logits.masked_fill(~valid[..., None, None], 0)
    if mask_logits.numel() and not torch.stack(torch.aminmax(mask_logits.detach())).isfinite().all():
        raise ValueError("mask_logits holds values that are not finite; every valid mask must be finite logits")
    return mask_logits


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
