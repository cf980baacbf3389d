"""The miniature world, checked with the field's own readers: pycocotools, lvis and PIL."""

import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from miniature import COLOURS, DOMAINS, PAIRS, STUFF, THINGS, Scene, Sticker, paint, render_scene, texture_bank
from miniature import datasets as world_datasets
from miniature.datasets import annotated_scene, polygons, uncompressed_rle, vocabularies, write_world
from miniature.pictographs import sprites

SIZES = {"coco_train": 8, "coco_val": 2, "ade": 4, "pascal": 3, "lvis": 4}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=3, **SIZES)
    return folder


@pytest.fixture(scope="session")
def bank() -> torch.Tensor:
    return texture_bank(seed=5, variants=1, size=192)


def test_there_are_enough_names_and_none_twice():
    assert len(set(THINGS)) == len(THINGS) >= 200
    assert len(set(STUFF)) == len(STUFF) >= 12
    assert not set(THINGS) & set(STUFF)
    assert {f"{kind} {name}" for name in PAIRS for kind in ("filled", "outlined")} <= set(THINGS)


def test_every_thing_has_a_shape_of_its_own():
    shapes = torch.stack([sprites().levels[48][sprites().variants[name][0]] for name in THINGS])
    rim, body, ink = shapes.unbind(1)
    assert (rim.sum((1, 2)) > 150).all() and (rim >= body - 1e-6).all()
    assert (ink.sum((1, 2)) > 40).all()
    apart = torch.cdist(shapes.flatten(1), shapes.flatten(1), p=1) + 1e6 * torch.eye(len(shapes))
    assert apart.min() > 60, "two names look alike"


def test_mask_is_exactly_where_the_sticker_shows(bank):
    sticker = Sticker("umbrella", "red", 0.5, 0.5, 0.5)
    with_it = Scene("night", ("snow",), ((0.5, 0.5),), (sticker,), 7)
    without = Scene("night", ("snow",), ((0.5, 0.5),), (), 7)
    (one, other), owner, _ = paint([with_it, without], bank, 96, 128)
    changed = (one - other).abs().amax(0) > 0.4  # more than the shadow and the glow around it
    mask = owner[0] == 0
    assert (owner[1] == -1).all()
    assert (changed & mask).sum() > 0.8 * mask.sum(), "the mask covers what the sticker does not"
    assert (changed & ~mask).sum() < 0.05 * mask.sum(), "the sticker shows outside its mask"
    rows, columns = mask.nonzero().float().mean(0)
    assert abs(rows - 48) < 6 and abs(columns - 48) < 6, "centre is (0.5, 0.5) of the shorter side"


def test_same_scene_same_picture_and_front_covers_back(bank):
    back, front = Sticker("cat face", "blue", 0.4, 0.5, 0.6), Sticker("gear", "red", 0.5, 0.5, 0.4)
    scene = Scene("sticker", ("grass", "sky"), ((0.5, 0.9), (0.5, 0.1)), (back, front), 3)
    first, again = paint([scene], bank, 128, 128), paint([scene], bank, 128, 128)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    alone = paint([Scene("sticker", scene.stuff, scene.centres, (front,), 3)], bank, 128, 128)[1]
    assert torch.equal(first[1] == 1, alone == 0), "what is in front is whole"
    assert scene.caption() == "a blue cat face and a red gear on grass and sky"


def test_styles_look_different(bank):
    sticker = (Sticker("umbrella", "red", 0.5, 0.5, 0.6),)
    pictures = paint([Scene(d, ("grass",), ((0.5, 0.5),), sticker, 1) for d in DOMAINS], bank, 64, 64)[0]
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert (one - other).abs().mean() > 0.08


def test_scenes_have_three_to_twelve_segments_small_things_crowds_and_void(bank):
    v = vocabularies()
    counts, smallest, crowds, void = [], [], 0, 0
    for i in range(60):
        rng = np.random.default_rng([1, i])
        scene = annotated_scene(rng, DOMAINS[0], v.coco, (), STUFF, bank)
        assert np.stack(scene.masks).sum(0).max() == 1, "segments overlap"
        counts.append(len(scene.names))
        smallest.append(min(mask.sum() for mask in scene.masks))
        crowds += any(scene.crowd)
        void += int((~np.stack(scene.masks).any(0)).sum() > 200)
    assert 2 <= min(counts) and max(counts) <= 13 and 4 <= np.median(counts) <= 8
    assert 1 <= crowds <= 12 and 1 <= void <= 20
    assert min(smallest) < 150, "no small things"


def test_render_scene_names_its_segments_and_refuses_other_names():
    image, segments, names = render_scene(["filled heart", "outlined heart", "sand"], "pencil", seed=2)
    assert image.dtype == np.uint8 and image.shape[:2] == segments.shape
    assert names == ["filled heart", "outlined heart", "sand"] or sorted(names) == sorted(
        ["filled heart", "outlined heart", "sand"]
    )
    assert set(np.unique(segments)) == {0, 1, 2}
    with pytest.raises(ValueError, match="unicorn"):
        render_scene(["unicorn"])
    with pytest.raises(ValueError, match="oil"):
        render_scene(["gear"], "oil")


def test_few_test_categories_are_trained_and_no_pair_is():
    v = vocabularies()
    assert (len(v.base), len(v.target)) == (48, 17) and not set(v.base) & set(v.target)
    assert not any(name.startswith(("filled ", "outlined ")) for name in v.coco)
    for names in (v.a150, v.p59, v.p459, THINGS):
        assert len(set(names) & set(v.coco)) < 0.5 * len(names)
    assert set(v.p59) <= set(THINGS) and len(v.p59) + len(v.p59_stuff) == 59


def _panoptic_ids(path: Path) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(Image.open(path)).astype(int), -1, 0)
    return red + 256 * green + 65536 * blue  # panopticapi's rgb2id


def test_coco_panoptic_agrees_with_its_pngs_and_instances(root):
    panoptic = json.loads((root / "coco/annotations/panoptic_train2017.json").read_text())
    instances = COCO(str(root / "coco/annotations/instances_train2017.json"))
    isthing = {c["id"]: c["isthing"] for c in panoptic["categories"]}
    assert len(panoptic["annotations"]) == SIZES["coco_train"] and sum(isthing.values()) == 65
    for annotation, entry in zip(panoptic["annotations"], panoptic["images"], strict=True):
        ids = _panoptic_ids(root / "coco/annotations/panoptic_train2017" / annotation["file_name"])
        picture = Image.open(root / "coco/train2017" / entry["file_name"])
        assert picture.size == (entry["width"], entry["height"]) == ids.shape[::-1]
        things = []
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            rows, columns = np.nonzero(mask)
            x, y, w, h = segment["bbox"]
            assert mask.sum() == segment["area"]
            assert (x, y, x + w - 1, y + h - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
            if isthing[segment["category_id"]]:
                things.append((segment["category_id"], mask))
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}
        marked = instances.loadAnns(instances.getAnnIds(imgIds=entry["id"]))
        assert len(marked) == len(things)
        for (category, mask), instance in zip(things, marked, strict=True):
            drawn = instances.annToMask(instance).astype(bool)
            assert instance["category_id"] == category
            assert (drawn & mask).sum() > 0.85 * (drawn | mask).sum()
    split = json.loads((root / "coco/annotations/split.json").read_text())
    names = {c["name"] for c in panoptic["categories"] if c["isthing"]}
    assert names == set(split["base"]) | set(split["target"])


@pytest.mark.parametrize(
    ("folder", "labels", "categories", "void"),
    [
        ("ADEChallengeData2016", "annotations_detectron2/validation/*.png", "categories.json", 255),
        ("ADE20K_2021_17_01", "annotations_detectron2/validation/*.tif", "categories.json", 65535),
        ("pascal_ctx_d2", "annotations_ctx59/validation/*.png", "categories_59.json", 255),
        ("pascal_ctx_d2", "annotations_ctx459/validation/*.tif", "categories_459.json", 65535),
    ],
)
def test_semantic_folders(root, folder, labels, categories, void):
    listed = json.loads((root / folder / categories).read_text())
    assert [c["id"] for c in listed] == list(range(len(listed)))
    images = sorted((root / folder).glob("images*/validation/*.jpg"))
    maps = sorted((root / folder).glob(labels))
    assert [p.stem for p in images] == [p.stem for p in maps] and images
    named = []
    for picture, path in zip(images, maps, strict=True):
        classes = np.asarray(Image.open(path))
        assert classes.dtype == (np.uint8 if void == 255 else np.uint16)
        assert classes.shape[::-1] == Image.open(picture).size
        assert set(np.unique(classes)) <= {*range(len(listed)), void}
        named.append((classes != void).mean())
    assert np.mean(named) > 0.3


def test_ade_short_and_long_vocabulary_tell_the_same_story(root):
    short = json.loads((root / "ADEChallengeData2016/categories.json").read_text())
    long = json.loads((root / "ADE20K_2021_17_01/categories.json").read_text())
    panoptic = json.loads((root / "ADEChallengeData2016/ade20k_panoptic_val.json").read_text())
    for annotation in panoptic["annotations"]:
        stem = Path(annotation["file_name"]).stem
        few = np.asarray(Image.open(root / f"ADEChallengeData2016/annotations_detectron2/validation/{stem}.png"))
        many = np.asarray(Image.open(root / f"ADE20K_2021_17_01/annotations_detectron2/validation/{stem}.tif"))
        seen = few != 255
        name_of = np.array([c["name"] for c in long])
        assert (np.array([c["name"] for c in short])[few[seen]] == name_of[many[seen]]).all()
        ids = _panoptic_ids(root / "ADEChallengeData2016/ade20k_panoptic_val" / annotation["file_name"])
        for segment in annotation["segments_info"]:
            assert (few[ids == segment["id"]] == segment["category_id"]).all()
        assert (ids[~seen] == 0).all()


def test_lvis_package_reads_lvis(root):
    lvis = pytest.importorskip("lvis")
    data = lvis.LVIS(str(root / "lvis/lvis_v1_val.json"))
    assert len(data.cats) == len(THINGS) and {c["frequency"] for c in data.cats.values()} == set("rcf")
    assert len(data.anns) > 8
    for annotation in data.anns.values():
        image = data.imgs[annotation["image_id"]]
        mask = data.ann_to_mask(annotation)
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == pytest.approx(annotation["area"], rel=0.15, abs=4)
        assert annotation["category_id"] not in image["neg_category_ids"]


def test_run_lengths_and_polygons_are_cocos():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 5)) > 0.5, np.ones((3, 4), bool), np.eye(6, dtype=bool), np.zeros((2, 2), bool)):
        packed = coco_mask.frPyObjects(uncompressed_rle(mask), *mask.shape)
        assert (coco_mask.decode(packed).astype(bool) == mask).all()
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) < 15
    assert isinstance(polygons(disc), list)
    ring = disc & (np.hypot(*np.mgrid[-20:21, -20:21]) > 8)
    assert isinstance(polygons(ring), dict), "a polygon cannot have a hole"


def test_same_seed_same_bytes_and_a_second_call_writes_nothing(root, tmp_path):
    write_world(tmp_path, seed=3, **SIZES)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    _, different, missing = filecmp.cmpfiles(root, tmp_path, files, shallow=False)
    assert not different and not missing
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    write_world(tmp_path, seed=3, **SIZES)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_what_fails_half_way_leaves_no_data_set(tmp_path, monkeypatch):
    def fails(out: Path, *_: object) -> None:
        (out / "half.jpg").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world_datasets, "_write_coco", fails)
    with pytest.raises(OSError, match="No space"):
        write_world(tmp_path, **SIZES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"ade": 0}, {"lvis": -1}, {"seed": -1}, {"coco_train": 2.5}, {"pascal": True}])
def test_wrong_sizes_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_world(tmp_path, **(SIZES | wrong))


def test_a_folder_of_the_users_is_not_touched(tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="move it away"):
        write_world(tmp_path, **SIZES)
    assert (tmp_path / "coco" / "mine.txt").read_text() == "mine"


def test_colours_can_be_told_apart():
    values = np.array(list(COLOURS.values()))
    apart = np.linalg.norm(values[:, None] - values[None], axis=-1) + np.eye(len(values)) * 9
    assert apart.min() > 0.25
