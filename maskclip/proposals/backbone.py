"""The ResNet under both proposal networks and its normalization."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops
from transformers import AutoBackbone, ResNetConfig

from maskclip.proposals.weights import fill, pretrained, read_weights
from maskclip.settings import BackboneConfig


def resnet_config(backbone: BackboneConfig) -> ResNetConfig:
    """transformers' configuration of a ResNet that gives its stages, at strides 4, 8, 16 and (of four stages) 32."""
    return ResNetConfig(
        embedding_size=backbone.stem_width,
        hidden_sizes=list(backbone.widths),
        depths=list(backbone.depths),
        layer_type=backbone.block,
        out_features=[f"stage{stage + 1}" for stage in range(len(backbone.widths))],  # type: ignore[call-arg]
    )


class FrozenBatchNorm2d(ops.FrozenBatchNorm2d):
    """torchvision's, in one pass over the features instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def set_normalization(module: nn.Module, kind: str, channels_per_group: int = 8) -> None:
    """Replace each `BatchNorm2d` below `module` in place: "batch" leaves it, "frozen" fixes it, "group" is GroupNorm.

    Parameter names stay; a frozen norm keeps its numbers as buffers.
    """
    if kind not in ("batch", "frozen", "group"):
        raise ValueError(f"normalization is {kind!r}; it must be 'batch', 'frozen' or 'group'")
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                channels = child.num_features
                if kind == "batch":
                    nn.init.ones_(child.weight)  # transformers' Mask2Former fills it with noise
                    continue
                if kind == "group":
                    new = nn.GroupNorm(max(1, channels // channels_per_group), channels)
                else:
                    new = FrozenBatchNorm2d(channels, eps=child.eps)
                setattr(parent, name, new)


def load_backbone_weights(module: nn.Module, weights: str | None) -> None:
    """Fill a backbone from a safetensors file or a hub name; None leaves it as it is.

    Raises:
        FileNotFoundError: neither a file nor reachable on the hub.
        ValueError: the file's tensors are not this backbone's; the sentence names some.
    """
    if weights is not None:
        if Path(weights).is_file():
            state = read_weights(weights)
        else:
            state = pretrained(AutoBackbone, weights, "backbone weights", out_indices=[1, 2, 3, 4]).state_dict()
        fill(module, state, weights)
