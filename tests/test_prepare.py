"""Preparation of the real data sets, on made-up archives: what trusted scripts make of them, and
what goes wrong."""

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from threading import Thread

import made_up_archives as made_up
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from maskclip.data import open_dataset
from maskclip.data.prepare import PREPARATIONS, prepare_ade20k, prepare_coco, prepare_lvis, prepare_pascal_context
from maskclip.data.prepare.ade20k_full import resize_linear, resize_nearest
from maskclip.data.prepare.filling import names_of
from maskclip.data.prepare.pascal_context import CLASSES_59

GOLDEN = json.loads((Path(__file__).parent / "golden" / "prepare.json").read_text())


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def digests_of(folder: Path) -> dict[str, str]:
    """Of every label map, panoptic picture and instance JSON in a prepared folder, whatever the
    files' own bytes.

    Panoptic segments count by their place in the JSON: Mask2Former's script draws their ids.
    """
    digests = {}
    for path in sorted(
        [*folder.rglob("annotations_*/validation/*.png"), *folder.rglob("annotations_*/validation/*.tif")]
    ):
        if "annotations_instance" not in path.parts:
            labels = pixels_of(path)
            digests[path.relative_to(folder).as_posix()] = sha(
                f"{labels.dtype}{labels.shape}".encode() + labels.tobytes()
            )
    for path in folder.glob("ade20k_panoptic_val.json"):
        for annotation in json.loads(path.read_text())["annotations"]:
            ids = pixels_of(path.with_suffix("") / annotation["file_name"]).astype(int) @ [1, 256, 65536]
            segments = [dict(segment) for segment in annotation["segments_info"]]
            place = {0: 0} | {segment.pop("id"): i for i, segment in enumerate(segments, 1)}
            map_ = np.array([place[i] for i in ids.ravel().tolist()], np.uint16)
            digests[f"panoptic {annotation['file_name']}"] = sha(
                json.dumps(segments, sort_keys=True).encode() + map_.tobytes()
            )
    for path in folder.glob("ade20k_instance_val.json"):
        content = json.loads(path.read_text())
        digests["instances"] = sha(json.dumps([content["images"], content["annotations"]], sort_keys=True).encode())
    return digests


def tree(folder: Path) -> dict[str, str]:
    """Every file's digest by its path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".prepare.lock"]
    return {path.relative_to(folder).as_posix(): sha(path.read_bytes()) for path in files}


def prepare_all(source: Path, target: Path) -> Path:
    for prepare in PREPARATIONS.values():
        prepare(source, target, workers=1)
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    made_up.all_sets(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory) -> Path:
    return prepare_all(source, tmp_path_factory.mktemp("data"))


@pytest.fixture
def mine(source, tmp_path) -> Path:
    """Downloads that a test may damage."""
    return Path(shutil.copytree(source, tmp_path / "mine"))


def unpack(source: Path, folder: Path) -> Path:
    """Every archive unpacked beside the other, zips inside zips too, as done by hand."""
    for path in sorted(source.iterdir()):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        elif ".tar" in path.name:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        else:
            shutil.copy(path, folder / path.name)
    for inner in folder.rglob("panoptic_*.zip"):
        with zipfile.ZipFile(inner) as archive:
            archive.extractall(inner.parent)
        inner.unlink()
    return folder


def rewrite(archive: Path, changes: dict[str, bytes | None]) -> None:
    """Replace files of a zip or tar; None leaves one out."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as old:
            files = {name: old.read(name) for name in old.namelist()}
        write = made_up.write_zip
    else:
        with tarfile.open(archive) as old:
            files = {m.name: old.extractfile(m).read() for m in old}
        write = made_up.write_tar
    assert set(changes) <= set(files)
    write(archive, {name: content for name, content in (files | changes).items() if content is not None})


def changed_json(archive: Path, name: str, change) -> None:
    with zipfile.ZipFile(archive) as old:
        content = json.loads(old.read(name))
    change(content)
    rewrite(archive, {name: json.dumps(content).encode()})


def test_every_set_opens_as_the_study_reads_it(prepared):
    sizes = {
        "coco_train": (4, 133), "coco_val": (3, 133), "coco_split_train": (4, 48), "coco_split_val": (3, 65),
        "a150": (3, 150), "a150_semantic": (3, 150), "a150_instances": (3, 100), "a847": (3, 847), "p59": (3, 59),
        "p459": (3, 459), "lvis": (4, 1203),
    }  # fmt: skip
    for name, size in sizes.items():
        dataset = open_dataset(name, prepared)
        assert (len(dataset), len(dataset.categories)) == size
        assert all(sample.image.ndim == 3 for sample in dataset)


@pytest.mark.parametrize("folder", ["ADEChallengeData2016", "ADE20K_2021_17_01", "pascal_ctx_d2"])
def test_label_maps_and_json_are_those_of_the_trusted_scripts(source, prepared, folder):
    inputs = {path.name: made_up.content_digest(path) for path in source.iterdir()}
    assert {name: inputs[name] for name in GOLDEN["inputs"]} == GOLDEN["inputs"], "other made-up archives than then"
    assert digests_of(prepared / folder) == GOLDEN["scripts"][folder]


@pytest.mark.parametrize("shape", ["600 800 3", "1024 683 1", "513 777 3"])
def test_pictures_are_resized_as_opencv_resizes_them(shape):
    h, w, c = map(int, shape.split())
    pixels = (np.arange(h * w * c, dtype=np.uint64) * 2654435761 >> np.uint64(7)) % 256
    pixels = pixels.astype(np.uint8).reshape((h, w, c) if c > 1 else (h, w))
    size = (512, round(w / h * 512)) if h <= w else (round(h / w * 512), 512)
    found = [sha(resize(pixels, size).tobytes()) for resize in (resize_linear, resize_nearest)]
    assert found == GOLDEN["opencv"][shape]


def test_coco_and_lvis_files_are_the_published_ones(source, prepared, tmp_path):
    plain = tree(unpack(source, tmp_path))
    ours = tree(prepared)
    for name, digest in ours.items():
        if name.startswith("coco/") and not name.endswith("split.json"):
            part = name.removeprefix("coco/")
            assert digest == plain[part], name
    assert ours["lvis/lvis_v1_val.json"] == plain["lvis_v1_val.json"]
    assert len([name for name in ours if name.startswith("coco/")]) == 4 + 3 + 4 + 3 + 4 + 1


def test_unpacked_folders_at_any_level_give_the_same(source, prepared, tmp_path):
    downloads = tmp_path / "downloads" / "old disk"
    downloads.mkdir(parents=True)
    unpack(source, downloads)
    (downloads / "ade").mkdir()  # where FC-CLIP's script wants the full set
    (downloads / "ADE20K_2021_17_01").rename(downloads / "ade" / "ADE20K_2021_17_01")
    shutil.move(downloads / "annotations_instance", downloads / "ADEChallengeData2016")
    before = tree(downloads)
    assert tree(prepare_all(tmp_path / "downloads", tmp_path / "data")) == tree(prepared)
    assert tree(downloads) == before
    picture = "val2017/000000001001.jpg"
    assert (downloads / picture).samefile(tmp_path / "data" / "coco" / picture)  # linked, 19 GB once


def test_downloads_in_the_data_folder_itself_are_taken_where_they_lie(source, prepared, tmp_path):
    (tmp_path / "coco").mkdir()
    unpack(source, tmp_path / "coco")
    prepare_coco(tmp_path, tmp_path, workers=1)
    ours = tree(tmp_path / "coco")
    assert {name: ours[name] for name in tree(prepared / "coco")} == tree(prepared / "coco")


def test_again_changes_nothing_and_originals_are_never_touched(source, prepared):
    before, originals = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.*g")}, tree(source)
    prepare_all(source, prepared)
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*.*g")} == before
    assert tree(source) == originals
    assert not (prepared / ".unpacking").exists()


def test_a_missing_result_is_made_again(source, prepared, tmp_path):
    target = Path(shutil.copytree(prepared, tmp_path / "data"))
    for name in (
        "ADEChallengeData2016/ade20k_panoptic_val/ADE_val_00000002.png",
        "ADEChallengeData2016/ade20k_instance_val.json",
        "ADE20K_2021_17_01/annotations_detectron2/validation/ADE_val_00000001.tif",
        "coco/val2017/000000001002.jpg",
        "pascal_ctx_d2/annotations_ctx59/validation/2008_000502.png",
    ):
        (target / name).unlink()
    (target / "coco/annotations/panoptic_val2017.json").write_text("{}")
    other = target / "ADEChallengeData2016/ade20k_panoptic_val/ADE_val_00000001.png"
    other.write_bytes(made_up.png(np.full((24, 32, 3), 9, np.uint8)))  # another script's, with other segment ids
    assert tree(prepare_all(source, target)) == tree(prepared)


def test_a_killed_run_is_resumed(tmp_path):
    made_up.ade20k(tmp_path, {"training": 0, "validation": 40}, size=(120, 160), things=20)
    prepare_ade20k(tmp_path, tmp_path / "whole", workers=1)
    target, done = tmp_path / "killed", tmp_path / "killed" / "ADEChallengeData2016" / "ade20k_panoptic_val"
    command = [sys.executable, "-m", "maskclip.cli", "prepare", "ade20k", "--from", tmp_path, "--to", target]
    process = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.DEVNULL)
    while len(list(done.glob("A*.png"))) < 5:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (target / "ADEChallengeData2016" / "ade20k_panoptic_val.json").exists()
    half = done / f".ADE_val_00000039.png.{'0' * 32}.png"  # as a kill within a write leaves it
    half.write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in done.glob("A*.png")}
    assert 5 <= len(kept) < 40
    prepare_ade20k(tmp_path, target, workers=1)
    assert tree(target) == tree(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_several_processes_give_the_same(tmp_path):
    made_up.ade20k(tmp_path, {"training": 0, "validation": 40})
    for workers in (1, 2):
        assert prepare_ade20k(tmp_path, tmp_path / str(workers), workers=workers) == {"validation": 40}
    assert tree(tmp_path / "1") == tree(tmp_path / "2")
    with zipfile.ZipFile(tmp_path / "ADEChallengeData2016.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("annotations/validation/ADE_val_00000030.png"))
        whole = archive.read(name)
    rewrite(tmp_path / "ADEChallengeData2016.zip", {name: whole[:60]})
    with pytest.raises(
        ValueError, match=r"ADE_val_00000030.png is cut off or damaged .*fetch ADEChallengeData2016.zip"
    ):
        prepare_ade20k(tmp_path, tmp_path / "3", workers=2)


def test_training_pictures_are_made_when_asked_for(source, tmp_path):
    counts = prepare_ade20k(source, tmp_path, workers=1, training=True)
    assert counts == {"validation": 3, "training": 2}
    panoptic = json.loads((tmp_path / "ADEChallengeData2016" / "ade20k_panoptic_train.json").read_text())
    assert [image["id"] for image in panoptic["images"]] == ["ADE_train_00000001", "ADE_train_00000002"]


def test_lvis_takes_only_the_pictures_that_are_not_there(source, mine, tmp_path):
    assert prepare_lvis(source, tmp_path / "data", workers=1) == {"val2017": 2, "train2017": 2}
    assert len(list((tmp_path / "data" / "coco").rglob("*.jpg"))) == 4
    for year in ("train2017", "val2017"):
        (mine / f"{year}.zip").unlink()
    prepare_lvis(mine, tmp_path / "data", workers=1)
    (tmp_path / "data" / "coco" / "train2017" / "000000000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"train2017.*\.zip.*fetch it from http://images.cocodataset.org/zips"):
        prepare_lvis(mine, tmp_path / "data", workers=1)


def test_pascal_context_without_the_json_takes_the_59_from_the_459(mine, prepared, tmp_path):
    (mine / "trainval_merged.json").unlink()
    assert prepare_pascal_context(mine, tmp_path / "data", workers=1) == {"validation": 4, "59": 4, "459": 4}
    ours, full = tree(tmp_path / "data"), tree(prepared)
    assert len({name: d for name, d in ours.items() if "validation" in name}) == 12
    assert all(ours[name] == digest for name, digest in full.items() if name.startswith("pascal"))
    (mine / "trainval.tar.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither an archive trainval.tar\*"):
        prepare_pascal_context(mine, tmp_path / "other", workers=1)


def test_pascal_context_without_the_mat_files_leaves_the_459_out(mine, tmp_path):
    (mine / "trainval.tar.gz").unlink()
    assert prepare_pascal_context(mine, tmp_path / "data", workers=1) == {"validation": 3, "59": 3, "459": 0}
    assert len(open_dataset("p59", tmp_path / "data")) == 3


def test_regions_of_classes_beyond_the_59_are_void(mine, tmp_path):
    path = mine / "trainval_merged.json"
    content = json.loads(path.read_text())
    of_val = next(image["image_id"] for image in content["images"] if image["phase"] == "val")
    content["categories"].append({"category_id": 1, "name": "accordion"})
    square = np.zeros((24, 32), bool)
    square[5:9, 6:20] = True
    about = {"id": 9999, "image_id": of_val, "category_id": 1, "segmentation": made_up.code_of(square)}
    content["annos_segmentation"].append(about)
    path.write_text(json.dumps(content))
    prepare_pascal_context(mine, tmp_path / "data", workers=1)
    labels = pixels_of(tmp_path / "data/pascal_ctx_d2/annotations_ctx59/validation/2008_000501.png")
    assert (labels[square] == 255).all() and (labels != 255).any()


def test_names_that_ship():
    counts = {"ade20k_150": 150, "ade20k_847": 847, "pascal_context_59": 59, "pascal_context_459": 459}
    for name, count in counts.items():
        names = names_of(name)
        assert len(set(names)) == count and all(n == n.strip() and n for n in names)
        assert all(word and "," not in word for n in names for word in n.split(", "))
    assert sum("," in name for name in names_of("ade20k_847")) == 217
    of_459 = names_of("pascal_context_459")
    unlike = [n for n, i in zip(names_of("pascal_context_59"), CLASSES_59) if of_459[i - 1] != n]
    assert unlike == ["diningtable"]  # "table" among the 459
    base, target = names_of("coco_base"), names_of("coco_target")
    assert (len(base), len(target)) == (48, 17) and not set(base) & set(target)
    assert len({int(i) for i in names_of("ade20k_847_ids")}) == 847


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


ADE, INSTANCE = "ADEChallengeData2016.zip", "annotations_instance.tar"
SEMANTIC = "ADEChallengeData2016/annotations/validation/ADE_val_00000002.png"
COCO, PANOPTIC = "annotations_trainval2017.zip", "panoptic_annotations_trainval2017.zip"
INDEX = "ADE20K_2021_17_01/index_ade20k.pkl"
FULL, SEG = "somebody_0123abcd.zip", "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_00000002_seg.png"


def no(name):
    return lambda folder: (folder / name).unlink()


def short(name, kept=1 / 3):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * kept)])

    return damage


def other(archive, name, content):
    return lambda folder: rewrite(folder / archive, {name: content})


def other_json(archive, name, change):
    return lambda folder: changed_json(folder / archive, name, change)


def instance_png(red, green):
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:5, :5], pixels[:2, :2] = (red[0], green, 0), (red[1], green, 0)
    return made_up.png(pixels)


def only_the_full_set(folder):
    (folder / ADE).unlink()


def only_2014(folder):
    (folder / "val2017.zip").rename(folder / "val2014.zip")


def only_v05(folder):
    (folder / "lvis_v1_val.json.zip").rename(folder / "lvis_v0.5_val.json.zip")


def v05_renamed(folder):
    made_up.lvis(folder, categories=1230)


def only_the_challenge(folder):
    (folder / FULL).unlink()


def merged(change):
    def damage(folder):
        path = folder / "trainval_merged.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def twice(entries):
    return lambda content: content[entries].append(content[entries][0])


BAD = [
    ("ade20k", no(ADE), "neither an archive ADEChallengeData2016*.zip", "fetch it from http://data.csail.mit.edu"),
    (
        "ade20k",
        no(INSTANCE),
        "neither an archive annotations_instance*.tar*",
        "ChallengeData2017/annotations_instance.tar",
    ),
    ("ade20k", only_the_full_set, "ADE20K_2021_17_01 there is the full set", "maskclip prepare ade20k-full"),
    ("ade20k", short(ADE), f"{ADE} is cut off or damaged", f"fetch {ADE} again"),
    ("ade20k", short(INSTANCE, 0.36), f"{INSTANCE} is cut off or damaged", f"fetch {INSTANCE} again"),
    ("ade20k", short(INSTANCE, 0.33), "names ADE_val_00000002 (2 such)", f"fetch {INSTANCE} again, whole"),
    ("ade20k", other(ADE, SEMANTIC, None), "names ADE_val_00000002 (1 such)", f"fetch {ADE} again, whole"),
    (
        "ade20k",
        other(INSTANCE, "annotations_instance/validation/ADE_val_00000001.png", None),
        "names ADE_val_00000001",
        f"fetch {INSTANCE} again",
    ),
    (
        "ade20k",
        other(ADE, SEMANTIC, made_up.png(np.zeros((24, 32), np.uint8))[:50]),
        "ADE_val_00000002.png is cut off",
        f"fetch {ADE} again",
    ),
    ("ade20k", other(ADE, SEMANTIC, made_up.png(np.full((24, 32), 151, np.uint8))), "values 0 to 150", "fetch http"),
    (
        "ade20k",
        other(ADE, SEMANTIC, made_up.png(np.zeros((24, 32, 3), np.uint8))),
        "not of the challenge",
        "fetch http",
    ),
    ("ade20k", other(ADE, SEMANTIC, made_up.png(np.zeros((23, 32), np.uint8))), "32 x 24 pixels", "same release"),
    (
        "ade20k",
        other(
            ADE,
            SEMANTIC.replace("annotations", "images").replace("png", "jpg"),
            made_up.png(np.zeros((25, 32, 3), np.uint8), "JPEG"),
        ),
        "ADE_val_00000002.jpg has 32 x 25",
        "same release",
    ),
    (
        "ade20k",
        other(INSTANCE, "annotations_instance/validation/ADE_val_00000003.png", instance_png((101, 101), 1)),
        "ADE_val_00000003.png: instance 1 has category 101",
        "1 to 100",
    ),
    (
        "ade20k",
        other(INSTANCE, "annotations_instance/validation/ADE_val_00000003.png", instance_png((5, 6), 1)),
        "two categories share the instance 1",
        f"fetch {INSTANCE} again",
    ),
    ("ade20k-full", only_the_challenge, "ADEChallengeData2016 there is the challenge's set", "prepare ade20k"),
    ("ade20k-full", short(FULL), f"{FULL} is cut off or damaged", "fetch"),
    (
        "ade20k-full",
        other(FULL, SEG, None),
        "names ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_00000002_seg",
        "fetch the set whole",
    ),
    ("ade20k-full", other(FULL, SEG, made_up.png(np.zeros((9, 40, 3), np.uint8))), "has 40 x 9 pixels", "same release"),
    ("ade20k-full", other(FULL, SEG, made_up.png(np.zeros((30, 40), np.uint8))), "no colour PNG", "2021"),
    (
        "ade20k-full",
        other(FULL, INDEX, pickle.dumps({"filename": Evil(), "folder": []})),
        "it wants to run posix.mkdir",
        "fetch the set again",
    ),
    (
        "ade20k-full",
        other(FULL, INDEX, pickle.dumps({"filename": ["a", "a"], "folder": "ab"})),
        "lists a picture twice",
        "fetch the set again",
    ),
    (
        "coco",
        no("val2017.zip"),
        "neither an archive val2017*.zip",
        "fetch it from http://images.cocodataset.org/zips/val2017.zip",
    ),
    ("coco", only_2014, "val2014.zip there is COCO of 2014", "fetch it from"),
    ("coco", no(PANOPTIC), "neither an archive panoptic_annotations_trainval2017*.zip", "fetch it from"),
    ("coco", short(PANOPTIC), f"{PANOPTIC} is cut off or damaged", f"fetch {PANOPTIC} again"),
    (
        "coco",
        other(COCO, "annotations/instances_val2017.json", b'{"images": [{"id"'),
        "instances_val2017.json is no whole JSON",
        "fetch",
    ),
    (
        "coco",
        other("val2017.zip", "val2017/000000001002.jpg", None),
        "names 000000001002 (1 such)",
        "fetch val2017.zip again",
    ),
    (
        "coco",
        other("val2017.zip", "val2017/000000001002.jpg", made_up.png(np.zeros((9, 32, 3), np.uint8), "JPEG")),
        "000000001002.jpg has 32 x 9 pixels",
        "same release",
    ),
    (
        "coco",
        other("val2017.zip", "val2017/000000001002.jpg", b"no picture"),
        "000000001002.jpg is cut off",
        "fetch val2017.zip",
    ),
    (
        "coco",
        other_json(
            PANOPTIC,
            "annotations/panoptic_val2017.json",
            lambda c: c["categories"].append({"id": 7777, "name": "new", "isthing": 0}),
        ),
        "54 stuff categories, COCO 2017 has 80 and 53",
        "fetch http",
    ),
    (
        "coco",
        other_json(PANOPTIC, "annotations/panoptic_val2017.json", twice("annotations")),
        "occurs more than once",
        "keep one",
    ),
    (
        "coco",
        other_json(COCO, "annotations/instances_train2017.json", lambda c: c["annotations"][0].update(category_id=999)),
        "has the category_id 999, which must be one that the file lists",
        "correct it",
    ),
    (
        "coco",
        other_json(
            COCO,
            "annotations/instances_train2017.json",
            lambda c: c["images"].append({"id": 77, "file_name": "000000000077.jpg", "height": 24, "width": 32}),
        ),
        "names 000000000077",
        "fetch train2017.zip again",
    ),
    ("lvis", only_v05, "lvis_v0.5_val.json.zip there is LVIS v0.5", "fetch it from"),
    ("lvis", v05_renamed, "has 1230 categories, LVIS v1 has 1203", "fetch https"),
    (
        "lvis",
        other("train2017.zip", "train2017/000000000002.jpg", None),
        "names 000000000002",
        "fetch train2017.zip again",
    ),
    (
        "lvis",
        other_json("lvis_v1_val.json.zip", "lvis_v1_val.json", lambda c: c["images"][0].update(coco_url="a/b.jpg")),
        "image 1001 has no coco_url",
        "correct it",
    ),
    (
        "pascal-context",
        no("VOCtrainval_03-May-2010.tar"),
        "neither an archive VOCtrainval_03-May-2010*",
        "fetch it from http://host.robots",
    ),
    (
        "pascal-context",
        short("trainval.tar.gz"),
        "trainval.tar.gz is cut off or damaged",
        "fetch trainval.tar.gz again",
    ),
    (
        "pascal-context",
        short("trainval_merged.json"),
        "trainval_merged.json is cut off",
        "fetch trainval_merged.json again",
    ),
    ("pascal-context", merged(twice("images")), "two images share an image_id", "fetch https"),
    (
        "pascal-context",
        merged(lambda c: c["annos_segmentation"][0].update(category_id=1)),
        "category 1, not both",
        "fetch https",
    ),
    (
        "pascal-context",
        merged(lambda c: c["images"][3].update(file_name="2009_1.jpg")),
        "names 2009_1",
        "fetch VOCtrainval",
    ),
    (
        "pascal-context",
        merged(lambda c: c["images"][3].update(height=25)),
        "coded for 24 x 32 pixels",
        "its image has 25 x 32",
    ),
    (
        "pascal-context",
        other("trainval.tar.gz", "trainval/2008_000502.mat", b"no mat"),
        "2008_000502.mat is cut off",
        "fetch trainval.tar",
    ),
    ("pascal-context", other("trainval.tar.gz", "trainval/2008_000502.mat", None), "names 2008_000502", "fetch"),
]


@pytest.mark.parametrize(
    ("name", "damage", "what", "cure"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_downloads_are_one_sentence(mine, tmp_path, monkeypatch, name, damage, what, cure):
    monkeypatch.chdir(tmp_path)
    damage(mine)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        PREPARATIONS[name](mine, tmp_path / "data", workers=1)
    sentence = str(error.value)
    assert what in sentence and cure in sentence and "\n" not in sentence, sentence
    assert not (tmp_path / "evil").exists()


def test_what_is_missing_is_said_before_anything_is_written(mine, tmp_path):
    (mine / INSTANCE).unlink()
    with pytest.raises(FileNotFoundError):
        prepare_ade20k(mine, tmp_path / "data", workers=1)
    rewrite(mine / "train2017.zip", {"train2017/000000000003.jpg": None})
    with pytest.raises(FileNotFoundError):
        prepare_coco(mine, tmp_path / "data", workers=1)
    assert not list((tmp_path / "data").rglob("*.jpg")) + list((tmp_path / "data").rglob("*.png"))


def test_a_damaged_archive_that_is_not_needed_is_no_matter(mine, tmp_path):
    (mine / "unrelated.zip").write_bytes(b"PK")
    assert PREPARATIONS["ade20k-full"](mine, tmp_path / "data", workers=1) == {"validation": 3}


@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_an_index_pickled_by_any_protocol_is_read(mine, tmp_path, protocol):
    with zipfile.ZipFile(mine / FULL) as archive:
        index = pickle.loads(archive.read(INDEX))
    index["filename"] = np.array(index["filename"], object)
    rewrite(mine / FULL, {INDEX: pickle.dumps(index, protocol=protocol)})
    assert PREPARATIONS["ade20k-full"](mine, tmp_path / "data", workers=1) == {"validation": 3}


def test_folders_that_are_none_and_targets_one_too_deep(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder; --from names the folder that holds the downloads"):
        prepare_coco(source / "val2017.zip", tmp_path, workers=1)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--to is .*file, which is a file; give the data folder"):
        prepare_coco(source, tmp_path / "file", workers=1)
    with pytest.raises(ValueError, match="the folder coco is made inside it; give "):
        prepare_coco(source, tmp_path / "coco", workers=1)


def test_the_command_says_what_was_made_or_what_is_wrong(source, tmp_path):
    command = [sys.executable, "-m", "maskclip.cli", "prepare", "ade20k", "--to", str(tmp_path), "--from"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "validation: 3\n")
    wrong = subprocess.run([*command, str(tmp_path / "nothing")], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stderr.startswith(f"error: {tmp_path / 'nothing'} is no folder")


def test_mac_resource_forks_are_no_pictures(mine, tmp_path):
    with zipfile.ZipFile(mine / "val2017.zip", "a") as archive:
        archive.writestr("__MACOSX/val2017/._000000001001.jpg", b"junk")
        archive.writestr("__MACOSX/val2017/000000001001.jpg", b"junk")
        archive.writestr("val2017/._000000001001.jpg", b"junk")
    assert prepare_coco(mine, tmp_path / "data", workers=1)["val2017"] == 3
    assert Image.open(io.BytesIO((tmp_path / "data/coco/val2017/000000001001.jpg").read_bytes())).size == (32, 24)


def test_two_preparations_of_one_data_folder_wait_for_one_another(source, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda text, **_: said.append(text))
    with FileLock(tmp_path / ".prepare.lock"):
        thread = Thread(target=prepare_lvis, args=(source, tmp_path), kwargs={"workers": 1})
        thread.start()
        while not said:
            assert thread.is_alive(), "it did not wait"
            time.sleep(0.02)
        assert said == [f"another preparation fills {tmp_path}; waiting for it"]
        assert not (tmp_path / "lvis" / "lvis_v1_val.json").exists()
    thread.join()
    assert (tmp_path / "lvis" / "lvis_v1_val.json").is_file()
