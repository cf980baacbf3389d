"""A typing error in a parameter is one sentence before the first minute of work."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from maskclip.settings import scale_layers
from study.methods import METHODS, NETWORKS
from study.params import deviations, load_params, load_study
from study.run import Run

ROOT = Path(__file__).parent.parent


def changed(folder: Path, **changes: dict) -> Path:
    """A folder with params.yaml and the profiles, changes in `params` or `mini` (nested alike) laid over them."""

    def lay_over(base: dict, change: dict) -> None:
        for name, value in change.items():
            if isinstance(value, dict) and isinstance(base.get(name), dict):
                lay_over(base[name], value)
            else:
                base[name] = value

    (folder / "configs").mkdir()
    for name in ("params.yaml", "configs/mini.yaml", "configs/paper.yaml"):
        content = YAML(typ="safe").load(ROOT / name)
        lay_over(content, changes.get(Path(name).stem, {}))
        YAML().dump(content, folder / name)
    return folder


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


def test_what_departs_from_the_paper_is_named(tmp_path: Path) -> None:
    paper = load_study("paper", configs=ROOT / "configs")
    pip = "proposals.mask_rcnn.implementation is torchvision, the paper's detectron2"
    assert deviations(paper) == [pip]
    backbone = replace(paper.proposals.mask2former.backbone, weights=None)
    mask2former = replace(paper.proposals.mask2former, backbone=backbone)
    tried = replace(
        paper,
        maskclip=replace(paper.maskclip, steps=4, workers=0),
        evaluation=replace(paper.evaluation, limit=10),
        data=replace(paper.data, training_limit=20),
        proposals=replace(paper.proposals, mask2former=mask2former),
        efficiency=replace(paper.efficiency, model="ViT-B-32"),
    )
    assert deviations(tried) == [
        "proposals.mask2former.backbone.weights is None, the paper's timm/resnet50.tv_in1k (random weights)",
        pip,
        "maskclip.steps is 4, the paper's 10000",
        "evaluation.limit is 10, the paper's None",
        "efficiency.model is ViT-B-32, the paper's ViT-L-14-336",
        "data.training_limit is 20, the paper's None",
    ]
    drawn = replace(paper, data=replace(paper.data, world=load_study("mini", configs=ROOT / "configs").data.world))
    assert deviations(drawn) == [pip, "data.world is drawn, the paper's data sets are photographs"]
    own = replace(paper, proposals=replace(paper.proposals, mask2former=replace(mask2former, test_sizes={})))
    assert "proposals.mask2former.test_sizes.a150 is None, the paper's [640, 2560]" in deviations(own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"maskclip": {"stepz": 3}}, ["mini.yaml.maskclip.stepz is an unknown key", "steps"]),
        ({"maskclip": {"steps": -1}}, ["maskclip.steps is -1", "greater than or equal to 0"]),
        ({"maskclip": {"steps": "many"}}, ["maskclip.steps is 'many'", "valid integer"]),
        ({"maskclip": {"steps": True}}, ["maskclip.steps is True", "valid integer"]),
        ({"maskclip": {"learning_rate": "1e-4 "}}, ["learning_rate is '1e-4 '", "valid number"]),
        ({"maskclip": {"rma_layers": 6}}, ["rma_layers is 6", "must be a list"]),
        ({"data": {"world": {"coco_train": 0}}}, ["data.world.coco_train is 0", "greater than 0"]),
        ({"nonsense": {}}, ["mini.yaml.nonsense is an unknown key"]),
        ({"maskclip": {"rma_layers": [30]}}, ["rma_layers", "within 1 to 24"]),
        ({"maskclip": {"rma_layers": [5, 3]}}, ["rma_layers", "rise"]),
        ({"maskclip": {"rma_layers": []}}, ["rma_layers is []", "at least 1 item"]),
        ({"maskclip": {"temperature": float("inf")}}, ["maskclip.temperature is inf", "finite"]),
        ({"maskclip": {"learning_rate": float("nan")}}, ["learning_rate is nan", "finite"]),
        ({"evaluation": {"limit": 0}}, ["evaluation.limit is 0", "greater than 0"]),
        ({"evaluation": {"overlap_threshold": 5.0}}, ["overlap_threshold is 5.0", "less than or equal to 1"]),
        ({"proposals": {"mask2former": {"training": {"scale": [2.0, 0.1]}}}}, ["mask2former.training: scale is"]),
        ({"proposals": {"mask2former": {"backbone": {"widths": [32]}}}}, ["widths (32,)", "four stages"]),
        ({"proposals": {"mask2former": {"backbone": {"block": "x"}}}}, ["backbone.block is 'x'", "bottleneck"]),
        ({"maskclip": {"mixed_precision": "fp8"}}, ["is 'fp8'", "must be 'no', 'fp16' or 'bf16'"]),
        ({"maskclip": {"mixed_precision": False}}, ["is False", "must be 'no', 'fp16' or 'bf16'"]),
        ({"maskclip": 3}, ["mini.yaml.maskclip is 3", "must be a mapping"]),
        ({"maskclip": {"steps": -1, "points": 0}}, ["maskclip.steps is -1", "; ", "maskclip.points is 0"]),
        (
            {"proposals": {"mask_rcnn": {"train_short_sides": []}}},
            ["mask_rcnn.train_short_sides is []", "at least 1 item"],
        ),
    ],
)
def test_a_wrong_parameter_is_named(change: dict, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load_study("mini", changed(tmp_path, mini=change) / "configs")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_twins_are_the_profiles_mask2former_and_differ_in_class_supervision_alone(profile: str) -> None:
    agnostic, aware = NETWORKS["class_agnostic"], NETWORKS["class_aware"]
    look = {"id": agnostic.id, "label": agnostic.label, "colour": agnostic.colour}
    assert aware.class_aware and replace(aware, **look, class_aware=False) == agnostic
    proposals = load_study(profile, configs=ROOT / "configs").proposals
    same = {"training": proposals.mask2former.training, "start": proposals.mask2former.start}
    assert replace(proposals.twins, **same) == proposals.mask2former and proposals.twins.start is None


@pytest.mark.parametrize(("table", "known"), [(METHODS, "maskclip"), (NETWORKS, "mask_rcnn")])
def test_an_unknown_method_or_network_is_named_with_the_known_ones(table: dict, known: str) -> None:
    with pytest.raises(ValueError, match=f"no 'maskklip'; it has .*{known}"):
        table["maskklip"]


def test_an_unknown_profile_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown profile '../configs/mini'"):
        load_study("../configs/mini")
    with pytest.raises(ValueError, match=r"unknown profile 'maxi'.*mini, .*paper"):
        load_study("maxi", configs=ROOT / "configs")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "mini.yaml").read_text()
    (tmp_path / "mini.yaml").write_text(text.replace("  temperature: 0.01\n", ""))
    with pytest.raises(ValueError, match=r"mini\.yaml\.maskclip\.temperature is missing$"):
        load_study("mini", tmp_path)


def test_yaml_is_of_version_1_2(tmp_path: Path) -> None:
    """As DVC reads it: 1e-4 is a number, no is a word, and merge keys work."""
    text = (ROOT / "configs" / "mini.yaml").read_text().replace("learning_rate: 1.0e-3", "learning_rate: 1e-3")
    assert "1e-3" in text
    (tmp_path / "mini.yaml").write_text(text.replace("  class_weight", "  mixed_precision: no\n  class_weight"))
    study = load_study("mini", tmp_path)
    assert (study.maskclip.learning_rate, study.maskclip.mixed_precision) == (1e-3, "no")
    assert study.proposals.twins.queries == study.proposals.mask2former.queries == 30


def test_settings_made_in_code_are_checked_too() -> None:
    training = load_study("mini", configs=ROOT / "configs").maskclip
    for wrong in ({"batch": 0}, {"steps": "3"}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(training, **wrong)


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
    with pytest.raises(ValueError, match=r"params\.yaml is not valid YAML: .*duplicate key \"profile\""):
        load_params(tmp_path / "params.yaml")
    for text in (b"profile: \xff", b"profile: &a [*a]"):
        (tmp_path / "params.yaml").write_bytes(text)
        with pytest.raises(ValueError, match=r"params\.yaml is not valid YAML"):
            load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"overides": {}}, r"params\.yaml\.overides is an unknown key; known are profile"),
        ({"processes": "4"}, "processes is '4'; it must be a valid integer"),
        ({"processes": 0}, "processes is 0; it must be greater than 0"),
        ({"seeds": []}, r"seeds is \[\]; .* at least 1 item"),
        ({"seeds": [0, -1]}, r"seeds\[1\] is -1; it must be greater than or equal to 0"),
        ({"seeds": [2**70]}, r"seeds\[0\] is .*; it must be less than 4294967296"),
        ({"seeds": [1, 1]}, "each seed may stand there once"),
        ({"device": "gpu"}, "device is 'gpu'; it must be 'auto', 'cpu' or 'cuda'"),
        ({"device": "cuda:1"}, "device is 'cuda:1'; it must be 'auto', 'cpu' or 'cuda'"),
        ({"processes": 8}, "processes is 8, among which mask2former's batch of 4"),
        ({"processes": 3}, "processes is 3, among which mask2former's batch of 4"),
    ],
)
def test_a_mistake_in_params_is_one_sentence(tmp_path: Path, change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load_params(changed(tmp_path, params=change) / "params.yaml")
    assert "\n" not in str(caught.value)


def test_processes_and_batches_must_fit(tmp_path: Path) -> None:
    folder = changed(tmp_path, params={"processes": 4}, mini={"maskclip": {"batch": 6}})
    with pytest.raises(ValueError, match="processes is 4, among which maskclip's batch of 6 does not divide"):
        load_params(folder / "params.yaml")


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


def test_a_try_can_be_limited_in_training_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.run.open_dataset", lambda name, root, limit: limit)
    limits = {"data": {"training_limit": 7}, "evaluation": {"limit": 3}}
    run = Run(0, changed(tmp_path, mini=limits) / "params.yaml")
    assert (run.dataset("coco_train"), run.dataset("coco_split_train"), run.dataset("a150")) == (7, 7, 3)
