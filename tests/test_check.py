"""`maskclip check`: all faults of made-up data at once, each one sentence with its cure."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import made_up_archives as made_up
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskclip import hub
from maskclip.cli import app
from maskclip.data.check import PUBLISHED, check_data, check_weights, spread
from maskclip.data.datasets import DATASETS, open_dataset
from maskclip.data.manifest import update_manifests
from maskclip.data.prepare import PREPARATIONS
from study.params import Data, deviations, load_study


@pytest.fixture(autouse=True)
def the_papers_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without those of one's own, for which nobody made archives up."""
    for name in [*DATASETS]:
        if name not in PUBLISHED or PUBLISHED[name].prepare not in PREPARATIONS:
            monkeypatch.delitem(DATASETS, name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    (folder / "archives").mkdir()
    made_up.all_sets(folder / "archives")
    for prepare in PREPARATIONS.values():
        prepare(folder / "archives", folder / "data", workers=1)
    return folder / "data"


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "data")


def faults(root: Path, **options: bool) -> dict[str, list[str]]:
    return {one.name: one.faults for one in check_data(root, **{"published": False, **options}) if one.faults}


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *arguments])
    return result.exit_code, result.output


def test_what_was_prepared_is_right_but_for_its_number(data: Path) -> None:
    assert not faults(data) and not faults(data, thorough=True)
    assert set(PUBLISHED) >= set(DATASETS)
    found = faults(data, published=True)
    assert found["coco_val"] == ["coco_val has 3 pictures, published are 5,000; see cocodataset.org"]
    assert "published are 5,104 or 5,105" in found["p59"][0]
    code, said = call(str(data), "--own")
    assert code == 0 and said.count("right") == len(DATASETS) and "3 pictures, 133 categories" in said


def test_nothing_there_is_told_of_every_set_at_once(tmp_path: Path) -> None:
    code, said = call(str(tmp_path))
    assert code == 1 and all(name in said for name in DATASETS) and "Traceback" not in said
    for prepare in PREPARATIONS:
        assert f"maskclip prepare {prepare} makes it" in said
    assert "lvisdataset.org publishes it" in said


def test_of_a_set_that_no_command_makes_the_place_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "p59", replace(PUBLISHED["p59"], prepare="", where="example.org", things=1))
    assert "it is of another release or another set: see example.org" in faults(data, published=True)["p59"][0]
    shutil.rmtree(data / "pascal_ctx_d2")
    assert faults(data)["p59"][-1].endswith(" is missing; example.org publishes it")


def test_a_file_is_no_data_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, said = call(str(tmp_path / "file"))
    assert code == 1 and "file is a file; give the data folder" in said


def test_a_wrong_folder_level_is_found(data: Path) -> None:
    (data / "ade").mkdir()
    (data / "ADE20K_2021_17_01").rename(data / "ade/ADE20K_2021_17_01")
    (found,) = {tuple(said) for said in faults(data).values()}
    assert len(found) == 3 and all("another level; move it" in one for one in found[:2])
    assert f"{data}/ade/ADE20K_2021_17_01/images_detectron2/validation is there" in found[0]


def test_many_faults_are_told_together(data: Path) -> None:
    (data / "coco/val2017/000000001001.jpg").unlink()
    ade = data / "ADEChallengeData2016"
    (ade / "ade20k_panoptic_val/ADE_val_00000002.png").write_bytes(b"cut off")
    split = json.loads((data / "coco/annotations/split.json").read_text())
    (data / "coco/annotations/split.json").write_text(json.dumps(split | {"base": ["unicorn"]}))
    (data / "pascal_ctx_d2/categories_59.txt").write_text("1: aeroplane\n2: bag\n")
    found = faults(data)
    assert found["coco_val"] == [f"{data}/coco/val2017/000000001001.jpg is missing"]
    assert "ADE_val_00000002.png cannot be read" in found["a150"][0]
    assert "no category named 'unicorn'" in found["coco_split_train"][0]
    assert "has a number; list names alone" in found["p59"][0] and "p459" not in found


def test_areas_and_ids_of_json_against_png(data: Path) -> None:
    path = data / "coco/annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["area"] = 1
    content["annotations"][1]["segments_info"].pop()
    path.write_text(json.dumps(content))
    area, ids = faults(data)["coco_val"]
    assert "has the area 1, but" in area and "it does not list the segments" in ids


def test_labels_counted_from_one(data: Path) -> None:
    folder = data / "ADEChallengeData2016"
    for number in range(30):
        stem = f"ADE_val_{number + 100:08d}"
        shutil.copy(folder / "images/validation/ADE_val_00000001.jpg", folder / "images/validation" / f"{stem}.jpg")
        values = np.random.default_rng(number).integers(0, 149, (24, 32)).astype(np.uint8)  # 0 for void, 150 not seen
        Image.fromarray(values).save(folder / "annotations_detectron2/validation" / f"{stem}.png")
    for path in (folder / "annotations_detectron2/validation").glob("ADE_val_000000[01]*.png"):
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values == 255, 0, values)).save(path)
    (fault,) = faults(data)["a150_semantic"]
    assert "counted from 1, with 0 for void; subtract 1" in fault


def test_names_of_another_set(data: Path) -> None:
    shutil.copy(data / "pascal_ctx_d2/categories_59.txt", data / "ADE20K_2021_17_01/categories.txt")
    found = faults(data, published=True)["a847"]
    assert "has 59 things and 0 stuff, a847 has 847 and 0; it is of another release or another set" in found[0]


def test_only_thorough_reads_every_picture(data: Path) -> None:
    path = data / "pascal_ctx_d2/images/validation/2008_000502.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    small = data / "coco/val2017/000000001002.jpg"
    Image.new("RGB", (8, 8)).save(small)
    size = faults(data)["coco_val"][0]  # off the picture's head
    assert "(8, 8) (height, width), its annotation" in size and "image 2 of 3 of coco_val" in size
    assert "p59" not in faults(data)
    found = faults(data, thorough=True)
    assert found.keys() >= {"p59", "coco_val"} and "2008_000502.jpg cannot be read" in found["p59"][0]


def test_damaged_pictures_are_left_out_of_all_sets_and_told(data: Path) -> None:
    picture, mask = data / "coco/val2017/000000001001.jpg", data / "coco/annotations/panoptic_val2017/000000001002.png"
    kept = {path: path.read_bytes() for path in (picture, mask)}
    picture.write_bytes(kept[picture][:-60])
    mask.unlink()
    code, said = call(str(data), "--own", "--thorough")
    assert code == 1 and "image 1 of 3 of coco_val; to go on without such: maskclip check --skip-damaged" in said
    code, said = call(str(data), "--own", "--skip-damaged")
    assert code == 0, said
    assert f"left out of all sets, as {data}/left_out.json says: 2 pictures" in said.splitlines()[len(DATASETS)]
    assert "coco/val2017/000000001001.jpg: " in said and "panoptic_val2017/000000001002.png is missing" in said
    assert len(open_dataset("coco_val", data)) == 1 and len(open_dataset("coco_split_val", data)) == 1
    assert len(open_dataset("lvis", data)) == 2, "of its four pictures these two are among them"
    assert json.loads((data / "manifests/coco_val.json").read_text())["pictures"] == 1
    assert not faults(data), "what was left out is no fault any more"
    said = deviations(replace(load_study("paper"), data=Data(str(data), None)))
    assert said[1:] == ["2 damaged pictures are left out of the data"]
    update_manifests(data, check_data(data, published=False))  # as the study's first stage does; only heads are read
    assert len(open_dataset("coco_val", data)) == 1, "a picture that is still damaged comes back"
    for path, content in kept.items():
        path.write_bytes(content)
    code, said = call(str(data), "--own")
    assert code == 0 and "left out" not in said and len(open_dataset("coco_val", data)) == 3


def test_a_set_that_is_wrong_throughout_is_not_left_out(data: Path) -> None:
    path = data / "coco/annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["area"] = 1
    path.write_text(json.dumps(content))
    code, said = call(str(data), "--own", "--skip-damaged")
    assert code == 1 and "3 of 3 images are damaged, too many to go on without" in said
    assert len(open_dataset("coco_val", data)) == 3


def test_of_many_alike_a_few_are_named(data: Path) -> None:
    for path in (data / "coco/train2017").glob("*.jpg"):
        path.unlink()
    found = faults(data)["coco_train"]
    assert len(found) == 4 and found[-1] == "... and 1 more such files that the annotations name"


def test_spread_is_even_and_no_more_than_there_are() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9] and spread(range(3), 200) == [0, 1, 2] and spread([], 5) == []


def test_weights_are_here_or_to_be_fetched_or_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "is_cached", lambda repo: "resnet" in repo)
    monkeypatch.setattr(hub, "answers", lambda: False)
    clip, backbone = check_weights("ViT-L-14-336-quickgelu", "openai", "timm/resnet50.tv_in1k").values()
    assert "is not on this machine" in clip and backbone == "here"
    monkeypatch.setattr(hub, "answers", lambda: True)
    assert "to be fetched" in check_weights("ViT-L-14-336-quickgelu", "openai", None).values()
    (tmp_path / "own.pt").touch()
    assert not check_weights("ViT-B-32", os.fspath(tmp_path / "own.pt"), None)


def test_weights_that_loading_would_take_count_as_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """OpenAI's own download, and a tag's repository without the file's name behind it."""
    asked = []
    monkeypatch.setattr(hub, "is_cached", lambda repo: bool(asked.append(repo)))
    monkeypatch.setattr(hub, "answers", lambda: True)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert list(check_weights("ViT-B-32-quickgelu", "openai", None).values()) == ["to be fetched"]
    assert asked and all(repo.count("/") == 1 for repo in asked)
    own = tmp_path / ".cache" / "clip" / "ViT-B-32.pt"
    own.parent.mkdir(parents=True)
    own.touch()
    assert list(check_weights("ViT-B-32-quickgelu", "openai", None).values()) == ["here"]


def test_all_weights_are_fetched_by_one_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **o: asked.append((repo, o)) or "there")
    monkeypatch.setattr(hub, "is_cached", lambda repo: False)
    monkeypatch.setattr(hub, "answers", lambda: True)
    said = CliRunner().invoke(app, ["fetch", "--to", str(tmp_path)]).output
    assert [repo for repo, _ in asked] == [repo for repo, *_ in hub.FETCHED.values()]
    assert asked[0][1] == {"allow_patterns": ["open_clip_model.safetensors"], "cache_dir": tmp_path}
    assert f"HF_HUB_CACHE={tmp_path}" in said
    listed = CliRunner().invoke(app, ["fetch", "--list"]).output
    assert len(asked) == 3 and "1.7 GB" in listed and "https://huggingface.co/timm/resnet50.tv_in1k" in listed
    monkeypatch.setattr(hub, "answers", lambda: False)
    without = CliRunner().invoke(app, ["fetch"])
    assert without.exit_code == 1 and "error: CLIP ViT-L/14@336" in without.output


def test_right_sets_have_manifests_that_follow_repairs(data: Path) -> None:
    root = data
    kept = update_manifests(root, check_data(root, published=False))
    names = {path.stem for path in kept}
    assert {"a150", "p59", "coco_val"} <= names and all(json.loads(path.read_text())["pictures"] for path in kept)
    before = {path.name: path.read_bytes() for path in kept}
    touched = {path: path.stat().st_mtime_ns for path in kept}
    update_manifests(root, check_data(root, published=False))
    assert {path: path.stat().st_mtime_ns for path in kept} == touched, "what is as it was is left alone"

    picture = sorted((root / "ADEChallengeData2016/images/validation").iterdir())[0]
    picture.write_bytes(picture.read_bytes() + b" ")
    update_manifests(root, check_data(root, published=False))
    changed = {name for name, text in before.items() if (root / "manifests" / name).read_bytes() != text}
    assert changed == {"a150.json", "a150_instances.json", "a150_semantic.json"}
    picture.unlink()
    update_manifests(root, check_data(root, published=False))
    assert {path.stem for path in (root / "manifests").iterdir()} == names - {name[:-5] for name in changed}
