"""The ResNet under both proposal networks: its normalization, its pretrained weights."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from transformers import ResNetConfig

from maskclip.proposals.config import BackboneConfig


def resnet_config(backbone: BackboneConfig) -> ResNetConfig:
    """transformers' configuration of a ResNet that gives its stages, at strides 4, 8, 16 and (of four stages) 32."""
    return ResNetConfig(
        embedding_size=backbone.stem_width,
        hidden_sizes=list(backbone.widths),
        depths=list(backbone.depths),
        layer_type=backbone.block,
        out_features=[f"stage{stage + 1}" for stage in range(len(backbone.widths))],  # type: ignore[call-arg]
    )


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
    if weights is None:
        return
    if Path(weights).is_file():
        from safetensors.torch import load_file

        state = load_file(weights)
    else:
        from transformers import AutoBackbone

        try:
            state = AutoBackbone.from_pretrained(weights, out_indices=[1, 2, 3, 4]).state_dict()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FileNotFoundError(f"no backbone weights at {weights}, as a file or on the hub ({reason})") from None
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    result = module.load_state_dict(state, strict=False)
    wrong = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")] + result.unexpected_keys
    if wrong:
        raise ValueError(f"{weights} does not fit the backbone: {len(wrong)} keys differ, such as {wrong[:3]}")
