"""Predicted costs are those of the networks that the study runs, and add up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from test_evaluate import toy_set

from maskclip.data import DATASETS, Category, Dataset, DatasetEntry
from maskclip.model.clip import load_clip
from maskclip.model.pipeline import MaskCLIP
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals.load import build_network
from maskclip.roofline import GPUS, count
from maskclip.training.proposal_networks import network_losses
from study import methods, work
from study.cost import by_stage, main, number_of_pictures, predict, told
from study.methods import METHODS, NETWORKS
from study.params import Study, load_study

ROOT = Path(__file__).parent.parent
A100 = GPUS["A100"]


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def mini() -> Study:
    return load_study("mini", ROOT / "configs")


@pytest.fixture(scope="module")
def predicted(mini: Study) -> pd.DataFrame:
    return predict(mini, A100, stages=ROOT / "dvc.yaml")


def test_a_network_counted_small_is_the_network_at_its_size(mini: Study) -> None:
    """Two sizes and one and two pictures tell what three pictures of a third size take."""
    config = mini.proposals.mask2former
    config = replace(config, start=None, training=replace(config.training, crop=192))
    network = build_network(config, 1).train()
    examples = [work._example(192, number) for number in range(3)]
    true = count(lambda: network_losses(network, examples, config)["loss"])
    found = work.network_step(config, 3)
    assert found.work.tflops == pytest.approx(true.tflops, rel=1e-3)
    assert found.work.memory == pytest.approx(true.memory, rel=0.1)
    assert found.work.bytes == pytest.approx(true.bytes, rel=0.05)
    trained = sum(value.nbytes for value in network.parameters())
    assert found.memory == pytest.approx((4 * trained + true.memory) / 1e9, rel=0.1)  # weights, gradients, AdamW's two


def test_a_clip_of_few_layers_tells_what_all_take(mini: Study) -> None:
    clip, size = load_clip(mini.clip.model), work.ClipSize.of(mini.clip.model)
    for layers in ((), (2, 3, 5, 6)):
        encoder = MaskCLIPVisualEncoder.from_open_clip(clip.model, layers, generator=torch.Generator().manual_seed(0))
        true = work._embedded(MaskCLIP(clip, encoder), work.MASKS)
        found = work.maskclip_picture(size, len(layers))
        assert found.work.flops == pytest.approx(true.flops, rel=0.03)
        assert found.work.kernels == pytest.approx(true.kernels, rel=0.1)
    assert size.weights == sum(value.nbytes for value in (*clip.model.parameters(), *clip.model.buffers()))


def test_the_papers_clip_by_hand() -> None:
    """One pass of ViT-L/14@336; of its last layer only the class token goes on."""
    n, d, layers = 577, 1024, 24
    keys_and_values, the_rest, attention = 2 * n * 2 * d * d, 2 * n * 10 * d * d, 4 * n * n * d
    by_hand = layers * keys_and_values + (layers - 1) * (the_rest + attention) + 2 * (n - 1) * 3 * 14**2 * d
    assert work.baseline_mask(work.ClipSize.of("ViT-L-14-336")).work.tflops == pytest.approx(by_hand / 1e12, rel=2e-3)


def test_the_papers_networks_are_as_published() -> None:
    """Mask2Former's paper has 226 billion multiply-adds and 44 million weights for R50 on COCO panoptic."""
    found = work.network_picture(load_study("paper").proposals.mask2former, (480, 640))
    assert found.work.tflops == pytest.approx(2 * 0.226, rel=0.1) and found.weights / 4 == pytest.approx(44e6, rel=0.01)
    assert work.ClipSize.of("ViT-bigG-14").weights / 4 == pytest.approx(2.54e9, rel=0.01)


def test_every_stage_has_its_row_and_stages_add_up(predicted: pd.DataFrame) -> None:
    names = {stage.split("@")[0] for stage in predicted.stage}
    assert names == set(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"])
    stages = by_stage(predicted)
    for column in ("gpu_hours", "disk_gb"):
        assert stages[column].sum() == pytest.approx(predicted[column].sum()) and stages[column].sum() > 0
    hours = (predicted.times * predicted.seconds).sum() / 3600
    assert predicted.gpu_hours.sum() == pytest.approx(hours)
    assert f"{predicted.gpu_hours.sum():,.0f} GPU hours" in told(predicted, A100, 1)
    costly = {"proposals", "maskclip", "maskclip_mask_rcnn", "coco_split", "baselines", "ground_truth_masks"}
    assert {stage.split("@")[0] for stage in stages.index[stages.gpu_hours > 0]} == costly


def test_ten_times_the_data_cost_ten_times_what_sees_them(mini: Study, predicted: pd.DataFrame) -> None:
    more = predict(mini, A100, data=10)
    sees = predicted.part.isin(["train", "store coco_train", "store coco_split_train"])
    trained = len(NETWORKS) + sum(method.training_set is not None for method in METHODS.values())
    assert sees.sum() == trained + sum(network.training_set in network.pictures for network in NETWORKS.values())
    pd.testing.assert_series_equal(more.gpu_hours[sees], 10 * predicted.gpu_hours[sees])
    pd.testing.assert_series_equal(more.gpu_hours[~sees], predicted.gpu_hours[~sees])
    stores = predicted.part.str.startswith("store coco_") & sees
    pd.testing.assert_series_equal(more.disk_gb[stores], 10 * predicted.disk_gb[stores])
    pd.testing.assert_series_equal(more.memory_gb, predicted.memory_gb)


def test_a_set_of_ones_own_is_counted_where_it_lies(
    mini: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path, name: str) -> Dataset:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no {folder}")
        return toy_set([Category(0, "cow", True)], (1, 2, 3))

    (tmp_path / "own").mkdir()
    monkeypatch.setitem(DATASETS, "own", DatasetEntry("own", read, "", ("own",), task="panoptic"))
    monkeypatch.setattr(methods, "TEST_PICTURES", (*methods.TEST_PICTURES, "own"))
    monkeypatch.setitem(NETWORKS, "mask2former", replace(NETWORKS["mask2former"], pictures=("coco_train", "own")))
    monkeypatch.setitem(METHODS, "wo_rma", replace(METHODS["wo_rma"], tests=("own",)))
    for study in (load_study("paper"), mini):
        nowhere, here = (replace(study, data=replace(study.data, root=str(tmp_path / at))) for at in ("nowhere", ""))
        with pytest.raises(ValueError, match=r"how large own is, nobody knows: .*; lay it there, or add its counts"):
            number_of_pictures(nowhere, "own")
        assert number_of_pictures(here, "own") == number_of_pictures(here, "own", data=10) == 3
    frame = predict(here, A100)
    assert frame.times[frame.part.isin(["store own", "wo_rma on own"])].tolist() == [3, 3]


def test_more_gpus_share_a_batch(mini: Study, predicted: pd.DataFrame) -> None:
    shared = predict(mini, A100, gpus=4)
    trained = predicted.part == "train"
    assert (shared.memory_gb[trained] < predicted.memory_gb[trained]).all()
    assert (shared.gpu_hours[trained] >= predicted.gpu_hours[trained]).all()  # never cheaper
    assert (shared.gpu_hours[trained] / 4 <= predicted.gpu_hours[trained]).all()  # never slower
    with pytest.raises(ValueError, match="a batch of 4 does not divide among 3 GPUs"):
        predict(mini, A100, gpus=3)


def test_a_larger_clip_costs_more_where_it_is_used(mini: Study, predicted: pd.DataFrame) -> None:
    larger = predict(replace(mini, clip=replace(mini.clip, model="ViT-B-32")), A100)
    first = predicted.stage.str.startswith("proposals")
    pd.testing.assert_frame_equal(larger[first], predicted[first])
    used = predicted.times.gt(0) & ~first
    assert (larger.gpu_hours[used] > predicted.gpu_hours[used]).all()
    assert (larger.memory_gb[used] > predicted.memory_gb[used]).all()
    with pytest.raises(ValueError, match="RN50 is no ViT"):
        work.ClipSize.of("RN50")


def test_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["study.cost", "--profile", "mini", *arguments])
        main()
        return capsys.readouterr().out

    assert "maskclip@0-maskclip" in (said := run("--gpu", "V100")) and "GPU hours a seed" in said
    assert "clip_baseline on lvis" in run("--gpu", "V100", "--parts") and "clip_baseline on lvis" not in said
    for wrong, sentence in (
        (("--gpu", "V1000"), "error: no datasheet of the GPU 'V1000'"),
        (("--gpus", "3"), "error: a batch of 4 does not divide among 3 GPUs"),
        (("--gpus", "0"), "error: 0 GPUs and 1 times the data"),
        (("--data", "-1"), "error: 1 GPUs and -1 times the data"),
        (("--data", "inf"), "error: 1 GPUs and inf times the data"),
        (("--clip", "RN50"), "error: RN50 is no ViT"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            run(*wrong)


def test_the_authors_row_is_stored_once_and_named_twice() -> None:
    frame = predict(load_study("released"), GPUS["A100"])
    assert frame.part.tolist() == ["store a150", "maskclip on a150", "maskclip_published on a150"]
    assert frame.times.eq(2000).all() and frame.stage.eq("released").all()
    assert 0 < frame.gpu_hours.sum() < 2, "an hour or two on one GPU is promised"


def test_what_does_not_fit_is_said(predicted: pd.DataFrame) -> None:
    assert "does not fit" not in told(predicted, A100, 1)
    tiny = replace(A100, memory=predicted.memory_gb.max() - 0.001)
    last = told(predicted, tiny, 1).splitlines()[-1]
    assert last.startswith("does not fit the GPU: ") and last.endswith("take more GPUs, or a smaller batch")
