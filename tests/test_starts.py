"""What proposal networks and MaskCLIP begin with: what is taken from it, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone

from maskclip.files import load_checkpoint, save_checkpoint
from maskclip.proposals.backbone import resnet_config
from maskclip.proposals.load import SOURCES, build_network, load_source
from maskclip.proposals.mask2former import build_mask2former
from maskclip.released.encoder import released_state_dict
from maskclip.training.mask_tokens import train_maskclip, trained_weights
from maskclip.training.mask_tokens import training_record as maskclip_record
from maskclip.training.proposal_networks import train_proposals, training_record
from miniature.pretraining import base_pictures, save_network
from study.params import load_study
from study.run import Run

TOP = Path(__file__).parent.parent
CLASS_HEADS = tuple(head for kind in SOURCES.values() for head in kind.class_heads)
CONFIG = dataclasses.replace(load_study("mini", configs=TOP / "configs").proposals.mask2former, start=None)


def begun_with(start: Path | str, classes: int = 1):
    return build_network(dataclasses.replace(CONFIG, start=str(start)), classes)


def assert_all_but_the_class_head_equal(network, other: dict[str, torch.Tensor]) -> None:
    for name, value in network.state_dict().items():
        if not name.startswith(CLASS_HEADS):
            torch.testing.assert_close(value, other[name].to(value.dtype), rtol=0, atol=0)


def test_a_class_aware_network_is_a_start_without_its_class_head(tmp_path):
    torch.manual_seed(0)
    aware = build_mask2former(CONFIG, classes=7)
    save_file({k: v.contiguous() for k, v in aware.state_dict().items()}, tmp_path / "network.safetensors")
    (tmp_path / "record.json").write_text("{}")
    start = save_network(tmp_path, tmp_path / "start.safetensors")
    assert start.stat().st_size < 0.6 * (tmp_path / "network.safetensors").stat().st_size
    torch.manual_seed(1)
    assert_all_but_the_class_head_equal(begun_with(start), load_file(start))
    assert_all_but_the_class_head_equal(begun_with(start, classes=3), load_file(start))


def test_a_released_file_is_a_start_without_its_encoder(tmp_path):
    torch.manual_seed(0)
    released = {k: v.contiguous() for k, v in build_mask2former(CONFIG).state_dict().items()}
    save_file(released | {"maskclip.visual.proj": torch.ones(2)}, tmp_path / "released.safetensors")
    torch.manual_seed(1)
    assert_all_but_the_class_head_equal(begun_with(tmp_path / "released.safetensors"), released)


@pytest.mark.parametrize("name", ["mask2former", "mask_rcnn"])
def test_object_or_not_goes_on_as_it_was(name, tmp_path):
    """A class-agnostic network is begun with whole, the head that tells objects included; with classes, without it."""
    config = dataclasses.replace(getattr(load_study("mini", configs=TOP / "configs").proposals, name), start=None)
    torch.manual_seed(0)
    first = build_network(config, 1).state_dict()
    save_file({k: v.contiguous() for k, v in first.items()}, tmp_path / "start.safetensors")
    config = dataclasses.replace(config, start=str(tmp_path / "start.safetensors"))
    for key, value in build_network(config, 1).state_dict().items():
        torch.testing.assert_close(value, first[key], rtol=0, atol=0)
    aware = build_network(config, 3)
    assert_all_but_the_class_head_equal(aware, first)
    assert any(value.shape != first[key].shape for key, value in aware.state_dict().items())


def test_detectron2_has_no_start():
    config = dataclasses.replace(load_study("mini", configs=TOP / "configs").proposals.mask_rcnn, start="some.file")
    with pytest.raises(ValueError, match=r"start is some.file, but detectron2 begins with backbone.weights"):
        build_network(dataclasses.replace(config, implementation="detectron2"), 1)


def test_a_transformers_folder_is_a_start_too(tmp_path):
    torch.manual_seed(0)
    # batch statistics, as transformers itself builds it
    config = dataclasses.replace(CONFIG, backbone=dataclasses.replace(CONFIG.backbone, normalization="batch"))
    aware = build_mask2former(config, classes=7)
    aware.save_pretrained(tmp_path)
    begun = build_network(dataclasses.replace(config, start=str(tmp_path)), 1)
    assert_all_but_the_class_head_equal(begun, aware.state_dict())


def test_what_is_no_start_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no proposal network at .*empty"):
        begun_with(tmp_path / "empty")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors is of another architecture: \d+ keys differ"):
        begun_with(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:20])
    with pytest.raises(ValueError, match=r"cut.safetensors is not a whole safetensors file"):
        begun_with(tmp_path / "cut.safetensors")


def test_a_training_with_another_start_is_another_training(tmp_path):
    pictures, prints = base_pictures(5, 1, variants=1), []
    for value in (0.0, 1.0):  # the same path, other weights
        save_file({"weight": torch.full((1,), value)}, tmp_path / "start.safetensors")
        config = dataclasses.replace(CONFIG, start=str(tmp_path / "start.safetensors"))
        prints.append(training_record("mask2former", pictures, config, 0, 1)["hash"])
    assert prints[0] != prints[1]


@pytest.mark.parametrize("name", ["mask2former", "mask_rcnn"])
def test_a_backbone_begins_with_a_files_weights_or_refuses_them(name, tmp_path):
    """`backbone.weights`, as the paper's ImageNet ResNet-50, batch norms with their counters of batches included."""
    config = dataclasses.replace(getattr(load_study("mini", configs=TOP / "configs").proposals, name), start=None)
    small = dataclasses.replace(config.backbone, normalization="frozen")
    torch.manual_seed(0)
    backbone = AutoBackbone.from_config(resnet_config(small))
    save_file({k: v.contiguous() for k, v in backbone.state_dict().items()}, tmp_path / "backbone.safetensors")
    weights = str(tmp_path / "backbone.safetensors")

    begun = dataclasses.replace(config, backbone=dataclasses.replace(small, weights=weights))
    state = build_network(begun, 1).state_dict()
    kernels = {k: v for k, v in backbone.state_dict().items() if "convolution" in k}
    assert kernels
    for key, value in kernels.items():
        (found,) = (v for k, v in state.items() if k.endswith(f".{key}") and "pixel_level_module.decoder" not in k)
        torch.testing.assert_close(found, value, rtol=0, atol=0)

    wider = dataclasses.replace(small, weights=weights, widths=(32, 64, 128))
    with pytest.raises(ValueError, match=r"backbone.safetensors is of another architecture: \d+ keys differ"):
        build_network(dataclasses.replace(config, backbone=wider), 1)


@pytest.fixture
def run(monkeypatch) -> Run:
    monkeypatch.chdir(TOP)
    return Run(0)


def begun(run: Run, start: Path, **changes) -> Run:
    run.study = dataclasses.replace(
        run.study, maskclip=dataclasses.replace(run.study.maskclip, start=str(start), **changes)
    )
    return run


def other_weights(run: Run, seed: int = 1) -> dict[str, torch.Tensor]:
    """Those of another MaskCLIP of the same shape."""
    generator = torch.Generator().manual_seed(seed)
    fresh = trained_weights(run.new_encoder("maskclip"))
    return {key: torch.randn(value.shape, generator=generator) for key, value in fresh.items()}


def test_maskclip_begins_with_a_training_or_a_converted_release(run, tmp_path):
    weights = other_weights(run)
    (tmp_path / "maskclip").mkdir()
    save_checkpoint(tmp_path / "maskclip" / "encoder.pt", weights)
    encoder = run.new_encoder("maskclip")
    encoder.load_state_dict(weights, strict=False)
    released = {key: value.contiguous() for key, value in released_state_dict(encoder).items()}
    released["backbone.stem.conv1.weight"] = torch.ones(2)  # a whole model has its proposal network, too
    save_file(released, tmp_path / "released.safetensors")
    for start in (tmp_path / "maskclip", tmp_path / "maskclip" / "encoder.pt", tmp_path / "released.safetensors"):
        found = trained_weights(begun(run, start).new_encoder("maskclip"))
        assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
    assert run.new_encoder("wo_rma").rma_layers == (), "a method without RMA has nothing to begin with"


def test_what_is_no_start_of_maskclip_is_refused(run, tmp_path):
    save_checkpoint(tmp_path / "encoder.pt", other_weights(run))
    with pytest.raises(ValueError, match=r"encoder\.pt is of another MaskCLIP than method 'wo_refinement'"):
        begun(run, tmp_path / "encoder.pt").new_encoder("wo_refinement")
    with pytest.raises(FileNotFoundError, match=r"no MaskCLIP weights at .*none\.safetensors; maskclip convert"):
        begun(run, tmp_path / "none.safetensors").new_encoder("maskclip")
    save_file({"backbone.stem.conv1.weight": torch.ones(2)}, tmp_path / "proposals.safetensors")
    with pytest.raises(ValueError, match=r"proposals\.safetensors holds no MaskCLIP encoder; convert the authors'"):
        begun(run, tmp_path / "proposals.safetensors").new_encoder("maskclip")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "proposals.safetensors").read_bytes()[:20])
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a whole safetensors file"):
        begun(run, tmp_path / "cut.safetensors").new_encoder("maskclip")


def test_other_weights_train_maskclip_anew_another_place_does_not(run, tmp_path):
    def hash_with(start: Path) -> str:
        encoder = begun(run, start).new_encoder("maskclip")
        return maskclip_record(encoder, run.clip, None, {}, run.study.maskclip, 0)["hash"]

    fresh = maskclip_record(run.new_encoder("maskclip"), run.clip, None, {}, run.study.maskclip, 0)["hash"]
    weights, prints = other_weights(run), []
    for name in ("a.pt", "moved.pt"):
        save_checkpoint(tmp_path / name, weights)
        prints.append(hash_with(tmp_path / name))
    save_checkpoint(tmp_path / "a.pt", {key: value + 1 for key, value in weights.items()})
    prints.append(hash_with(tmp_path / "a.pt"))
    assert prints[0] == prints[1] and len({fresh, *prints}) == 3


def test_with_no_steps_the_starts_stay_as_they_are(run, tmp_path):
    """And no training set is asked for."""
    save_checkpoint(tmp_path / "encoder.pt", weights := other_weights(run))
    settings = begun(run, tmp_path / "encoder.pt", steps=0).study.maskclip
    curve = train_maskclip(run.new_encoder("maskclip"), run.clip, None, {}, settings, tmp_path / "out", 0)
    found = load_checkpoint(tmp_path / "out" / "encoder.pt")
    assert curve.empty and all(torch.equal(found[key], weights[key]) for key in weights)
    again = train_maskclip(run.new_encoder("maskclip"), run.clip, None, {}, settings, tmp_path / "out", 0)
    assert again.empty and [place.name for place in tmp_path.iterdir() if place.is_dir()] == ["out"]
    with pytest.raises(ValueError, match="steps is 3, but there is no data set to train on"):
        steps = dataclasses.replace(settings, steps=3)
        train_maskclip(run.new_encoder("maskclip"), run.clip, None, {}, steps, tmp_path / "out", 0)

    torch.manual_seed(0)
    network = {k: v.contiguous() for k, v in build_mask2former(CONFIG).state_dict().items()}
    for classes in (0, 1):  # without a class head, as the authors' network, and with one
        record = {"network": "mask2former", "classes": classes, "config": {}}
        save_file(network, tmp_path / "start.safetensors", {"record": json.dumps(record)})
        still = dataclasses.replace(CONFIG.training, steps=0)
        config = dataclasses.replace(CONFIG, start=str(tmp_path / "start.safetensors"), training=still)
        out = train_proposals("mask2former", None, config, tmp_path / f"network{classes}", device="cpu")
        state = load_file(out / "network.safetensors")
        assert all(torch.equal(value, network[key]) for key, value in state.items())
        assert load_source(out).class_head is bool(classes)
    with pytest.raises(ValueError, match=r"training.steps is \d+, but there is no data set to train on"):
        train_proposals("mask2former", None, CONFIG, tmp_path / "x", device="cpu")
