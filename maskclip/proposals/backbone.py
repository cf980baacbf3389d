"""The ResNet under both proposal networks, and weights into it and them: every key in its place, or one sentence."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision import ops
from transformers import AutoBackbone, ResNetConfig

from maskclip.hub import check_reachable
from maskclip.settings import BackboneConfig

TORCHVISION = [  # how its names begin, and transformers' names of the same; its classifier is left out
    (r"conv1", "embedder.embedder.convolution"),
    (r"bn1", "embedder.embedder.normalization"),
    (r"layer(\d+)\.(\d+)\.conv(\d)", "encoder.stages.{}.layers.{}.layer.{}.convolution"),
    (r"layer(\d+)\.(\d+)\.bn(\d)", "encoder.stages.{}.layers.{}.layer.{}.normalization"),
    (r"layer(\d+)\.(\d+)\.downsample\.0", "encoder.stages.{}.layers.{}.shortcut.convolution"),
    (r"layer(\d+)\.(\d+)\.downsample\.1", "encoder.stages.{}.layers.{}.shortcut.normalization"),
]


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
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def set_up_backbone(module: nn.Module, backbone: BackboneConfig) -> None:
    """Give a ResNet with batch norms the normalization and the weights of its settings, in place.

    Parameter names stay; a frozen norm keeps its numbers as buffers. The weights may have transformers' names or
    torchvision's, which timm's repositories have too. FileNotFoundError where they are neither a file nor on the hub,
    ValueError where they are another ResNet's.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _normalization(child, backbone.normalization))
    if weights := backbone.weights:
        if Path(weights).is_file():
            state = read_weights(weights)
        elif weights.startswith("timm/"):
            state = read_weights(_downloaded(weights))
        else:
            state = pretrained(AutoBackbone, weights, "backbone weights", out_indices=[1, 2, 3, 4]).state_dict()
        fill(module, by_transformers_names(state) if "conv1.weight" in state else state, weights)


def by_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's weights of a ResNet as those of transformers' backbone: the same layers, called otherwise."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in TORCHVISION:
            if found := re.match(pattern, key):
                # stages and layers count from 1 there, blocks from 0; here all from 0
                places = [int(number) - first for number, first in zip(found.groups(), (1, 0, 1))]
                renamed[name.format(*places) + key[found.end() :]] = value
                break
    return renamed


def _downloaded(repo: str) -> str:
    """The weights of a repository of the hub, from the cache if they are there."""
    check_reachable(repo, "backbone weights", "that file in place of the name")
    try:
        return hf_hub_download(repo, "model.safetensors")
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"no backbone weights at {repo} on the hub ({reason})") from None


def _normalization(norm: nn.BatchNorm2d, kind: str) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(max(1, norm.num_features // 8), norm.num_features)
    if kind == "frozen":
        return FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    nn.init.ones_(norm.weight)  # transformers' Mask2Former fills it with noise
    return norm


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError where it is cut off or not there."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); train or fetch it again") from None


def pretrained(architecture: Any, name: str, what: str, **options: Any) -> Any:
    """A model of transformers by folder or hub name; FileNotFoundError, which calls it `what`, if there is none."""
    if not Path(name).exists() and len(Path(name).parts) == 2:  # the hub's names are OWNER/NAME
        check_reachable(name, what, "their folder in place of the name")
    try:
        return architecture.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"no {what} at {name}, neither on this machine nor on the hub ({reason})") from None


def fill(model: nn.Module, state: Mapping[str, Tensor], origin: str | Path, ignored: tuple[str, ...] = ()) -> None:
    """Load `state`, which came from `origin`, into `model`; ValueError where it does not fit (`check_fit`).

    Keys that begin with one of `ignored`, and counters of batches, are left as they are.
    """

    def taken(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        left = [key for key in weights if key.startswith(ignored) or key.endswith("num_batches_tracked")]
        return {key: value for key, value in weights.items() if key not in left}

    check_fit(taken(state), taken(model.state_dict()), origin)
    model.load_state_dict(taken(state), strict=False)


def check_fit(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str | Path, of: str = "another architecture"
) -> None:
    """ValueError where weights from `origin` are not those wanted; it names keys missing, surplus or misshapen."""
    missing = [f"missing: {key}" for key in wanted if key not in given]
    surplus = [f"surplus: {key}" for key in given if key not in wanted]
    misshapen = [
        f"misshapen: {key} is {tuple(given[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    if wrong := missing + surplus + misshapen:
        named = "; ".join(missing[:4] + surplus[:4] + misshapen[:4])
        raise ValueError(f"{origin} is of {of}: {len(wrong)} keys differ, such as {named}")
