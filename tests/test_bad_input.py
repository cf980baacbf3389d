"""What goes wrong with data in silence: the right numbers, or one sentence."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from maskclip import hub
from maskclip.data import (
    Dataset,
    open_categories,
    open_coco_instances,
    open_coco_panoptic,
    open_semantic_folder,
    read_image,
    same_pictures,
)
from maskclip.data.coco import read_split
from maskclip.data.datasets import DATASETS
from maskclip.data.images import read_labels, read_panoptic_ids, read_size, write_panoptic_ids
from maskclip.data.prepare.archives import File
from maskclip.data.prepare.filling import Placing, place
from maskclip.evaluation.metrics import average_precision, coco_results, true_panoptic, write_panoptic
from maskclip.evaluation.tasks import InstanceTask
from maskclip.model.clip import Clip, load_clip, text_embeddings
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.pipeline import MaskCLIP, NamedMasks
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from maskclip.proposals.store import encode, proposal_key
from maskclip.segmenter.segmenter import MINIATURE
from maskclip.segmenter.words import read_words
from maskclip.training.mask_tokens import train_maskclip
from study.methods import METHODS
from study.params import load_study
from study.run import Run

SIZE = (12, 16)
SQUARE = [[3, 2, 9, 2, 9, 6, 3, 6]]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip(MINIATURE)


def panoptic_set(folder: Path, change: Callable[[dict], object] = lambda content: None) -> Dataset:
    """Image 5: a cat of id 300 over a sky of id 7, all pixels; its JSON with a change."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(folder / "images" / "a.png")
    ids = np.full(SIZE, 7)
    ids[2:6, 3:9] = 300
    write_panoptic_ids(folder / "masks" / "a.png", ids)
    about = {"iscrowd": 0, "bbox": [0, 0, 1, 1]}
    segments = [{"id": 300, "category_id": 1, "area": 24, **about}, {"id": 7, "category_id": 2, "area": 168, **about}]
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }
    change(content)
    (folder / "panoptic.json").write_text(json.dumps(content))
    return open_coco_panoptic(folder / "panoptic.json", folder / "masks", folder / "images")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1. wall\n2. sky", "line 1: '1. wall' has a number"),
        ("(1) wall\n(2) sky", "has a number"),
        ("[0] wall\n[1] sky", "has a number"),
        ("1-wall\n2-sky", "has a number"),
        ("1_wall\n2_sky", "has a number"),
        ("#0 wall\n#1 sky", "has a number"),
        ("wall,1\nsky,2", "'wall,1' has a number"),
        ("wall: 1\nsky: 2", "has a number"),
        ("wall\t1\nsky\t2", "is no name"),
        ("id,name\nwall", "line 1: 'id,name' is no name"),
        ("Names\nwall", "is no name"),
        ("# of ADE20K\nwall", "is no name"),
        ('"wall"\n"sky"', "is no name"),
        ('["wall", "sky"]', "is no name"),
        ("- wall\n- sky", "is no name"),
        ("wall;Wand", "is no name"),
        ("wall,\nsky,", "is no name"),
        ("wall\n\nsky", "line 2: '' is no name"),
        ("background\nwall", "line 1: 'background' is no class, and would shift"),
        ("wall\nvoid", "line 2: 'void' is no class"),
        ("\n", "there is no list of categories"),
    ],
)
def test_lists_of_another_form_are_refused_by_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"names.txt.*") as told:
        open_categories(path)
    assert sentence in str(told.value)


def test_names_that_begin_with_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("7-up bottle\n4 wheeler\nbuilding, edifice\nmur de pierre\n")
    assert [one.name for one in open_categories(path)][:2] == ["7-up bottle", "4 wheeler"]


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, pd.Index, iter])
def test_names_come_in_any_container(kind: Any) -> None:
    found = [one.name for one in open_categories(kind(["wall", "sky"]))]
    assert found == ["wall", "sky"] and all(type(name) is str for name in found)


@pytest.mark.parametrize("names", [["wall", "wall"], ["wall", 1], ["wall", " "], [], ["wall", float("nan")]])
def test_names_that_cannot_be(names: list) -> None:
    with pytest.raises(ValueError, match="the given names"):
        open_categories(names)


def test_a_folder_without_pictures_or_with_folders_of_them_is_no_empty_set(tmp_path: Path) -> None:
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / folder / "cam1").mkdir(parents=True)
        Image.new(mode, (4, 3)).save(tmp_path / folder / "cam1" / "1.png")
    opened = tmp_path / "images", tmp_path / "labels", ["wall"]
    with pytest.raises(
        FileNotFoundError, match=r"images has no .*\.png file; they must lie in it, not in folders below"
    ):
        open_semantic_folder(*opened)
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        Image.new(mode, (4, 3)).save(tmp_path / folder / "1.png")
        (tmp_path / folder / "._2.png").write_bytes(b"of macOS")
    assert open_semantic_folder(*opened).image_ids == ["1"]


def deep_png(path: Path, values: np.ndarray) -> None:
    """A PNG of 16 bits a channel, [H, W, 3], which Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_colours_of_sixteen_bits(tmp_path: Path) -> None:
    """Of which Pillow drops the lower half: 12 bits would be all but black, ids all void."""
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3))
    deep_png(tmp_path / "whole.png", values * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "whole.png"), values)
    for scale in (1, 16):
        deep_png(tmp_path / "twelve.png", values * scale)
        with pytest.raises(ValueError, match=r"twelve.png .*only the lower 12 are used; save it with 8"):
            read_image(tmp_path / "twelve.png")
    deep_png(tmp_path / "ids.png", values)
    with pytest.raises(ValueError, match=r"ids.png .* must have 8 bits a channel"):
        read_panoptic_ids(tmp_path / "ids.png")


def test_label_maps_of_few_bits(tmp_path: Path) -> None:
    """Pillow scales grey values of 4 bits to 0 to 255, as a picture's; the places in a palette it leaves."""
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "grey.png", bits=4)
    with pytest.raises(ValueError, match=r"grey.png .* kept as L;4, but must have 8 bits a channel"):
        read_labels(tmp_path / "grey.png")
    palette = Image.fromarray(values)
    palette.putpalette([0, 99, 200] * 12)
    palette.save(tmp_path / "palette.png", bits=4)
    np.testing.assert_array_equal(read_labels(tmp_path / "palette.png")[0], values)


def semantic_set(folder: Path, name: str = "toy", seed: int = 0) -> Dataset:
    """One noisy picture "1.png", with a plain TIFF of labels."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "1.png", compress_level=0)
    Image.fromarray(np.zeros((90, 90), np.uint16)).save(folder / "labels" / "1.tif")
    return open_semantic_folder(folder / "images", folder / "labels", ["wall", "sky"], name=name)


def test_pictures_of_one_name_and_length_are_not_the_same(tmp_path: Path) -> None:
    """Files of a format that does not compress have one length; each has proposals of its own."""
    sets = [semantic_set(tmp_path / name, name, seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    assert len({(tmp_path / one / "images" / "1.png").stat().st_size for one in "ab"}) == 1
    assert [[one.name for one in group] for group in same_pictures(sets)] == [["a", "c"], ["b"]]


def test_a_plain_tiff_mended_in_the_middle_is_another(tmp_path: Path) -> None:
    dataset = semantic_set(tmp_path)
    before, length = dataset.fingerprint(), (tmp_path / "labels" / "1.tif").stat().st_size
    labels = np.zeros((90, 90), np.uint16)
    labels[20, 20] = 1
    Image.fromarray(labels).save(tmp_path / "labels" / "1.tif")
    assert (tmp_path / "labels" / "1.tif").stat().st_size == length and dataset.fingerprint() != before


def test_stores_of_two_folders_of_transformers_are_two(tmp_path: Path) -> None:
    dataset, keys = panoptic_set(tmp_path), set()
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(content)
        keys.add(proposal_key(tmp_path / name, dataset))
    assert len(keys) == 2


@pytest.mark.parametrize("where", ["masks", "scores"])
def test_proposals_of_a_network_that_diverged_are_not_stored(where: str) -> None:
    masks, scores = torch.zeros(1, 3, 4), torch.ones(1)
    {"masks": masks[0, 0], "scores": scores}[where][0] = float("nan")
    with pytest.raises(ValueError, match="the proposals of image 7 are no numbers; the network has diverged"):
        encode(7, Proposals(masks, scores))


def test_image_ids_of_numpy_are_image_ids(tmp_path: Path) -> None:
    dataset = panoptic_set(tmp_path)
    chosen = dataset.subset(np.array(dataset.image_ids))
    assert [type(one) for one in chosen.image_ids] == [int] and chosen.fingerprint() == dataset.fingerprint()
    assert len(dataset.subset(one for one in [5])) == 1
    with pytest.raises(ValueError, match=r"panoptic.json has no image 7; image_ids lists what there is"):
        dataset.subset([7])


def edited(*path: str | int, **change: Any) -> Callable[[dict], None]:
    """A change of the entry at `path` of a JSON; ... leaves a key out."""

    def change_it(content: Any) -> None:
        for key in path:
            content = content[key]
        for key, value in change.items():
            if value is ...:
                del content[key]
            else:
                content[key] = value

    return change_it


SEGMENT = "annotations", 0, "segments_info", 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (edited("categories", 1, isthing=...), r"category 2 has no isthing, which must be 0 or 1"),
        (edited(*SEGMENT, iscrowd=...), r"segment 300 lacks the iscrowd that others have"),
        (edited(*SEGMENT, area=...), r"segment 300 lacks the area that others have"),
        (
            edited("annotations", 0, file_name="void.png"),
            r"none of its 2 segments has a pixel in .*void.png; take both",
        ),
    ],
)
def test_keys_and_masks_that_would_change_pq_in_silence(
    tmp_path: Path, change: Callable[[dict], None], sentence: str
) -> None:
    """panopticapi raises KeyErrors of these."""
    assert len(panoptic_set(tmp_path)[0].segments) == 2
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "masks" / "void.png")
    with pytest.raises(ValueError, match=rf"panoptic.json.*{sentence}"):
        panoptic_set(tmp_path, change).annotation(5)


def instance_set(folder: Path, change: Callable[[dict], object] = lambda content: None, **options: Any) -> Dataset:
    """Images 1 and 2, a square of category 9 on each, in LVIS's form; its JSON with a change."""
    about = {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1], **about} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 9, "iscrowd": 0, "segmentation": SQUARE} for i in (1, 2)
        ],
        "categories": [{"id": 3, "name": "cup"}, {"id": 9, "name": "box"}],
    }
    change(content)
    (folder / "instances.json").write_text(json.dumps(content))
    return open_coco_instances(folder / "instances.json", folder, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (edited("annotations", 1, id=1), r"annotations: id 1 occurs more than once"),
        (edited("annotations", 1, id=[1]), r"the id \[1\], which must be a whole number or a text"),
        (edited("annotations", 0, iscrowd=...), r"annotation 1 lacks the iscrowd that others have"),
        (edited("images", 1, neg_category_ids=...), r"image 2 lacks the neg_category_ids that others have"),
        (edited("images", 1, not_exhaustive_category_ids=...), r"image 2 lacks the not_exhaustive_category_ids"),
        (edited("images", 0, neg_category_ids=None), r"image 1 has the neg_category_ids None, which must be a list"),
        (edited("images", 0, neg_category_ids=["3"]), r"which must be a list of the file's category ids"),
        (edited("images", 0, not_exhaustive_category_ids=[4]), r"which must be a list of the file's category ids"),
    ],
)
def test_keys_that_would_change_ap_in_silence(tmp_path: Path, change: Callable[[dict], None], sentence: str) -> None:
    assert len(instance_set(tmp_path)) == 2
    with pytest.raises(ValueError, match=rf"instances.json.*{sentence}"):
        instance_set(tmp_path, change)


def test_lvis_is_never_scored_by_cocos_rules(tmp_path: Path) -> None:
    def without(content: dict) -> None:
        for image in content["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]

    assert len(instance_set(tmp_path, without)) == 2
    with pytest.raises(ValueError, match=r"image 1 has no neg_category_ids, which must be a list"):
        instance_set(tmp_path, without, federated=True)
    assert DATASETS["lvis"].options["federated"]


@pytest.mark.parametrize("kind", [list, np.array, iter])
def test_names_to_keep_come_in_any_container(tmp_path: Path, kind: Any) -> None:
    assert instance_set(tmp_path, only=kind(["box"])).names == ["box"]


def test_a_split_lists_each_name_once(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"base": ["cup", "cup"], "target": ["box"]}')
    with pytest.raises(ValueError, match=r"split.json: 'cup' stands twice"):
        read_split(tmp_path / "split.json")


def test_results_that_pycocotools_would_take_for_worthless(tmp_path: Path) -> None:
    dataset = instance_set(tmp_path)
    results = coco_results(1, dataset.annotation(1).segments[0].mask[None], [1], [0.9], dataset.categories)
    assert average_precision(dataset, results)["AP"] == pytest.approx(50.495, abs=1e-3)
    with pytest.raises(ValueError, match=r"a result of image 1 has the score nan; the model has diverged"):
        average_precision(dataset, [results[0] | {"score": float("nan")}])
    with pytest.raises(ValueError, match="a result of image 1 has no score"):
        average_precision(dataset, [{key: value for key, value in results[0].items() if key != "score"}])
    larger = coco_results(1, np.ones((1, 24, 32), bool), [1], [0.9], dataset.categories)
    with pytest.raises(
        ValueError, match=r"a result of image 1 is \[24, 32\] .* the image \[12, 16\] in .*instances.json"
    ):
        average_precision(dataset, larger)


def test_written_predictions_know_numpys_ids_and_never_overwrite_one_another(tmp_path: Path) -> None:
    dataset = panoptic_set(tmp_path)
    ids, segments = true_panoptic(dataset.annotation(5))
    write_panoptic(tmp_path / "pred.json", dataset.categories, [(np.int64(5), ids, segments)])
    assert json.loads((tmp_path / "pred.json").read_text())["annotations"][0]["image_id"] == 5
    assert (tmp_path / "pred" / "000000000005.png").is_file()
    with pytest.raises(ValueError, match=r"two images would be written to 000000000005.png"):
        write_panoptic(tmp_path / "p.json", dataset.categories, [(i, ids, segments) for i in (5, "000000000005")])


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series, pd.Index, iter])
def test_words_come_in_any_container(clip: Clip, kind: Any) -> None:
    plain = text_embeddings(clip, ["cow", "tree"])
    assert torch.equal(text_embeddings(clip, kind(["cow", "tree"])), plain)
    model = MaskCLIP(clip, MaskedImages(clip))
    assert torch.equal(model.words(kind(["cow", "tree"])), plain)
    assert read_words(kind(["cow", "tree"]), kind(["cow"])).isthing == (True, False)


@pytest.mark.parametrize("names", ["cow", ["cow", float("nan")], [], None, 5, np.array([["cow"]])])
def test_words_that_are_none(clip: Clip, names: Any) -> None:
    with pytest.raises(ValueError, match="names must be a list of texts"):
        text_embeddings(clip, names)
    with pytest.raises(ValueError, match="words must be a list of texts"):
        read_words(names)
    with pytest.raises(ValueError, match="things has nan"):
        read_words(["cow"], [float("nan")])


def test_words_are_kept_by_activation_and_tokenizer(clip: Clip, tmp_path: Path) -> None:
    """The same weights under the name of the other GELU give other embeddings."""
    other = replace(clip, model=copy.deepcopy(clip.model))
    assert other.text_identity == clip.text_identity
    for block in other.model.transformer.resblocks:
        block.mlp.gelu = open_clip.transformer.QuickGELU()
    kept = [text_embeddings(replace(one, words_folder=tmp_path), ["cow"]) for one in (clip, other)]
    assert torch.equal(kept[1], text_embeddings(other, ["cow"])) and not torch.equal(*kept)
    assert replace(clip, tokenizer=open_clip.get_tokenizer("ViT-B-32")).text_identity != clip.text_identity


def test_a_name_too_long_is_told_with_its_clip(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'cow cow .* is longer than the 32 tokens that CLIP mini_clip reads"):
        text_embeddings(clip, ["tree", "cow " * 40])
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "cow": 2}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    of_the_hub = replace(clip, tokenizer=open_clip.tokenizer.HFTokenizer(str(tmp_path), 32), name="roberta-ViT-B-32")
    assert text_embeddings(of_the_hub, ["cow " * 32]).shape[0] == 1
    with pytest.raises(ValueError, match=r"longer than the 32 tokens that CLIP roberta-ViT-B-32 reads"):
        text_embeddings(of_the_hub, ["cow", "cow " * 33])


def test_what_later_stages_would_stop_at_is_told_first(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_with(weights: str) -> Run:
        run = object.__new__(Run)
        network = SimpleNamespace(backbone=SimpleNamespace(weights=weights))
        networks = SimpleNamespace(mask2former=network, mask_rcnn=network, twins=network)
        trained = load_study("mini").maskclip
        run.study = SimpleNamespace(proposals=networks, clip=SimpleNamespace(templates=["a {}"]), maskclip=trained)
        run.dataset = lambda name: SimpleNamespace(names=["sky", name])  # type: ignore[method-assign]
        return run

    monkeypatch.setattr(hub, "is_cached", lambda repo: "resnet" in repo)
    monkeypatch.setattr(hub, "answers", lambda: False)
    run = run_with("timm/resnet50.tv_in1k")
    run.clip = clip
    (said,) = run.faults_ahead(["cow", "cow " * 40])
    assert said.startswith("cow cow") and "'a cow cow cow" in said and "than the 32 tokens that CLIP mini_clip" in said
    layers = replace(METHODS["layers_3_9_15_21"], id="ours", rma_layers=(2, 8, 14, 20))
    monkeypatch.setitem(METHODS, "ours", layers)
    assert run.rma_layers("ours") == run.rma_layers("layers_3_9_15_21") == (1, 2, 4, 5)
    (said,) = run.faults_ahead(["cow"])
    assert "'layers_3_9_15_21' and 'ours' are one training: this CLIP's 6 layers" in said and "give one other" in said
    monkeypatch.setitem(METHODS, "ours", replace(layers, refine_masks=False))
    assert not run.faults_ahead(["cow"])
    run = run_with("somebody/elses")
    monkeypatch.setattr(Run, "clip", property(lambda self: load_clip("models/nowhere")))
    weights, no_clip = run.faults_ahead(["cow", "sky"])
    assert "backbone somebody/elses" in weights and "is not on this machine" in weights
    assert "no such CLIP folder: models/nowhere" in no_clip


def test_a_picture_that_lies_on_its_side_is_placed_by_its_upright_size(tmp_path: Path) -> None:
    """As it will be read: else the annotation's size would be found wrong, or wrongly right, after hours."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=turned)
    assert read_image(tmp_path / "a.jpg").shape[:2] == read_size(tmp_path / "a.jpg") == (30, 20)
    file = File(tmp_path / "a.jpg", size=(tmp_path / "a.jpg").stat().st_size)
    place(Placing(file, tmp_path / "out" / "a.jpg", (20, 30), "its labels"))
    with pytest.raises(ValueError, match=r"a.jpg has 20 x 30 pixels"):
        place(Placing(file, tmp_path / "other" / "a.jpg", (30, 20), "its labels"))


def test_nothing_to_train_on_is_one_sentence(clip: Clip, tmp_path: Path) -> None:
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip.model, (1,))
    training = load_study("mini").maskclip
    with pytest.raises(ValueError, match="the data set panoptic has no images to train on"):
        train_maskclip(encoder, clip, panoptic_set(tmp_path).subset([]), {}, training, tmp_path / "out", 0)


def test_a_picture_known_by_its_address_is_not_anothers_of_its_name(tmp_path: Path) -> None:
    """LVIS gives no file name; of train2017's 1.png another lies in val2017, the folder that is given."""
    for year, color in (("val2017", "red"), ("train2017", "lime")):
        (tmp_path / year).mkdir()
        Image.new("RGB", SIZE[::-1], color).save(tmp_path / year / "1.png")

    def by_address(content: dict) -> None:
        for image, year in zip(content["images"], ("val2017", "train2017"), strict=True):
            del image["file_name"]
            image["coco_url"] = f"http://images.example.org/{year}/1.png"

    instance_set(tmp_path, by_address)
    dataset = open_coco_instances(tmp_path / "instances.json", tmp_path / "val2017")
    assert [one.image[0, 0].tolist() for one in dataset] == [[255, 0, 0], [0, 255, 0]]
    (tmp_path / "train2017" / "1.png").rename(tmp_path / "train2017" / "2.png")
    (tmp_path / "val2017" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"/train2017/1.png does not exist"):
        dataset[1]


def test_an_instance_set_of_another_size_is_told_at_its_first_picture(tmp_path: Path) -> None:
    """As the panoptic and the semantic one; AP would be 0."""
    task = InstanceTask(instance_set(tmp_path))
    evaluation = load_study("mini").evaluation

    def named(size: tuple[int, int]) -> NamedMasks:
        return NamedMasks(torch.eye(2), torch.ones(2, 4, 4), size)

    assert len(task.judge(lambda names: named(SIZE), 1, evaluation)) > 0
    with pytest.raises(ValueError, match=r"image 1: the picture is \(24, 32\) .*instances.json it is \(12, 16\)"):
        task.judge(lambda names: named((24, 32)), 1, evaluation)
