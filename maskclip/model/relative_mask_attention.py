"""Relative Mask Attention (Fig. 2, Eq. 2 to 5): the trained part of the MaskCLIP visual encoder.

Nothing here ever holds an M x N x D tensor: Eq. 3 is folded, Eq. 5 is streamed over masks.

Shapes: B images, M masks, N image patches of p x p pixels, D channels in H heads, S pixels a side.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.model.buffers import Buffers

QUICK_GELU = 1.702  # QuickGELU(a) = a sigmoid(1.702 a) = silu(1.702 a) / 1.702
HIDDEN = 32  # channels between the two layers of the paper's f_r, whose number the paper does not give
CACHE_BYTES = {"cpu": 2**22, "cuda": 2**28}  # how much of an M x N x D tensor may exist at a time


def grid_of(pixels: Tensor, patch: int) -> Tensor:
    """[B, M, S, S] -> [B, M, S / p, S / p, p, p], a view: the pixels of each patch."""
    return pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).transpose(3, 4)


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """[B, M, S, S] -> [B, M, N, p * p], patches and the pixels in them in reading order."""
    return grid_of(pixels, patch).flatten(4).flatten(2, 3)


@torch.no_grad()
def visible_tokens(mask_logits: Tensor, patch: int) -> Tensor:
    """Eq. 1 and 2: what each mask class token may look at, bool [B, M, 1 + N] (True = may, as in torch).

    The class token, first, always; image patch j, if the mask has a pixel there (probability at least
    one half). Mask tokens, its own included, never, so they have no column.
    """
    rows = mask_logits.unflatten(2, (-1, patch)).amax(3)  # first down, where memory is read in order: 7 times as fast
    most = rows.unflatten(3, (-1, patch)).amax(4).flatten(2)
    return F.pad(most.sigmoid() >= 0.5, (1, 0), value=True)  # sigmoid is monotone: the maximum decides


class RelativeMaskAttention(nn.Module):
    """The trained weights of one RMA layer, and Eq. 3 to 5 with them.

    Args:
        query_form: phi_Qm, "layernorm" as in the released code or "linear" as in the paper (Eq. 3).
        refinement_form: f_r, "product" as in the released code, "attention" as the paper words it, or "none" for a
            layer that does not refine masks (Eq. 5; see `refine_masks`).
        zero_init: begin with f_r = 0, so that untrained masks stay as proposed.
        generator: randomness of the initial weights, which follow the released code.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        patch: int,
        query_form: str = "layernorm",
        refinement_form: str = "product",
        zero_init: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.patch, self.scale = heads, patch, (width // heads) ** -0.5
        self.refined = Buffers()
        self.mask_embedding = nn.Conv2d(1, width, patch, patch)  # f2
        self.mask_query = nn.LayerNorm(width) if query_form == "layernorm" else nn.Linear(width, width)  # phi_Qm
        self.image_key = nn.Linear(width, width)  # phi_Km
        self.residual = _f_r(refinement_form, width, heads, patch * patch)

        layers: list[Any] = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.uniform_(layer.bias, 0, float(isinstance(layer, nn.Conv2d)), generator=generator)
        if zero_init and self.residual is not None:
            for parameter in [*self.residual.parameters()][-2:]:  # of the last convolution
                nn.init.zeros_(parameter)

    def mask_attention(self, mask_logits: Tensor, image_tokens: Tensor, visible: Tensor) -> Tensor:
        """Eq. 3: A'_{M,N} = sum_c (phi_Qm(T_MP) (*) phi_Km(T_IM))_c, per head, folded.

        A mask patch x has only p * p numbers, so its D channels W x + b need never be formed: with a
        head's keys k, <W x + b, k> = <x, W^T k> + <b, k>, where W^T k is computed once per image
        token. A LayerNorm in between folds too: subtracting the mean over channels is subtracting it
        from W and b; the variance is a quadratic form in x.

        Args:
            mask_logits: [B, M, S, S]; f2 reads their tanh.
            image_tokens: [B, N, D] T_IM, normalized as CLIP's attention takes them.
            visible: bool [B, M, 1 + N]; attention is computed only where a mask may look.
        Returns:
            [B, H, M, N], not scaled; of no meaning where not visible.
        """
        batch, tokens, width = image_tokens.shape
        query: Any = self.mask_query
        f2: Any = self.mask_embedding
        with torch.autocast(mask_logits.device.type, enabled=False):
            keys = self.image_key(image_tokens.to(f2.weight.dtype)).view(batch, tokens, self.heads, -1)
            weight, bias = f2.weight.flatten(1), f2.bias  # W [D, p * p] and b [D]
            if isinstance(query, nn.Linear):
                weight, bias = query.weight @ weight, query(bias)
            else:
                weight, bias = weight - weight.mean(0), bias - bias.mean()
                gram = weight.T @ weight / width  # variance of W x + b = x^T gram x + 2 x^T cross + constant
                cross, constant = bias @ weight / width, bias.square().mean() + query.eps
                offset = _per_head(keys, query.bias)
                keys = keys * query.weight.view(self.heads, -1)
            folded = torch.einsum("bnhc,hcp->bnph", keys, weight.view(self.heads, -1, weight.shape[1])).flatten(0, 1)
            constant_score = _per_head(keys, bias)

            scores = []
            masks_at_once = _fitting(batch * tokens * self.patch**2 * keys.itemsize, keys.device)
            pieces = mask_logits.split(masks_at_once, dim=1), visible[..., 1:].split(masks_at_once, dim=1)
            for logits, seen in zip(*pieces, strict=True):
                seen = seen.transpose(1, 2).flatten().nonzero()[:, 0]  # of B * N * m patches
                patches = patchify(logits.to(keys.dtype), self.patch).transpose(1, 2).flatten(0, 2)
                x = patches.index_select(0, seen).tanh()  # [patches seen, p * p]
                shown = torch.zeros_like(patches).index_copy(0, seen, x).unflatten(0, (len(folded), -1))
                score = torch.baddbmm(constant_score, shown, folded)  # [B * N, m, H]
                if isinstance(query, nn.LayerNorm):
                    variance = (torch.addmm(2 * cross, x, gram) * x).sum(-1) + constant
                    scale = variance.clamp_min(query.eps).rsqrt()  # clamped against rounding
                    scales = scale.new_ones(len(patches)).index_copy(0, seen, scale)
                    score = score * scales.view(*score.shape[:2], 1) + offset
                scores.append(score.view(batch, tokens, -1, self.heads).permute(0, 3, 2, 1))
            return torch.cat(scores, dim=2)

    def relative_attention(self, mask_attention: Tensor, visible: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 4: A_{M,N} = (phi_Q(T_MC) phi_K(T_IM)^T + A'_{M,N}) / 2, both scaled by 1 / sqrt(D / H).

        Given as what makes fused attention compute it: image keys [B, H, 1 + N, D / H], halved, and
        half of A' as the additive mask [B, H, M, 1 + N]. The class token's column is no part of
        A_{M,N}: it is neither halved nor added to. `keys` are CLIP's own.
        """
        additive = F.pad(mask_attention * (self.scale / 2), (1, 0)).masked_fill(~visible[:, None], -math.inf)
        keys = torch.cat([keys[:, :, :1], keys[:, :, 1:] / 2], dim=2)
        return keys, additive.to(keys.dtype)

    def refine_masks(
        self, mask_logits: Tensor, queries: Tensor, keys: Tensor, mask_attention: Tensor, visible: Tensor
    ) -> Tensor:
        """Eq. 5: M_r = sigmoid(sigmoid^-1(M_c) + f_r(phi_Q(T_MC) phi_K(T_IM))), on logits: a plain sum.

        The released f_r sees the scaled product of query and key channel by channel, [M, N, D]; it is
        QuickGELU, then one 1 x 1 convolution to p * p channels, laid out as the pixels of the patch. The
        paper's, "a two-layer convolutional network that maps the attention matrix to a mask residual",
        sees both attentions that Eq. 4 sums, head by head, [M, N, 2 H], as pictures of N patches.

        Args:
            mask_logits: [B, M, S, S] M_c.
            queries, keys: [B, H, M, D / H] of the mask tokens, [B, H, 1 + N, D / H], CLIP's; the released
                f_r gives keys no gradient.
            mask_attention, visible: Eq. 3's answer and what it was given.
        Returns:
            [B, M, S, S], the input itself if this layer does not refine.
        """
        if self.residual is None:
            return mask_logits
        if isinstance(self.residual, nn.Conv2d):
            queries = queries.transpose(1, 2).flatten(2) * (self.scale * QUICK_GELU)
            keys = keys[:, :, 1:].transpose(1, 2).flatten(2)
            weight, bias = (self.residual.weight.flatten(1) / QUICK_GELU).to(queries.dtype), self.residual.bias
            return _StreamedResidual.apply(mask_logits, queries, keys, weight, bias, self.patch, self.refined)
        grid = mask_logits.shape[-1] // self.patch
        masks_at_once = _fitting(mask_logits[:, :1].numel() * mask_attention.itemsize, keys.device)
        pieces = mask_logits.split(masks_at_once, 1), queries.split(masks_at_once, 2)
        seen = mask_attention.split(masks_at_once, 2), visible[:, None, :, 1:].split(masks_at_once, 2)
        refined = []
        with torch.autocast(mask_logits.device.type, enabled=False):
            for logits, asking, relative, told in zip(*pieces, *seen, strict=True):
                plain = (asking @ keys[:, :, 1:].mT).to(relative.dtype)
                attention = torch.cat([plain, relative.masked_fill(~told, 0)], dim=1).transpose(1, 2) * self.scale
                residual = self.residual(attention.flatten(0, 1).unflatten(2, (grid, grid)))  # of B * m pictures
                refined.append(logits + F.pixel_shuffle(residual, self.patch).view(logits.shape).to(logits.dtype))
        return torch.cat(refined, dim=1)


def _f_r(form: str, width: int, heads: int, pixels: int) -> nn.Module | None:
    """Eq. 5's f_r in one of its forms, from attention to the `pixels` of each patch."""
    if form == "none":
        return None
    if form == "product":
        return nn.Conv2d(width, pixels, 1)
    return nn.Sequential(nn.Conv2d(2 * heads, HIDDEN, 3, padding=1), nn.GELU(), nn.Conv2d(HIDDEN, pixels, 3, padding=1))


def _per_head(keys: Tensor, vector: Tensor) -> Tensor:
    """<k, v> head by head: keys [B, N, H, D / H], vector [D] -> [B * N, 1, H]."""
    return (keys * vector.view(keys.shape[2:])).sum(-1).flatten(0, 1).unsqueeze(1)


def _fitting(item_bytes: int, device: torch.device) -> int:
    """How many things of so many bytes fit the cache, at least one."""
    return max(1, CACHE_BYTES.get(device.type, CACHE_BYTES["cuda"]) // max(1, item_bytes))


def _products(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Eq. 5's queries (*) keys by pieces: slices of images and masks, and their product [.., .., N, D].

    All pieces lie in one buffer the size of the cache: each is gone when the next is asked for.
    """
    images, masks = queries.shape[:2]
    fitting = _fitting(keys[0].numel() * keys.element_size(), keys.device)
    images_at_once, masks_at_once = min(images, max(1, fitting // masks)), min(masks, fitting)
    buffer = keys.new_empty(images_at_once, masks_at_once, *keys.shape[1:]).flatten()
    for image in range(0, images, images_at_once):
        for mask in range(0, masks, masks_at_once):
            i, m = slice(image, image + images_at_once), slice(mask, mask + masks_at_once)
            shape = (*queries[i, m].shape[:2], *keys.shape[1:])
            product = buffer[: math.prod(shape)].view(shape)
            yield i, m, torch.mul(queries[i, m, None], keys[i, None], out=product)


class _StreamedResidual(torch.autograd.Function):
    """mask_logits + weight silu(queries (*) keys) + bias, a few masks at a time, again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        mask_logits: Tensor,
        queries: Tensor,
        keys: Tensor,
        weight: Tensor,
        bias: Tensor,
        patch: int,
        buffers: Buffers,
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, weight)
        ctx.patch, ctx.bias_dtype = patch, bias.dtype
        refined = buffers.empty_like(mask_logits)
        with torch.autocast(keys.device.type, enabled=False):
            for i, m, product in _products(queries, keys):
                residual = F.linear(F.silu(product, inplace=True), weight, bias.to(weight.dtype))
                given, result = grid_of(mask_logits[i, m], patch), grid_of(refined[i, m], patch)
                torch.add(given, residual.view(given.shape), out=result)
        return refined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_refined: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, weight = ctx.saved_tensors
        grad_queries = torch.empty_like(queries)
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        grad_bias = grad_refined.new_zeros(weight.shape[0])
        with torch.autocast(keys.device.type, enabled=False):
            for i, m, product in _products(queries, keys):
                grad = patchify(grad_refined[i, m], ctx.patch).to(weight.dtype)
                grad_bias += grad.sum((0, 1, 2))
                grad_product = torch.ops.aten.silu_backward(grad @ weight, product)
                grad_queries[i, m] = grad_product.mul_(keys[i, None]).sum(2)
                grad_weight += grad.flatten(0, 2).T @ F.silu(product, inplace=True).flatten(0, 2)
        return grad_refined, grad_queries, None, grad_weight.to(weight.dtype), grad_bias.to(ctx.bias_dtype), None, None
