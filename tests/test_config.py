"""A typing error in a parameter is one sentence before the first minute of work."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from maskclip.settings import scale_layers
from study.params import load_params, load_study
from study.run import METHODS, PROPOSAL_NETWORKS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_profiles_are_valid(profile: str) -> None:
    study = load_study(profile, configs=ROOT / "configs")
    assert study.maskclip.rma_layers == [6, 12, 18, 24]


def test_the_paper_profile_is_the_papers() -> None:
    study = load_study("paper", configs=ROOT / "configs")
    training = study.maskclip
    assert (training.learning_rate, training.batch, training.steps) == (1e-4, 8, 10_000)
    assert (training.class_weight, training.dice_weight, training.mask_weight) == (2, 5, 5)
    assert (training.points, training.no_object_weight, training.temperature) == (12_544, 0, 0.01)
    assert study.clip.model == "ViT-L-14-336-quickgelu"
    network = study.proposals.mask2former
    assert (network.queries, network.decoder_layers, network.points, network.training.crop) == (100, 9, 12_544, 1024)
    assert network.training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"maskclip": {"stepz": 3}}, ["unknown key 'stepz'", "steps", "mini.yaml.maskclip"]),
        ({"maskclip": {"steps": -1}}, ["maskclip.steps is -1", "at least 0"]),
        ({"maskclip": {"steps": "many"}}, ["maskclip.steps", "'many'", "int"]),
        ({"maskclip": {"steps": True}}, ["maskclip.steps", "int"]),
        ({"maskclip": {"learning_rate": "1e-4"}}, ["learning_rate", "1.0e-4"]),
        ({"maskclip": {"rma_layers": 6}}, ["rma_layers", "list"]),
        ({"data": {"world": {"coco_train": 0}}}, ["data.world.coco_train is 0", "at least 1"]),
        ({"nonsense": {}}, ["unknown key 'nonsense'"]),
        ({"maskclip": {"rma_layers": [30]}}, ["rma_layers", "within 1 to 24"]),
        ({"maskclip": {"rma_layers": [5, 3]}}, ["rma_layers", "rise"]),
        ({"maskclip": {"rma_layers": []}}, ["rma_layers is empty"]),
        ({"maskclip": {"temperature": float("inf")}}, ["maskclip.temperature is inf", "finite"]),
        ({"maskclip": {"learning_rate": float("nan")}}, ["learning_rate is nan", "finite"]),
        ({"evaluation": {"limit": 0}}, ["evaluation.limit is 0", "at least 1"]),
        ({"evaluation": {"overlap_threshold": 5.0}}, ["overlap_threshold is 5.0", "at most 1"]),
        ({"proposals": {"mask2former": {"training": {"scale": [2.0, 0.1]}}}}, ["mask2former.training: scale is"]),
        ({"proposals": {"mask2former": {"backbone": {"widths": [32]}}}}, ["widths (32,)", "four stages"]),
        ({"proposals": {"mask2former": {"backbone": {"block": "x"}}}}, ["backbone.block is 'x'", "bottleneck"]),
        ({"proposals": {"mask_rcnn": {"train_short_sides": []}}}, ["mask_rcnn: train_short_sides is empty"]),
    ],
)
def test_a_wrong_parameter_is_named(overrides: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load_study("mini", overrides, configs=ROOT / "configs")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_twins_are_the_profiles_mask2former_and_differ_in_class_supervision_alone(profile: str) -> None:
    agnostic, aware = PROPOSAL_NETWORKS["class_agnostic"], PROPOSAL_NETWORKS["class_aware"]
    assert aware.class_aware and replace(aware, class_aware=False) == agnostic
    proposals = load_study(profile, configs=ROOT / "configs").proposals
    same = {"training": proposals.mask2former.training, "start": proposals.mask2former.start}
    assert replace(proposals.twins, **same) == proposals.mask2former and proposals.twins.start is None


@pytest.mark.parametrize(("table", "known"), [(METHODS, "maskclip"), (PROPOSAL_NETWORKS, "mask_rcnn")])
def test_an_unknown_method_or_network_is_named_with_the_known_ones(table: dict, known: str) -> None:
    with pytest.raises(ValueError, match=f"no 'maskklip'; it has .*{known}"):
        table["maskklip"]


def test_an_unknown_profile_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown profile 'maxi'.*mini, paper"):
        load_study("maxi", configs=ROOT / "configs")


def test_overrides_in_params_reach_the_study(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["overrides"]["maskclip"] = {"steps": 7}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert load_params(tmp_path / "params.yaml")[1].maskclip.steps == 7


def test_the_command_reads_params_before_the_study_begins(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for profile, status, said in (("mini", 0, ""), ("maxi", 1, "error: unknown profile 'maxi'")):
        text = (ROOT / "params.yaml").read_text().replace("profile: mini", f"profile: {profile}")
        (tmp_path / "params.yaml").write_text(text)
        command = [sys.executable, "-m", "study.params"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == status and done.stderr.startswith(said) and done.stderr.count("\n") == status


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("profile: mini\nseeds: [0]\nprofile: paper\n")
    with pytest.raises(ValueError, match=r"params\.yaml is not valid YAML: the key 'profile' stands twice"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"profile: \xff")
    with pytest.raises(ValueError, match=r"params\.yaml is not valid YAML"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"overides": {}}, "unknown key 'overides'"),
        ({"processes": "4"}, "processes is '4', a str; it must be a int"),
        ({"processes": 0}, "processes is 0; it must be at least 1"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [0, -1]}, "from 0 to"),
        ({"seeds": [2**70]}, "from 0 to"),
        ({"seeds": [1, 1]}, "each seed may stand there once"),
        ({"overrides": {"maskclip": {"stepz": 1}}}, "overrides of .*mini.yaml.maskclip has an unknown key 'stepz'"),
        ({"device": "gpu"}, "device is 'gpu'; it must be one of auto, cpu, cuda"),
        ({"device": "cuda:1"}, "device is 'cuda:1'; it must be one of auto, cpu, cuda"),
        (
            {"processes": 4, "overrides": {"maskclip": {"batch": 6}}},
            "processes is 4, among which maskclip's batch of 6",
        ),
        ({"processes": 3}, "processes is 3, among which mask2former's batch of 4"),
        ({"overrides": {"maskclip": {"mixed_precision": "fp8"}}}, "'fp8'; it must be one of no, fp16, bf16"),
        ({"overrides": {"maskclip": {"mixed_precision": False}}}, 'mixed_precision is False.*write "no"'),
    ],
)
def test_a_mistake_in_params_is_one_sentence(tmp_path: Path, change: dict, sentence: str) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=sentence):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("paper", "depth", "expected"),
    [
        ([6, 12, 18, 24], 24, (6, 12, 18, 24)),
        ([6, 12, 18, 24], 12, (3, 6, 9, 12)),
        ([6, 12, 18, 24], 6, (2, 3, 5, 6)),
        ([1, 7, 13, 19], 6, (1, 2, 3, 5)),
        ([3, 9, 15, 21], 6, (1, 2, 4, 5)),
        ([21, 22, 23, 24], 6, (3, 4, 5, 6)),
        ([6, 12, 18, 24], 4, (1, 2, 3, 4)),
    ],
)
def test_table_9s_layers_at_the_same_fractions_of_depth(paper: list[int], depth: int, expected: tuple) -> None:
    assert scale_layers(paper, depth) == expected


@pytest.mark.parametrize(("paper", "depth"), [([0, 6], 6), ([6, 25], 6), ([6, 6], 6), ([6, 12, 18, 24], 3)])
def test_layers_a_vit_lacks_are_refused(paper: list[int], depth: int) -> None:
    with pytest.raises(ValueError, match="rma_layers"):
        scale_layers(paper, depth)
