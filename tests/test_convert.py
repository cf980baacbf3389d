"""Released weights into ours: equal to the original modules on golden fixtures, and nothing unsafe or unknown read."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskclip.proposals import load_source
from maskclip.proposals.mask2former import build_mask2former
from maskclip.released.mask2former import convert, convert_state, our_name, read_detectron2
from maskclip.settings import Mask2FormerConfig

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("model.")}
    return state, tensors


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("name", ["mask2former", "authors_proposal_network"])
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_mask_logits_equal_the_original_modules(name, suffix, tmp_path):
    state, tensors = golden(name)
    if suffix == "pth":  # as detectron2 saves a training's end
        torch.save({"model": state, "iteration": 9, "optimizer": {"state": {}}}, tmp_path / "m.pth")
    else:  # as the model zoo publishes
        with (tmp_path / "m.pkl").open("wb") as file:
            pickle.dump({"model": {key: value.numpy() for key, value in state.items()}, "__author__": "zoo"}, file)
    converted = convert(tmp_path / f"m.{suffix}", tmp_path / "out.safetensors")
    assert converted.unmapped == [] and converted.record["classes"] == 0
    source = load_source(tmp_path / "out.safetensors")
    with torch.no_grad():
        output = source.model(pixel_values=tensors["input"])
    assert relative(output.masks_queries_logits, tensors["mask_logits"]) < 1e-5
    (proposals,) = source([np.zeros((70, 50, 3), np.uint8)])
    assert len(proposals) == 7 and ((proposals.scores >= 0) & (proposals.scores <= 1)).all()


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_numpy_1_and_2_beside_the_weights_are_read(core, tmp_path):
    """A training's end holds them in its optimizer; NumPy 1, the authors', has another name for what makes them."""
    numbers = [np.float64(1e-4), np.float32(0.05), np.int64(9), np.int32(9), np.bool_(True)]
    torch.save({"model": {"a": torch.ones(2)}, "optimizer": {"param_groups": [{"lr": numbers}]}}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core", f"numpy.{core}".encode()))
    assert torch.equal(read_detectron2(tmp_path / "old.pth")["a"], torch.ones(2))


def test_a_class_head_can_stay_for_objectness(tmp_path):
    state, tensors = golden("mask2former")
    dropped = convert_state(state)
    assert [key for key in dropped.dropped if "class_embed" in key] == [
        "sem_seg_head.predictor.class_embed.bias",
        "sem_seg_head.predictor.class_embed.weight",
    ]
    torch.save({"model": state}, tmp_path / "m.pth")
    kept = convert(tmp_path / "m.pth", tmp_path / "out.safetensors", keep_class_head=True)
    assert kept.record["classes"] == 5
    with torch.no_grad():
        output = load_source(tmp_path / "out.safetensors").model(pixel_values=tensors["input"])
    assert relative(output.class_queries_logits, tensors["class_logits"]) < 1e-5


def test_every_tensor_of_the_paper_s_size_has_a_place():
    """The names of ResNet-50, 6 + 9 layers: our names of them are the whole network, each once."""
    wanted = set(build_mask2former(Mask2FormerConfig()).state_dict())
    keys = [f"backbone.stem.conv1.{rest}" for rest in NORMED]
    for stage, depth in zip((2, 3, 4, 5), (3, 4, 6, 3)):
        for block in range(depth):
            names = ["conv1", "conv2", "conv3"] + ["shortcut"] * (block == 0)
            keys += [f"backbone.res{stage}.{block}.{name}.{rest}" for name in names for rest in NORMED]
    pixels, predictor = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    both = ("weight", "bias")
    keys += [f"{pixels}.input_proj.{level}.{part}.{kind}" for level in range(3) for part in (0, 1) for kind in both]
    keys += [f"{pixels}.transformer.level_embed"] + [f"{pixels}.mask_features.{kind}" for kind in both]
    keys += [
        f"{pixels}.{name}_1.{rest}" for name in ("adapter", "layer") for rest in ("weight", "norm.weight", "norm.bias")
    ]
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    parts = [f"self_attn.{name}" for name in attention] + ["norm1", "linear1", "linear2", "norm2"]
    keys += [
        f"{pixels}.transformer.encoder.layers.{layer}.{part}.{kind}"
        for layer in range(6)
        for part in parts
        for kind in both
    ]
    keys += [f"{predictor}.{name}.weight" for name in ("query_feat", "query_embed", "level_embed")]
    keys += [f"{predictor}.{name}.{kind}" for name in ("decoder_norm", "class_embed") for kind in both]
    keys += [f"{predictor}.mask_embed.layers.{layer}.{kind}" for layer in range(3) for kind in both]
    for layer in range(9):
        for block, name in (("self_attention", "self_attn"), ("cross_attention", "multihead_attn")):
            stem = f"{predictor}.transformer_{block}_layers.{layer}"
            keys += [f"{stem}.{name}.in_proj_{kind}" for kind in both]
            keys += [f"{stem}.{name}.out_proj.{kind}" for kind in both] + [f"{stem}.norm.{kind}" for kind in both]
        ffn = f"{predictor}.transformer_ffn_layers.{layer}"
        keys += [f"{ffn}.{part}.{kind}" for part in ("linear1", "linear2", "norm") for kind in both]
    names = []
    for key in keys:
        name = our_name(key)
        assert name is not None, key
        split = ".self_attn.in_proj_" in name
        names += [name.replace("in_proj_", f"{part}_proj.") for part in "qkv"] if split else [name]
    assert len(names) == len(set(names))
    assert set(names) == wanted - {"criterion.empty_weight"}


NORMED = ("weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


def test_a_whole_maskclip_keeps_its_encoder_under_released_names(tmp_path):
    state, _ = golden("authors_proposal_network")
    state["maskclip.visual.transformer.conv1_added_params.0.weight"] = torch.ones(2, 3)
    state["criterion.empty_weight"] = torch.ones(134)
    state["something.else"] = torch.ones(1)
    torch.save({"model": state}, tmp_path / "m.pth")
    converted = convert(tmp_path / "m.pth", tmp_path / "out.safetensors")
    assert converted.unmapped == ["something.else"] and converted.dropped == ["criterion.empty_weight"]
    assert "maskclip.visual.transformer.conv1_added_params.0.weight" in load_file(tmp_path / "out.safetensors")
    assert len(load_source(tmp_path / "out.safetensors")([np.zeros((64, 64, 3), np.uint8)])[0]) == 7


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/maskclip_code_ran",)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(suffix, tmp_path):
    path = tmp_path / f"evil.{suffix}"
    marker = Path("/tmp/maskclip_code_ran")
    marker.unlink(missing_ok=True)
    content = {"model": {"backbone.stem.conv1.weight": Evil()}}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_detectron2(path)
    assert not marker.exists()


def test_cut_off_and_foreign_files(tmp_path):
    state, _ = golden("mask2former")
    torch.save({"model": state}, tmp_path / "m.pth")
    whole = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        convert(tmp_path / "m.pth", tmp_path / "out.safetensors")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": {"a": np.zeros(3)}})[:-9])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        convert(tmp_path / "m.pkl", tmp_path / "out.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        convert(tmp_path / "none.pth", tmp_path / "out.safetensors")
    torch.save({"model": {"backbone.patch_embed.proj.weight": torch.ones(2)}}, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match="another architecture"):
        convert(tmp_path / "swin.pth", tmp_path / "out.safetensors")
    del state["sem_seg_head.predictor.decoder_norm.bias"]
    state["sem_seg_head.pixel_decoder.mask_features.bias"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"missing: .*decoder\.layernorm\.bias.*misshapen: .*mask_projection\.bias"):
        convert_state(state)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_without_record_is_no_source(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="no record"):
        load_source(tmp_path / "plain.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="cut off"):
        load_source(tmp_path / "broken.safetensors")
