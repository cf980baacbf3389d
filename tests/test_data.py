"""Readers: what is on disk comes back, and what is wrong with a file is said in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskclip.data import (
    Dataset,
    datasets,
    open_categories,
    open_coco_instances,
    open_coco_panoptic,
    open_coco_sample,
    open_dataset,
    open_semantic_folder,
    read_image,
)
from maskclip.data.coco import decode
from maskclip.data.images import read_size
from maskclip.evaluation.metrics import average_precision

H, W = 12, 16


def save_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def picture(path, size=(H, W), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(*size, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)
    return pixels.astype(np.uint8)


def panoptic_folder(root, category_id=200):
    """One image, two segments (a thing crowd of id 300 = 44 + 256, a stuff region of id 70000), a void column."""
    folder = root / "sample"
    picture(folder / "input_images" / "a.png")
    ids = np.zeros((H, W), np.int64)
    ids[:6, 1:], ids[6:, 1:] = 300, 70000
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    (folder / "panoptic_examples").mkdir()
    Image.fromarray(rgb).save(folder / "panoptic_examples" / "a.png")
    segments = [
        {"id": 300, "category_id": 7, "iscrowd": 1, "area": 90, "bbox": [1, 0, 15, 6]},
        {"id": 70000, "category_id": category_id, "iscrowd": 0, "area": 90, "bbox": [1, 6, 15, 6]},
    ]
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": H, "width": W}],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 7, "name": "cat", "isthing": 1}, {"id": 200, "name": "sky", "isthing": 0}],
    }
    save_json(folder / "panoptic_examples.json", content)
    return folder


def test_coco_panoptic_comes_back(tmp_path):
    dataset = open_coco_sample(panoptic_folder(tmp_path))
    assert [(c.id, c.name, c.isthing) for c in dataset.categories] == [(7, "cat", True), (200, "sky", False)]
    sample = dataset[0]
    assert sample.image_id == 5 and dataset.picture_name(5) == "a.png" and sample.image.dtype == np.uint8
    assert [(s.category, s.iscrowd, int(s.mask.sum())) for s in sample.segments] == [(0, True, 90), (1, False, 90)]
    assert [s.isthing for s in sample.segments] == [True, False]
    assert (sample.semantic[:, 0] == -1).all() and (sample.semantic[:6, 1:] == 0).all()
    assert (sample.semantic[6:, 1:] == 1).all() and sample.semantic.dtype == np.int32


def test_a_listed_segment_that_no_pixel_shows_is_hidden(tmp_path):
    """As prepare_ade20k_pan_seg.py leaves stuff that things were pasted over."""
    folder = panoptic_folder(tmp_path)
    content = json.loads((folder / "panoptic_examples.json").read_text())
    segments = content["annotations"][0]["segments_info"]
    segments[1]["area"] = 120
    segments += [
        {"id": 9, "category_id": 200, "iscrowd": 0, "area": 40, "bbox": [0, 0, 5, 8]},
        {"id": 10, "category_id": 7, "iscrowd": 1, "area": 40, "bbox": [0, 0, 5, 8]},
    ]
    save_json(folder / "panoptic_examples.json", content)
    sample = open_coco_sample(folder)[0]
    assert [segment.area for segment in sample.segments] == [90, 120] and sample.hidden == [1]


def test_areas_that_the_mask_denies(tmp_path):
    """Left from before the mask was resized, or the boxes'; ADE20K's count what is hidden, but never all of it."""
    folder = panoptic_folder(tmp_path)
    content = json.loads((folder / "panoptic_examples.json").read_text())
    mask = folder / "panoptic_examples" / "a.png"
    pixels = np.asarray(Image.open(mask)).copy()
    pixels[2:4, 3:6], pixels[3, 3] = (9, 0, 0), pixels[0, 1]
    Image.fromarray(pixels).save(mask)
    segments = content["annotations"][0]["segments_info"]
    segments.append({"id": 9, "category_id": 200, "iscrowd": 0, "area": 5})
    for areas, message in [
        ([85, 90, 5], ""),
        ([90, 90, 5], ""),  # a part of the first is hidden
        ([90, 90, 6], "the areas are those of the segments' boxes, not of the segments"),
        ([90, 90, 4], "segment 9 has the area 4, but 5 pixels"),
        ([90, 193, 5], "segment 70000 has the area 193, but 90 pixels of 192"),
    ]:
        for segment, area in zip(segments, areas, strict=True):
            segment["area"] = area
        save_json(folder / "panoptic_examples.json", content)
        dataset = open_coco_sample(folder)
        if not message:
            assert [segment.area for segment in dataset[0].segments] == areas
        else:
            with pytest.raises(ValueError, match=f"image 5: {message} .*in .*a.png; take both files from the same"):
                dataset.annotation(5)
    content["images"][0]["width"] = 32
    save_json(folder / "panoptic_examples.json", content)
    with pytest.raises(
        ValueError, match=r"image 5: height and width are \(12, 32\), but \(12, 16\) in .*a.png; take both"
    ):
        open_coco_sample(folder).annotation(5)


def test_a_picture_is_not_decoded_for_its_annotation(tmp_path):
    folder = panoptic_folder(tmp_path)
    (folder / "input_images" / "a.png").unlink()
    assert open_coco_sample(folder).annotation(5).size == (H, W)


def test_a_limit_cuts_every_annotation_to_the_same_pictures(tmp_path):
    """COCO's panoptic and instance files list the same pictures in other orders."""
    names = {3: "c.png", 1: "a.png", 2: "b.png"}

    def dataset(order):
        return Dataset("toy", [], order, None, None, lambda i: [tmp_path / names[i]], Path("toy.json"), tmp_path)

    assert dataset([3, 1, 2]).first(2).image_ids == dataset([2, 3, 1]).first(2).image_ids == [1, 2]
    assert dataset([3, 1, 2]).first(None).image_ids == [3, 1, 2]


def test_panoptic_errors_name_file_and_remedy(tmp_path):
    folder = panoptic_folder(tmp_path / "unknown", category_id=9)
    with pytest.raises(
        ValueError,
        match=r"panoptic_examples.json, image 5: segment 70000 has the category_id 9, which must be one that",
    ):
        open_coco_sample(folder)

    folder = panoptic_folder(tmp_path / "size")
    picture(folder / "input_images" / "a.png", (H, W + 1))
    with pytest.raises(ValueError, match=r"a.png is \(12, 17\) .* \(12, 16\); use the picture"):
        open_coco_sample(folder)[0]

    folder = panoptic_folder(tmp_path / "ids")
    Image.fromarray(np.full((H, W, 3), 1, np.uint8)).save(folder / "panoptic_examples" / "a.png")
    with pytest.raises(ValueError, match=r"image 5: it does not list the segments \[65793\] in .*a.png"):
        open_coco_sample(folder)[0]

    folder = panoptic_folder(tmp_path / "gone")
    (folder / "input_images" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.png does not exist"):
        open_coco_sample(folder)[0]

    folder = panoptic_folder(tmp_path / "cut")
    text = (folder / "panoptic_examples.json").read_text()
    (folder / "panoptic_examples.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"panoptic_examples.json is no whole JSON file .* fetch or write it again"):
        open_coco_sample(folder)
    with pytest.raises(FileNotFoundError, match=r"nowhere lacks panoptic_examples.json"):
        open_coco_sample(tmp_path / "nowhere")
    (folder / "panoptic_examples.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"sample lacks panoptic_examples.json; .* and input_images/"):
        open_coco_sample(folder)
    with pytest.raises(ValueError, match=r"categories.json has no list 'categories'"):
        open_coco_panoptic(save_json(tmp_path / "categories.json", {"images": []}), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("images", {"file_name": 5}, r"image 5 has the file_name 5"),
        ("images", {"file_name": ...}, r"without a file_name, image 5 has no coco_url"),
        ("images", {"id": "../../escape"}, r"the id '../../escape', which must be .* without slashes"),
        ("annotations", {"image_id": [5]}, r"annotation of image \[5\] has the image_id \[5\]"),
        ("annotations", {"file_name": ...}, r"annotation of image 5 has no file_name"),
        ("annotations", {"segments_info": ...}, r"annotation of image 5 has no segments_info"),
        ("annotations", {"segments_info": {"id": 1}}, r"image 5 has the segments_info .*, which must be a list"),
        ("annotations", {"segments_info": [[]]}, r"image 5: segment number 0 is \[\]"),
        ("segments", {"id": ...}, r"image 5: segment number 0 has no id"),
        ("segments", {"id": "300"}, r"the id '300', which must be a whole number"),
        ("segments", {"id": 70000}, r"json, image 5: id 70000 occurs more than once"),
        ("segments", {"category_id": ...}, r"image 5: segment 300 has no category_id"),
        ("segments", {"iscrowd": "0"}, r"the iscrowd '0', which must be 0 or 1"),
        ("segments", {"area": "90"}, r"the area '90'"),
        ("segments", {"area": -1}, r"the area -1, which must be a number of pixels"),
        ("segments", {"area": 0}, r"image 5: segment 300 has the area 0, but 90 pixels of 192 in .*a.png"),
        ("segments", {"area": float("nan")}, r"segment 300 has the area nan, which must be a number of pixels"),
    ],
)
def test_panoptic_shapes(tmp_path, where, change, message):
    """A field changed, or left out (...), in the JSON."""
    folder = panoptic_folder(tmp_path)
    content = json.loads((folder / "panoptic_examples.json").read_text())
    entry = content["annotations"][0]["segments_info"][0] if where == "segments" else content[where][0]
    left = {key: value for key, value in (entry | change).items() if value is not ...}
    entry.clear()
    entry.update(left)
    save_json(folder / "panoptic_examples.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        open_coco_sample(folder)[0]
    assert "panoptic_examples.json" in str(caught.value)


@pytest.mark.parametrize("what", ["input_images", "panoptic_examples"])
def test_cut_off_pictures(tmp_path, what):
    folder = panoptic_folder(tmp_path)
    path = folder / what / "a.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a.png cannot be read .*truncated.* fetch or write it again"):
        open_coco_sample(folder)[0]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.png cannot be read"):
        open_coco_sample(folder)[0]


def instances_file(path, annotations, **image):
    info = {"id": 1, "file_name": "a.png", "height": H, "width": W} | image
    categories = [{"id": 3, "name": "cup"}, {"id": 9, "name": "box"}, {"id": 11, "name": "hat"}]
    return save_json(path, {"images": [info], "annotations": annotations, "categories": categories})


def test_coco_instances_polygons_and_both_run_length_codes(tmp_path):
    picture(tmp_path / "images" / "a.png")
    square = np.zeros((H, W), np.uint8)
    square[2:6, 3:9] = 1
    compressed = coco_mask.encode(np.asfortranarray(square))
    compressed["counts"] = compressed["counts"].decode()
    flat = square.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    plain = {"size": [H, W], "counts": np.diff([0, *edges, flat.size]).tolist()}
    box, line = [3, 2, 9, 2, 9, 6, 3, 6], [0, 0, 15, 9]  # pycocotools takes two points that come first for a box
    codes = [[box], compressed, plain, [line, box], [box, line]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 9, "segmentation": code, "iscrowd": int(i == 2)}
        for i, code in enumerate(codes)
    ]
    dataset = open_coco_instances(instances_file(tmp_path / "i.json", annotations), tmp_path / "images")
    sample = dataset[0]
    assert sample.semantic is None and [s.iscrowd for s in sample.segments] == [False, False, True, False, False]
    for segment in sample.segments:
        assert segment.category == 1
        np.testing.assert_array_equal(segment.mask, square.astype(bool))
    same = [{"image_id": 1, "category_id": 9, "segmentation": compressed, "score": 1.0}] * 4  # of four, one is crowd
    assert average_precision(dataset, same)["AP"] == pytest.approx(100)
    box = open_coco_instances(tmp_path / "i.json", tmp_path / "images", only=["hat", "box"], annotated=True)
    assert box.names == ["box", "hat"] and len(box) == 1 and box[0].segments[0].category == 0
    assert len(open_coco_instances(tmp_path / "i.json", tmp_path / "images", only=["cup"], annotated=True)) == 0


def test_lvis_pictures_are_found_by_coco_address(tmp_path):
    picture(tmp_path / "coco" / "train2017" / "a.png")
    path = instances_file(tmp_path / "l.json", [], coco_url="http://images.example.org/train2017/a.png")
    content = json.loads(path.read_text())
    del content["images"][0]["file_name"]
    path.write_text(json.dumps(content))
    for folder in ("coco", "coco/train2017", "coco/val2017"):
        dataset = open_coco_instances(path, tmp_path / folder)
        assert dataset[0].image.shape == (H, W, 3) and dataset.picture_name(1).endswith("a.png")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 4}, r"i.json: annotation 1 has the category_id 4, which must be one that the file lists"),
        ({"image_id": 2}, r"i.json: annotation 1 has the image_id 2, which must be one that the file lists"),
        ({"segmentation": None}, r"i.json: the segmentation of annotation 1 is neither"),
        ({"segmentation": {"size": [H, W], "counts": 5}}, r"i.json: the segmentation of annotation 1 is neither"),
        (
            {"segmentation": {"size": [4, 4], "counts": [0, 16]}},
            r"annotation 1 .*\(coded for 4 x 4 .* runs of 16 in all",
        ),
        (
            {"segmentation": {"size": [H, W], "counts": [10, 5]}},
            r"annotation 1 .* 15 in all, its image has 12 x 16",
        ),
        ({"segmentation": {"size": [H, W], "counts": ":5"}}, r"annotation 1 .* runs of 15 in all"),
        ({"segmentation": {"size": [H, W], "counts": [-8, 200]}}, r"annotation 1 .* whole numbers from 0"),
        ({"segmentation": {"size": [H, W], "counts": [0, 192.0]}}, r"annotation 1 .* whole numbers from 0"),
        ({"segmentation": {"size": [H, W], "counts": "5P"}}, r"it is cut off"),
        ({"segmentation": {"size": [H, W], "counts": "5 6"}}, r"annotation 1 .*a character that is none of the code"),
        ({"segmentation": [[0, 0, 4, 0, 4, float("nan")]]}, r"annotation 1 .* near the picture"),
        ({"segmentation": [[0, 0, 4, 0, 4, 1e300]]}, r"annotation 1 .* near the picture"),
        ({"segmentation": [[0, 0, 4, 0, 4, "4"]]}, r"annotation 1 .* a list of numbers"),
        ({"segmentation": [[[0, 0], [4, 0], [4, 4]]]}, r"annotation 1 .* a list of numbers"),
        ({"segmentation": [[0, 0, 4, 0, 4]]}, r"annotation 1 .* x, y, x, y"),
        ({"segmentation": [[0, 0, 4, 4]]}, r"annotation 1 .* needs three points"),
        ({"segmentation": []}, r"annotation 1 .* needs three points"),
        ({"category_id": [3]}, r"annotation 1 has the category_id \[3\]"),
        ({"iscrowd": "0"}, r"annotation 1 has the iscrowd '0'"),
        ({"area": "9"}, r"annotation 1 has the area '9'"),
    ],
)
def test_instance_errors(tmp_path, annotation, message):
    picture(tmp_path / "a.png")
    entry = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 4, 0, 4, 4]]} | annotation
    with pytest.raises(ValueError, match=message):
        open_coco_instances(instances_file(tmp_path / "i.json", [entry]), tmp_path)[0]
    with pytest.raises(ValueError, match="no category named 'dog'"):
        open_coco_instances(instances_file(tmp_path / "i.json", []), tmp_path, only=["dog"])
    with pytest.raises(ValueError, match=r"i.json: annotation number 0 is 'cup'"):
        open_coco_instances(instances_file(tmp_path / "i.json", ["cup"]), tmp_path)
    with pytest.raises(ValueError, match=r"i.json: image 1 has the height '12'"):
        open_coco_instances(instances_file(tmp_path / "i.json", [], height="12"), tmp_path)


def test_run_lengths_equal_pycocotools():
    rng = np.random.default_rng(0)
    for share in (0, 0.001, 0.1, 0.5, 0.99, 1):
        mask = rng.random((67, 129)) < share
        code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        code["counts"] = code["counts"].decode()
        got = decode({"segmentation": code}, (67, 129), Path("i.json"))
        np.testing.assert_array_equal(got, mask)
        assert got.dtype == bool and got.flags.f_contiguous and got.flags.writeable


@pytest.mark.parametrize(("suffix", "dtype", "void"), [(".png", np.uint8, 255), (".tif", np.uint16, 65535)])
def test_semantic_folders(tmp_path, suffix, dtype, void):
    picture(tmp_path / "images" / "b.jpg")
    (tmp_path / "labels").mkdir()
    names = [f"name {i}" for i in range(200 if dtype == np.uint8 else 1000)]
    labels = np.random.default_rng(0).integers(0, len(names), (H, W)).astype(dtype)
    labels[0, :3] = [void, len(names) - 1, 0]
    path = tmp_path / "labels" / f"b{suffix}"
    Image.fromarray(labels).save(path)
    dataset = open_semantic_folder(tmp_path / "images", tmp_path / "labels", names)
    sample = dataset[0]
    assert sample.segments == [] and dataset.image_ids == ["b"]
    np.testing.assert_array_equal(sample.semantic, np.where(labels == void, -1, labels.astype(int)))
    with pytest.raises(ValueError, match=rf"b{suffix} holds the value {len(names) - 1}"):
        open_semantic_folder(tmp_path / "images", tmp_path / "labels", names[:-1])[0]
    picture(tmp_path / "images" / "c.jpg")
    with pytest.raises(FileNotFoundError, match=r"c is in .*images but not in .*labels"):
        open_semantic_folder(tmp_path / "images", tmp_path / "labels", names)


def test_semantic_palette_and_colour_maps(tmp_path):
    picture(tmp_path / "i" / "a.png")
    (tmp_path / "l").mkdir()
    indices = Image.fromarray((np.arange(H * W).reshape(H, W) % 3).astype(np.uint8))
    indices.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    indices.save(tmp_path / "l" / "a.png")
    sample = open_semantic_folder(tmp_path / "i", tmp_path / "l", ["a", "b", "c"])[0]
    np.testing.assert_array_equal(sample.semantic, np.arange(H * W).reshape(H, W) % 3)
    picture(tmp_path / "l" / "a.png")
    with pytest.raises(
        ValueError, match=r"a.png cannot be read as a semantic map \(its mode is RGB, but it must have one channel"
    ):
        open_semantic_folder(tmp_path / "i", tmp_path / "l", ["a", "b", "c"])[0]


def test_semantic_values_that_cannot_be(tmp_path):
    picture(tmp_path / "i" / "a.png")
    (tmp_path / "l").mkdir()
    labels = np.zeros((H, W), np.int32)
    labels[3, 4] = -5
    Image.fromarray(labels).save(tmp_path / "l" / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif holds the value -5, which is neither"):
        open_semantic_folder(tmp_path / "i", tmp_path / "l", ["a", "b"])[0]
    for wrong in (-1, 65535, 70000):
        with pytest.raises(
            ValueError, match=rf"c.json: category {wrong} has the id {wrong}, which must be .* 0 to 65534"
        ):
            names = save_json(tmp_path / "c.json", [{"id": wrong, "name": "a"}])
            open_semantic_folder(tmp_path / "i", tmp_path / "l", names)
    Image.fromarray(np.full((H, W), 255, np.uint8)).save(tmp_path / "l" / "a.png")
    with pytest.raises(ValueError, match=r"two files of one stem"):
        open_semantic_folder(tmp_path / "i", tmp_path / "l", ["a", "b"])
    (tmp_path / "l" / "a.tif").unlink()
    assert (open_semantic_folder(tmp_path / "i", tmp_path / "l", ["a", "b"])[0].semantic == -1).all()
    with pytest.raises(ValueError, match=r"a.png holds the value 255, which in an 8-bit file means void but"):
        open_semantic_folder(tmp_path / "i", tmp_path / "l", [str(i) for i in range(256)])[0]


def test_category_lists(tmp_path):
    lines = tmp_path / "names.txt"
    lines.write_text("wall\nbuilding, edifice\n\n")
    assert [c.name for c in open_categories(lines)] == ["wall", "building, edifice"]
    ade = tmp_path / "objectInfo150.txt"
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.15\t11664\t1172\t1\twall", "13\t0.02\t5\t6\t0\tperson, man"]
    ade.write_text("\n".join(rows))
    assert [(c.id, c.name, c.isthing) for c in open_categories(ade)] == [(0, "wall", False), (12, "person, man", True)]
    entries = [{"id": 4, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat", "isthing": 1}]
    got = open_categories(save_json(tmp_path / "c.json", entries))
    assert [(c.id, c.name, c.isthing) for c in got] == [(4, "sky", False), (2, "cat", True)]
    for broken, message in [
        ([{"id": 1}], "category 1 has no name"),
        ([["wall"]], r"c.json: category number 0 is \['wall'\]"),
        ([{"id": "abc", "name": "a"}], "c.json: category 'abc' has the id 'abc', which must be a whole number"),
        ([{"id": 1.7, "name": "a"}], "the id 1.7"),
        ([{"id": 1, "name": None}], "the name None"),
        ([{"id": 1, "name": " "}], "the name ' '"),
        ([{"id": 1, "name": "a", "isthing": "0"}], "the isthing '0', which must be 0 or 1"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "categories: id 1 occurs more than once"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "categories: name 'a' occurs more than once"),
        (["wall"], "category number 0 is 'wall', but must have id, name"),
        ({"a": 1}, "there is no list of categories"),
        (None, "there is no list of categories"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_categories(save_json(tmp_path / "c.json", broken))
    for wrong in ("1: wall", "0:invalid_class_id", "2\twall", "7;wall"):
        lines.write_text(f"{wrong}\nsky")
        with pytest.raises(ValueError, match=r"names.txt, line 1: '.*' has a number; list names alone"):
            open_categories(lines)
    lines.write_text("0 wall\n1 sky")  # every line begins with its number
    with pytest.raises(ValueError, match="line 1: '0 wall' has a number"):
        open_categories(lines)
    lines.write_text("7-up bottle\n4 wheeler")
    assert [c.name for c in open_categories(lines)] == ["7-up bottle", "4 wheeler"]
    lines.write_bytes("\ufeffmur\nforêt".encode())
    assert [c.name for c in open_categories(lines)] == ["mur", "forêt"]
    lines.write_bytes("forêt".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names.txt is neither a UTF-8 list of names"):
        open_categories(lines)
    for row in ("1\t0.15\t5", "one\t0.15\t5\t6\t0\twall"):
        ade.write_text(f"{rows[0]}\n{row}\n")
        with pytest.raises(ValueError, match=r"objectInfo150.txt is neither .* nor a table of Idx, Ratio"):
            open_categories(ade)


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    grey = np.linspace(0, 255, H * W).round().astype(np.uint8).reshape(H, W)
    rgb = np.stack([grey, grey.T.reshape(H, W), 255 - grey], -1)
    palette = Image.fromarray(rgb).quantize(256)
    twelve = np.rint(grey * (16 * 255 / 4095))  # whose white is 4095
    cases = {
        "grey.png": (Image.fromarray(grey), np.repeat(grey[..., None], 3, 2)),
        "grey16.png": (Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, 2)),
        "grey12.png": (Image.fromarray(grey.astype(np.uint16) * 16), np.repeat(twelve[..., None], 3, 2)),
        "grey32.tif": (Image.fromarray(grey.astype(np.int32)), np.repeat(grey[..., None], 3, 2)),
        "grey16.tif": (Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, 2)),
        "two.png": (Image.fromarray(grey > 99), np.repeat(((grey > 99) * 255)[..., None], 3, 2)),
        "rgb.png": (Image.fromarray(rgb), rgb),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
        "opaque.png": (Image.fromarray(np.dstack([rgb, np.full_like(grey, 255)])), rgb),
        "clear.png": (Image.fromarray(np.dstack([rgb, np.zeros_like(grey)])), np.full_like(rgb, 255)),
        "cmyk.tif": (Image.fromarray(rgb).convert("CMYK"), rgb),
        "one.png": (Image.fromarray(rgb[:1, :1]), rgb[:1, :1]),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        got = read_image(tmp_path / name)
        assert got.dtype == np.uint8 and got.flags.writeable, name
        np.testing.assert_array_equal(got, expected, err_msg=name)
    Image.fromarray(rgb.astype(np.float32)[..., 0]).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif .* 8 or 16 bits"):
        read_image(tmp_path / "float.tif")
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page.jpg cannot be read as a picture"):
        read_image(tmp_path / "page.jpg")


def test_an_orientation_that_exif_does_not_know_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.new("RGB", (16, 8)).save(tmp_path / "odd.jpg", exif=exif)
    assert read_size(tmp_path / "odd.jpg") == read_image(tmp_path / "odd.jpg").shape[:2] == (8, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Stored pixels are the upright picture put through the inverse of each EXIF orientation."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8], upright[:4, 8:], upright[4:, :8] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), upright)


def test_fingerprint_changes_with_every_file(tmp_path):
    folder = panoptic_folder(tmp_path)
    before = open_coco_sample(folder).fingerprint()
    assert before == open_coco_sample(folder).fingerprint()
    seen = {before}
    head = (folder / "input_images" / "a.png").read_bytes()
    picture(folder / "input_images" / "a.png", size=(300, 300))
    turned = Image.Exif()
    for turned[0x0112] in (1, 6):  # set right in place: neither the length nor the end changes
        Image.effect_noise((300, 300), 50).save(folder / "input_images" / "a.png", exif=turned)
        seen.add(open_coco_sample(folder).fingerprint())
    (folder / "input_images" / "a.png").write_bytes(head)
    picture(folder / "input_images" / "a.png", compress_level=0)
    seen.add(open_coco_sample(folder).fingerprint())
    mask = folder / "panoptic_examples" / "a.png"
    pixels = np.asarray(Image.open(mask)).copy()
    pixels[0, 1] = 0
    Image.fromarray(pixels).save(mask)
    seen.add(open_coco_sample(folder).fingerprint())
    (folder / "panoptic_examples.json").write_text((folder / "panoptic_examples.json").read_text() + "\n")
    dataset = open_coco_sample(folder)
    seen.add(dataset.fingerprint())
    seen.add(dataset.subset([]).fingerprint())
    assert len(seen) == 7
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"a.png of data set"):
        dataset.fingerprint()


def test_layout(tmp_path):
    """Every named data set opens from the folders detectron2's users know."""
    with pytest.raises(ValueError, match="no data set 'ade'"):
        open_dataset("ade", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"panoptic_val2017.json does not exist"):
        open_dataset("coco_val", tmp_path)
    names = [{"id": i, "name": n, "isthing": 0} for i, n in enumerate(["sky", "sea"])]
    for folder, images, labels, categories in [
        ("ADEChallengeData2016", "images", "annotations_detectron2", "categories.json"),
        ("ADE20K_2021_17_01", "images_detectron2", "annotations_detectron2", "categories.json"),
        ("pascal_ctx_d2", "images", "annotations_ctx59", "categories_59.json"),
        ("pascal_ctx_d2", "images", "annotations_ctx459", "categories_459.json"),
    ]:
        picture(tmp_path / folder / images / "validation" / "a.jpg")
        (tmp_path / folder / labels / "validation").mkdir(parents=True)
        Image.fromarray(np.ones((H, W), np.uint8)).save(tmp_path / folder / labels / "validation" / "a.png")
        save_json(tmp_path / folder / categories, names)
    for name in ("a150_semantic", "a847", "p59", "p459"):
        dataset = open_dataset(name, tmp_path)
        assert dataset.name == name and dataset.names == ["sky", "sea"] and (dataset[0].semantic == 1).all()
    save_json(tmp_path / "coco" / "annotations" / "split.json", {"base": ["hat", "cup"], "target": ["box"]})
    entry = {"id": 1, "image_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    for year, category, want in (("train2017", 3, ["cup", "hat"]), ("val2017", 9, ["cup", "box", "hat"])):
        instances_file(tmp_path / f"coco/annotations/instances_{year}.json", [entry | {"category_id": category}])
        picture(tmp_path / "coco" / year / "a.png")
        dataset = open_dataset("coco_split_" + year.removesuffix("2017"), tmp_path)
        assert dataset.names == want and len(dataset[0].segments) == 1
    for base, target, message in (
        (["cup"], ["cup"], "'cup' is a base and a target name; no name may be in both"),
        ("abc", ["cup"], "split number 0 has the base 'abc', which must be a list of names"),
        (None, [], "split number 0 has the base None, which must be a list of names"),
        ([["cup"]], [], r"split number 0 has the base \[\['cup'\]\], which must be a list of names"),
    ):
        save_json(tmp_path / "coco" / "annotations" / "split.json", {"base": base, "target": target})
        with pytest.raises(ValueError, match=f"split.json: {message}"):
            open_dataset("coco_split_train", tmp_path)


def test_two_entries_of_one_name_fail_at_once() -> None:
    source = Path(datasets.__file__).read_text()
    doubled = source.replace('"p459", open_semantic_folder', '"p59", open_semantic_folder')
    assert doubled != source
    with pytest.raises(ValueError, match=r"two entries of .*datasets.py have one name"):
        exec(
            compile(doubled, datasets.__file__, "exec"), {"__name__": datasets.__name__, "__file__": datasets.__file__}
        )
