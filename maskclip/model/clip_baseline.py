"""The CLIP Baseline (App. A, Alg. 1): one CLIP pass per mask, on the image with all else black."""

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.model.clip import Clip
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder, MaskEncoding, check_images, check_masks


class MaskedImages:
    """V_t = f_v(M_t * I) for every mask t, without gradients and without refinement.

    Used as the visual encoder is: `see` a picture once, then `encode` masks.

    Args:
        clip: the frozen CLIP; its image end is f_v.
        crop: also cut out the mask's bounding box and squash it to S x S. The paper only masks.
            A mask without a pixel has no box and stays an all-black picture.
        batch: masked pictures per CLIP pass. Masks without a pixel share one: all are black.
    Raises:
        ValueError: batch < 1, or a CLIP that is no plain ViT.
    """

    def __init__(self, clip: Clip, crop: bool = False, batch: int = 16) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; it must be at least 1 picture per pass")
        encoder = MaskCLIPVisualEncoder.from_open_clip(clip.model, ())
        self.f_v = encoder.embed_image  # open_clip's own encode_image takes half as long again
        self.crop, self.batch, self.patch, self.width = crop, batch, encoder.patch, clip.model.visual.output_dim
        self.black = -clip.mean / clip.std  # black, after CLIP's normalization

    def see(self, images: Tensor) -> Tensor:
        """Nothing can be seen before the masks are known: `images` [B, 3, S, S] themselves."""
        return images

    @torch.no_grad()
    def encode(self, images: Tensor, mask_logits: Tensor) -> MaskEncoding:
        """Embeddings of the masked images, and the masks as they came; arguments as the encoder's.

        M_t is 1 where the logit [B, M, S, S] is at least 0 (probability 1/2).
        """
        check_images(images, self.patch)
        check_masks(mask_logits, None, len(images), images.shape[-1])
        masks = (mask_logits.sigmoid() >= 0.5).flatten(0, 1)
        if not len(masks):
            return MaskEncoding(images.new_zeros(*mask_logits.shape[:2], self.width), [], mask_logits)
        image_of_mask = torch.arange(len(images), device=images.device).repeat_interleave(mask_logits.shape[1])
        # CLIP sees the black picture of all masks without a pixel once, first
        empty = ~masks.flatten(1).any(1)
        passes = torch.cat([empty.nonzero()[:1, 0], (~empty).nonzero()[:, 0]])
        seen = [self.f_v(self._pictures(images[image_of_mask[t]], masks[t])) for t in passes.split(self.batch)]
        pass_of_mask = ((~empty).cumsum(0) - 1 + empty.any()).masked_fill(empty, 0)
        return MaskEncoding(torch.cat(seen)[pass_of_mask].unflatten(0, mask_logits.shape[:2]), [], mask_logits)

    __call__ = encode

    def _pictures(self, images: Tensor, masks: Tensor) -> Tensor:
        """M_t * I for images [n, 3, S, S] and bool masks [n, S, S], cut out if so wanted."""
        pictures = torch.where(masks[:, None], images, self.black.to(images))
        if not self.crop:
            return pictures
        cut = [picture[(..., *_box(mask))][None] for picture, mask in zip(pictures, masks, strict=True)]
        return torch.cat([F.interpolate(picture, images.shape[-2:], mode="bicubic", antialias=True) for picture in cut])


def _box(mask: Tensor) -> tuple[slice, ...]:
    """The bounding box of a bool mask [S, S] as row and column slices; all if it has no pixel."""
    if not mask.any():
        return slice(None), slice(None)
    inside = [mask.any(other).nonzero()[:, 0] for other in (1, 0)]
    return tuple(slice(int(lines[0]), int(lines[-1]) + 1) for lines in inside)
