"""Own pictures, own words: what `Segmenter` takes, answers and refuses, with the miniature's committed weights."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from safetensors.torch import save_file
from typer.testing import CliRunner

import maskclip
from maskclip import hub
from maskclip.cli import app
from maskclip.data.images import read_panoptic_ids
from maskclip.files import save_checkpoint
from maskclip.model.clip import Clip, load_clip
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals, load_source
from maskclip.released.encoder import released_state_dict
from maskclip.segmenter import Segmenter, segmenter
from maskclip.segmenter.batch import find_pictures
from maskclip.segmenter.segmenter import MINIATURE, MODELS, as_picture, own_masks
from maskclip.segmenter.words import VILD_TEMPLATES, read_words, templates_of
from maskclip.training.mask_tokens import trained_weights
from miniature import render_scene

WORDS = ["umbrella", "cow", "grass", "sky"]


@pytest.fixture(scope="module")
def mini() -> Segmenter:
    return Segmenter.load(device="cpu")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render_scene(WORDS, colours=["red", "brown"], seed=2)[0]


def left_half(size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[:, : size[1] // 2] = True
    return mask


# What comes out


def test_a_picture_and_words_become_named_segments(mini: Segmenter, picture: np.ndarray) -> None:
    answer = mini(picture, WORDS)
    assert {one.name for one in answer.segments} >= {"umbrella", "grass"} and set(WORDS) >= {
        one.name for one in answer.segments
    }
    assert answer.panoptic.shape == answer.semantic.shape == picture.shape[:2]
    assert set(np.unique(answer.panoptic)) - {0} == {one.id for one in answer.segments}
    for one in answer.segments:
        assert one.area == (answer.panoptic == one.id).sum() and one.isthing == (one.name in ("umbrella", "cow"))
        left, top, width, height = one.box
        assert one.mask[top : top + height, left : left + width].sum() == one.area
        scores = [score for _, score in one.others]
        assert one.score >= scores[0] and scores == sorted(scores, reverse=True)
        assert one.name not in dict(one.others)
    assert set(np.unique(answer.semantic)) <= {-1, 0, 1, 2, 3}
    assert all(one.isthing for one in answer.instances) and answer.instances
    assert [one.score for one in answer.instances] == sorted((one.score for one in answer.instances), reverse=True)


@pytest.mark.parametrize("found", [None, [None], [], [1, 2]])
def test_a_proposal_source_of_ones_own_that_gives_none(mini: Segmenter, picture: np.ndarray, found: Any) -> None:
    own = Segmenter.load(mini.model.clip, proposals=lambda images: found, device="cpu")
    with pytest.raises(ValueError, match=re.escape(f"the proposal source gives {found!r}; it must give a list of one")):
        own(picture, WORDS)


def test_every_thing_is_an_instance_and_no_stuff(mini: Segmenter) -> None:
    picture, masks = render_scene(WORDS, colours=["red", "brown"], seed=2)
    answer = mini(picture, WORDS, masks=np.stack(list(masks.values())))
    assert sorted(one.name for one in answer.instances) == ["cow", "umbrella"]
    for one in answer.instances:
        assert (one.mask ^ masks[one.name]).mean() < 0.02


def test_things_says_what_is_counted(mini: Segmenter, picture: np.ndarray) -> None:
    answer = mini(picture, WORDS, things=["grass"])
    assert {one.name: one.isthing for one in answer.segments if one.name in ("grass", "umbrella")} == {
        "grass": True, "umbrella": False,
    }  # fmt: skip
    assert {one.name for one in answer.instances} <= {"grass"}


def test_the_answer_as_pictures_tables_and_json(mini: Segmenter, picture: np.ndarray, tmp_path: Path) -> None:
    answer = mini(picture, WORDS)
    for task in ("panoptic", "semantic", "instances"):
        drawn = np.asarray(Image.open(answer.save(tmp_path / f"{task}.png", task)))
        assert drawn.shape[2] == 3 and np.ptp(drawn) > 100
    with pytest.raises(ValueError, match="task is 'boxes'; it must be panoptic, semantic or instances"):
        answer.draw("boxes")
    for name in ("x", "x.foo", ".png"):
        with pytest.raises(ValueError, match=rf"new/{name} must end in a kind of picture, such as \.png"):
            answer.save(tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()
    with pytest.raises(IsADirectoryError, match="which is a folder; give a file in it"):
        answer.save(tmp_path)
    table = answer.table()
    assert list(table.name) == [one.name for one in answer.segments]
    assert table.area_percent.sum() == pytest.approx(100 * (answer.panoptic > 0).mean())
    shown = answer._repr_html_()
    assert all(one.name in shown for one in answer.segments) and shown.count("data:image/png") == 2
    assert answer.show()._repr_png_()[:4] == b"\x89PNG"

    content = json.loads(answer.save_coco(tmp_path, "mine").read_text())
    (annotation,) = content["annotations"]
    ids = read_panoptic_ids(tmp_path / annotation["file_name"])
    assert {one["id"]: one["area"] for one in annotation["segments_info"]} == {
        one.id: (ids == one.id).sum() for one in answer.segments
    }
    assert [one["name"] for one in content["categories"]] == WORDS
    for result, one in zip(content["instances"], answer.instances, strict=True):
        np.testing.assert_array_equal(rle.decode(result["segmentation"]).astype(bool), one.mask)


def test_a_picture_without_masks_has_an_answer(mini: Segmenter, picture: np.ndarray) -> None:
    empty = Proposals(torch.zeros(0, 8, 8), torch.zeros(0))
    answer = mini(picture, WORDS, masks=empty)
    assert not answer.segments and not answer.instances and (answer.semantic == -1).all() and not answer.panoptic.any()
    assert "None of these" in answer._repr_html_() and answer.table().empty


# None of these


def test_what_fits_no_word_gets_none(mini: Segmenter, picture: np.ndarray) -> None:
    absent = ["telephone", "boat"]
    assert not mini(picture, absent).segments
    assert mini(picture, absent, none_of_these=False).segments, "every mask is named"
    assert mini(picture, [*absent, "umbrella"]).table().name.tolist() == ["umbrella"]


def test_one_word_alone(mini: Segmenter, picture: np.ndarray) -> None:
    answer = mini(picture, ["umbrella"])
    assert [one.name for one in answer.segments] == ["umbrella"] and answer.segments[
        0
    ].area < 0.3 * answer.panoptic.size


def test_a_threshold_on_similarity_leaves_more_without_a_name(mini: Segmenter, picture: np.ndarray) -> None:
    strict = Segmenter(mini.model, mini.others, least_similarity=1.01, known=mini.known_words)
    assert mini(picture, WORDS).segments and not strict(picture, WORDS).segments


def test_synonyms_are_one_class_and_the_better_counts(mini: Segmenter, picture: np.ndarray) -> None:
    both, better = mini(picture, ["boat | umbrella", "grass"]), mini(picture, ["umbrella", "grass"])
    named = [one for one in both.segments if one.isthing]
    assert [one.name for one in named] == ["boat"]
    np.testing.assert_array_equal(named[0].mask, next(one.mask for one in better.segments if one.isthing))


def test_a_word_that_the_miniature_never_learned_is_named(mini: Segmenter, picture: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"never learned 'umbrela' \(nearest: umbrella.*\), 'zzzz'; it knows \d+ names"
    ):
        mini(picture, ["umbrela", "sky", "zzzz"])
    assert {"umbrella", "sky"} <= set(mini.known_words or ())


# Reuse


def test_other_words_and_masks_reuse_what_is_known(
    mini: Segmenter, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    fresh = Segmenter(mini.model, mini.others, known=mini.known_words)
    for name in ("see", "encode", "propose"):
        does = getattr(fresh.model, name)
        monkeypatch.setattr(fresh.model, name, lambda *a, name=name, does=does: asked.append(name) or does(*a))
    first = fresh(picture, WORDS)
    assert sorted(asked) == ["encode", "propose", "see"]
    again = fresh(picture.copy(), [*WORDS, "boat"])
    assert len(asked) == 3, "the same picture is embedded once"
    np.testing.assert_array_equal(first.mask_logits, again.mask_logits)
    half = left_half(picture.shape[:2])
    left = fresh(picture, WORDS, masks=half)
    right = fresh(picture, WORDS, masks=~half)
    assert asked[3:] == ["encode", "encode"], "other masks need CLIP's pass once"
    assert fresh(picture, WORDS, masks=~half).probs.equal(right.probs) and not left.probs.equal(right.probs)
    np.testing.assert_array_equal(fresh(picture, WORDS).panoptic, first.panoptic)
    assert len(asked) == 5, "the proposals and the last own masks are kept"
    embedded = fresh.embed(picture)
    changed = picture.copy()
    changed[0, 0] ^= 255
    fresh(changed, WORDS)
    assert sorted(asked[5:]) == ["encode", "propose", "see"]
    np.testing.assert_array_equal(fresh(embedded, WORDS).panoptic, first.panoptic)
    assert len(asked) == 8, "an embedded picture is never embedded again"


def test_own_masks_in_every_form_are_one(mini: Segmenter, picture: np.ndarray) -> None:
    half = left_half(picture.shape[:2])
    packed = rle.encode(np.asfortranarray(half.astype(np.uint8)))
    height, width = half.shape
    runs = {"size": [height, width], "counts": [0, height * (width // 2), height * (width - width // 2)]}
    corners = [[0, 0, width // 2, 0, width // 2, height, 0, height]]
    forms: list[Any] = [half[None], half, half.astype(np.uint8), [packed], [{"segmentation": half, "area": 3}], [half]]
    forms += [torch.from_numpy(half)[None], [runs], [{"segmentation": corners}], 255 * half[None].astype(np.uint8)]
    answers = [mini(picture, ["grass", "sky"], masks=form, none_of_these=False) for form in forms]
    for answer in answers:
        assert len(answer.segments) == 1 and answer.segments[0].name == answers[0].segments[0].name
        assert (answer.segments[0].mask ^ half).mean() < 0.02
    two = mini(picture, ["grass", "sky"], masks=half.astype(int) + 1, none_of_these=False)
    assert len(two.mask_logits) == 2, "each number of a label map is a mask"
    assert not len(own_masks(np.zeros((2, 5, 6), bool), (5, 6))), "empty masks are left out"
    assert not mini(picture, ["grass"], masks=[]).segments, "no masks, no segments"
    over = mini(picture, ["grass", "sky"], masks=np.stack([half, half]), none_of_these=False)
    assert sum(one.area for one in over.segments) <= half.sum() * 1.02, "masks that overlap share no pixel"


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (np.ones((1, 9, 9), bool), r"a mask is \[9, 9\], the picture \[128, 160\]"),
        (np.full((1, 128, 160), 0.3), r"a mask is \[128, 160\] of values 0.3 to 0.3"),
        ([{"size": [9, 9], "counts": [81]}], "masks: the segmentation of annotation 0 .*coded for 9 x 9 pixels"),
        ([{"segmentation": [[1, 2, 3]]}], "masks: the segmentation of annotation 0 is neither polygons nor"),
        ([{"area": 3}], "annotation 0"),
        (
            [np.ones((128, 160), bool), np.ones((20, 160), bool)],
            r"several sizes, \[128, 160\] and \[20, 160\]; the pict",
        ),
        ("masks.png", r"a mask is \[\], the picture"),
        ([[[1, 0], [1]]], "a list whose rows are not equally long"),
        ([[1, 0], [1]], r"several sizes, \[1\] and \[2\]"),
        ([{"segmentation": [[1, 0], [1]]}], "annotation 0"),
    ],
)
def test_masks_that_cannot_be(mini: Segmenter, picture: np.ndarray, masks: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mini(picture, ["grass"], masks=masks)


def test_generators_serve_every_picture_of_a_list(mini: Segmenter, picture: np.ndarray) -> None:
    halves = np.zeros((2, 128, 160), bool)
    halves[0, :64], halves[1, 64:] = True, True
    both = mini([picture, picture], iter(WORDS), things=iter(["umbrella"]), masks=[iter(halves), iter(halves)])
    assert [one.labels for one in both] == [WORDS, WORDS] and all(len(one.mask_logits) == 2 for one in both)


def test_a_list_of_pictures(mini: Segmenter, picture: np.ndarray) -> None:
    one, other = mini([picture, picture[:, ::-1]], WORDS)
    np.testing.assert_array_equal(one.panoptic, mini(picture, WORDS).panoptic)
    assert other.panoptic.shape == one.panoptic.shape
    left = left_half(picture.shape[:2])
    one, other = mini((picture, picture), WORDS, masks=[left, ~left], none_of_these=False)
    assert not (one.panoptic > 0)[~left].any() and not (other.panoptic > 0)[left].any(), "each its own masks"
    with pytest.raises(ValueError, match="2 pictures, but masks for 1; give each picture its own"):
        mini([picture, picture], WORDS, masks=[left])
    with pytest.raises(ValueError, match="masks of a list of pictures are a list of each one's, not 5"):
        mini([picture, picture], WORDS, masks=5)
    with pytest.raises(ValueError, match="an embedded picture has its masks already"):
        mini(mini.embed(picture), WORDS, masks=left)


# What goes in


@pytest.mark.parametrize(
    ("words", "things", "sentence"),
    [
        ([], None, "words must be a list of texts"),
        ("cat", None, r"words must be a list of texts, such as \['dog', 'lawn | grass'\], not 'cat'"),
        (["cat", " "], None, "is empty; give each a text"),
        (["cat |", "dog"], None, "is empty"),
        (["cat", "dog", "Cat"], None, "'cat' stands twice"),
        (["cat | feline", "feline"], None, "'feline' stands twice"),
        (["cat", 3], None, "must be a list of texts"),
        (["cat"], ["dog"], "things has 'dog', which is none of the words"),
        (["cat"], [5], "things has 5, which is none of the words"),
        (["cat"], 5, "things must be a list of some of the words, not 5"),
    ],
)
def test_words_that_cannot_be(words: Any, things: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_words(words, things)


def test_words_are_things_but_for_stuff() -> None:
    found = read_words(["dog", "green grass", "lawn | turf", "Sky", "🦄", "собака"])
    assert found.isthing == (True, False, False, False, True, True)
    assert found.labels == ["dog", "green grass", "lawn", "Sky", "🦄", "собака"]
    assert read_words(["dog", "grass"], things=["grass"]).isthing == (False, True)
    for things in (["lawn | turf", " dog "], ["turf|Lawn", "DOG"], ["lawn", "dog"]):
        assert read_words(["dog", "lawn |turf", "sky"], things).isthing == (True, True, False)


def test_a_text_longer_than_clip_reads_is_told(mini: Segmenter, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="longer than the 32 tokens that CLIP mini_clip reads"):
        mini(picture, ["umbrella " * 50])


def test_templates_by_name() -> None:
    assert templates_of("none") == ("{}",) and len(set(templates_of("14"))) == 14 and len(templates_of("80")) == 80
    assert templates_of("14") == VILD_TEMPLATES and all("{}" in template for template in templates_of("80"))
    assert templates_of(["my {}"]) == ("my {}",)
    for wrong in ("15", None, 5, [5], [], ["a photo"]):
        with pytest.raises(ValueError, match=re.escape(f"templates are {wrong!r}; take 'none', '14'")):
            templates_of(wrong)


def test_pictures_of_every_kind_are_the_same_picture(tmp_path: Path, picture: np.ndarray) -> None:
    image, path = Image.fromarray(picture), tmp_path / "a.png"
    image.save(path)
    kinds: list[Any] = [path, str(path), image, io.BytesIO(path.read_bytes()), picture, picture / np.float32(255)]
    kinds += [picture.transpose(2, 0, 1), np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])]
    kinds += [image.convert("RGBA")]
    for kind in kinds:
        np.testing.assert_array_equal(as_picture(kind), picture)
    counted = torch.tensor(picture / 255, requires_grad=True, dtype=torch.float32)
    np.testing.assert_array_equal(as_picture(counted), picture)
    np.testing.assert_array_equal(as_picture(picture > 100), 255 * (picture > 100))
    grey = as_picture(picture[..., 0])
    np.testing.assert_array_equal(grey, np.repeat(picture[..., :1], 3, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 300)])
def test_odd_sizes(mini: Segmenter, size: tuple[int, int]) -> None:
    answer = mini(np.full((*size, 3), 90, np.uint8), ["umbrella", "grass"], none_of_these=False)
    assert answer.panoptic.shape == answer.semantic.shape == size


def test_files_of_every_kind(mini: Segmenter, picture: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(picture)
    image.convert("1").save(tmp_path / "one_bit.png")
    Image.fromarray(picture[..., 0].astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    image.save(tmp_path / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it
    image.save(tmp_path / "turned.jpg", exif=exif)
    for name, size in (("one_bit.png", 128), ("sixteen.png", 128), ("moving.gif", 128), ("turned.jpg", 160)):
        assert mini(tmp_path / name, ["umbrella"]).panoptic.shape[0] == size


def test_what_is_no_picture_is_one_sentence(picture: np.ndarray, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    Image.fromarray(picture).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    for name in ("text.jpg", "cut.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture"):
            as_picture(tmp_path / name)
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder; give a picture's own file"):
        as_picture(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        as_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match="the given picture cannot be read"):
        as_picture(io.BytesIO(b"text"))
    with pytest.raises(ValueError, match=r"an array of int64 \[3\] is no picture"):
        as_picture(np.arange(3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="is too large"):
        as_picture(tmp_path / "whole.png")


# Weights


def test_the_activation_that_weights_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(segmenter, "load_clip", lambda *a: asked.append(a))
    segmenter._load_clip("ViT-L-14-336", None, "cpu")
    segmenter._load_clip("ViT-B-32", "laion2b_s34b_b79k", "cpu")
    with pytest.warns(UserWarning, match="does not say how it was trained; .* take the name ViT-B-32-quickgelu"):
        segmenter._load_clip("ViT-B-32", "my/weights.pt", "cpu")
    segmenter._load_clip("ViT-B-32", "vit_base.openai/weights.pt", "cpu")
    segmenter._load_clip("ViT-B-32", "openai/laion2b_s34b_b79k.pt", "cpu")
    segmenter._load_clip("ViT-B-32-quickgelu", "my/weights.pt", "cpu")
    segmenter._load_clip("ViT-L-14-336", "my/weights.pt", "cpu")
    assert asked == [
        ("ViT-L-14-336-quickgelu", "openai", "cpu"), ("ViT-B-32", "laion2b_s34b_b79k", "cpu"),
        ("ViT-B-32", "my/weights.pt", "cpu"), ("ViT-B-32-quickgelu", "vit_base.openai/weights.pt", "cpu"),
        ("ViT-B-32", "openai/laion2b_s34b_b79k.pt", "cpu"),
        ("ViT-B-32-quickgelu", "my/weights.pt", "cpu"), ("ViT-L-14-336-quickgelu", "my/weights.pt", "cpu"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'nonesuch' is neither a folder nor a CLIP that open_clip has weights for"):
        segmenter._load_clip("nonesuch", None, "cpu")


def test_an_archive_as_openai_publishes_it(tmp_path: Path) -> None:
    """TorchScript, half precision: a tiny one."""
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"width": 32, "heads": 2, "layers": 1}}
    for name, quick in (("tiny-vit", False), ("tiny-vit-quickgelu", True)):
        (tmp_path / f"{name}.json").write_text(json.dumps(config | {"quick_gelu": quick}))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    published = open_clip.create_model("tiny-vit-quickgelu").eval()
    published.attn_mask = published._buffers.pop("attn_mask")  # in theirs it is no part of the state
    state = {name: value.clone() for name, value in published.state_dict().items()}
    traced = torch.jit.trace(
        published, (torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)), check_trace=False
    )
    traced.half().save(tmp_path / "tiny.pt")
    archive, plain, tags = str(tmp_path / "tiny.pt"), str(tmp_path / "plain.pt"), {"openai": True, "laion": False}
    assert segmenter.trained_with_quickgelu("tiny-vit", archive, tags)
    assert segmenter.trained_with_quickgelu("tiny-vit", archive, {})
    with pytest.raises(ValueError, match=r"tiny.pt' were trained with QuickGELU, .*; take 'tiny-vit-quickgelu'"):
        load_clip("tiny-vit", archive)
    torch.save(state, tmp_path / "plain.pt")
    assert segmenter.trained_with_quickgelu("tiny-vit", plain, {"laion": False}) is False
    loaded = load_clip("tiny-vit-quickgelu", str(tmp_path / "tiny.pt")).model.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(loaded[name], value, rtol=1e-3, atol=1e-3)


def test_without_network_one_sentence_says_what_to_put_where(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "answers", lambda: False)
    monkeypatch.setattr(hub, "is_cached", lambda repo: False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as told:
        Segmenter.load("ViT-L-14-336")
    assert "timm/vit_large_patch14_clip_336.openai is not on this machine" in str(told.value)
    assert "open_clip_model.safetensors" in str(told.value) and "HF_HOME" in str(told.value)
    with pytest.raises(
        FileNotFoundError, match=r"proposal network facebook/mask2former-swin-.*their folder in place of"
    ):
        load_source("facebook/mask2former-swin-small-coco-panoptic")


def test_a_hub_that_is_never_reached_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    def never(*a: Any, **b: Any) -> None:
        raise httpx.ConnectError("no network")

    hub.answers.cache_clear()
    monkeypatch.setattr(httpx, "head", never)
    assert not hub.answers()
    hub.answers.cache_clear()
    monkeypatch.setattr(httpx, "head", lambda *a, **b: None)
    assert hub.answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.answers.cache_clear()
    assert not hub.answers()
    hub.answers.cache_clear()


@pytest.mark.parametrize(
    ("layers", "refine", "forms"),
    [
        ((2, 5), True, ("layernorm", "product")),
        ((1, 6), False, ("linear", "product")),
        ((3,), True, ("linear", "attention")),
    ],
)
def test_trained_weights_say_what_they_are(
    picture: np.ndarray, tmp_path: Path, layers: tuple[int, ...], refine: bool, forms: tuple[str, str]
) -> None:
    clip = load_clip(MINIATURE)
    encoder = MaskCLIPVisualEncoder.from_open_clip(
        clip.model, layers, refine, *forms, generator=torch.Generator().manual_seed(1)
    )
    save_checkpoint(tmp_path / "encoder.pt", trained_weights(encoder))
    loaded = Segmenter.load(encoder=tmp_path, device="cpu")
    assert isinstance(loaded.model.encoder, MaskCLIPVisualEncoder) and loaded.model.encoder.rma_layers == layers
    for name, value in encoder.rma.state_dict().items():
        torch.testing.assert_close(loaded.model.encoder.rma.state_dict()[name], value)
    assert loaded(picture, ["umbrella", "grass"], none_of_these=False).panoptic.shape == picture.shape[:2]


def test_converted_released_weights(picture: np.ndarray, tmp_path: Path) -> None:
    """Of a tiny CLIP as deep as the released one."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 24, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    clip = Clip.of(open_clip.model.CLIP(64, vision, text).eval())
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip.model, generator=torch.Generator().manual_seed(1))
    state = {name: value.clone() for name, value in released_state_dict(encoder).items()}
    save_file(state, tmp_path / "released.safetensors")
    proposals = MODELS / "mini_proposals" / "mask2former.safetensors"
    loaded = Segmenter.load(clip, proposals=proposals, encoder=tmp_path / "released.safetensors", device="cpu")
    for name, value in encoder.rma.state_dict().items():
        torch.testing.assert_close(loaded.model.encoder.rma.state_dict()[name], value)
    assert loaded(picture, ["a dog", "lawn | grass"], none_of_these=False).segments
    with pytest.raises(ValueError, match=r"rma_layers is \(6, 12, 18, 24\); it must hold layers of the ViT, 1 to 6"):
        Segmenter.load(encoder=tmp_path / "released.safetensors")


def test_weights_of_another_clip_are_refused(tmp_path: Path) -> None:
    other = open_clip.model.CLIP(
        64, {"image_size": 32, "patch_size": 16, "width": 64, "layers": 6, "head_width": 32},
        {"context_length": 8, "vocab_size": 10, "width": 32, "heads": 2, "layers": 1},
    )  # fmt: skip
    save_checkpoint(tmp_path / "encoder.pt", trained_weights(MaskCLIPVisualEncoder.from_open_clip(other, (2, 5))))
    with pytest.raises(ValueError, match="of another CLIP"):
        Segmenter.load(encoder=tmp_path / "encoder.pt")


def test_a_mask_generator_of_transformers_proposes(tmp_path: Path, picture: np.ndarray) -> None:
    """SAM of its true layout, tiny, with random weights."""
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    common = dict(hidden_size=32, num_attention_heads=2, mlp_dim=32)
    vision = SamVisionConfig(
        **common, output_channels=32, num_hidden_layers=1, image_size=64, patch_size=8, window_size=4,
        num_pos_feats=16, global_attn_indexes=[0],
    )  # fmt: skip
    prompt = SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(**common, num_hidden_layers=1, iou_head_depth=2, iou_head_hidden_dim=32)
    torch.manual_seed(0)
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    SamModel(config).save_pretrained(tmp_path)
    side = {"height": 64, "width": 64}
    small = {"mask_size": {"longest_edge": 16}, "mask_pad_size": {"height": 16, "width": 16}}
    SamImageProcessor(size={"longest_edge": 64}, pad_size=side, **small).save_pretrained(tmp_path)
    source: Any = load_source(tmp_path)
    source.options = dict(pred_iou_thresh=-1e9, stability_score_thresh=-1e9)  # random weights are sure of nothing
    answer = Segmenter.load(proposals=source, device="cpu")(picture, ["umbrella", "grass"], none_of_these=False)
    assert len(answer.mask_logits) and answer.segments


# The command line


@pytest.fixture
def folder(tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(picture).save(Path("in") / name)
    Path("in/notes.txt").write_text("not a picture, and none by its name")
    return tmp_path


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["segment", *arguments])
    return result.exit_code, result.output


def test_a_folder_on_the_command_line_is_done_once(folder: Path) -> None:
    code, said = call("in", "umbrella, grass", "--out", "out", "--json")
    assert code == 0 and "out/a.png: " in said and "1 umbrella" in said
    assert {path.name for path in Path("out").iterdir()} == {
        f"{x}{y}" for x in "ab" for y in (".png", ".json", "_ids.png")
    }
    when = os.stat("out/a.png").st_mtime_ns
    assert call("in", "umbrella, grass", "--out", "out", "--json")[1].startswith("2 of 2 are done already")
    assert os.stat("out/a.png").st_mtime_ns == when
    code, said = call("in", "umbrella, sky", "--out", "out", "--json")
    assert code == 0 and "done already" not in said, "other words are another answer"


def test_what_only_looks_like_a_picture_in_a_folder_is_left_out(folder: Path) -> None:
    Path("in/._b.jpg").write_bytes(b"of macOS")
    Path("in/c.png").mkdir()
    assert [path.name for path in find_pictures(["in"])] == ["a.png", "b.jpg"]


def test_pictures_of_one_name_size_and_time_are_two(folder: Path) -> None:
    for name, colour in (("one", "red"), ("two", "blue")):
        Path(name).mkdir()
        Image.new("RGB", (20, 20), colour).save(f"{name}/c.bmp")
        os.utime(f"{name}/c.bmp", (5, 5))
        assert "done already" not in call(f"{name}/c.bmp", "umbrella", "--out", "out")[1]


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        *((name, f"device is '{name}', which PyTorch does not find here") for name in ("tpu", "meta", "foo:1")),
        *((name, f"device is {name}, but PyTorch finds no GPU; take cpu") for name in ("cuda", "cuda:9")),
    ],
)
def test_a_device_that_is_not_there(device: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence):
        Segmenter.load(device=device)
    with pytest.raises(ValueError, match=sentence):
        load_source(MODELS / "mini_proposals" / "mask2former.safetensors", device)
    with pytest.raises(ValueError, match=sentence):
        load_clip(MINIATURE, device=device)


@pytest.mark.parametrize("change", [Path.unlink, Path.touch, lambda path: path.write_bytes(b"damaged")])
def test_json_and_ids_that_are_gone_or_damaged_are_written_again(folder: Path, change: Any) -> None:
    asked = "in/a.png", "umbrella", "--out", "out", "--json"
    call(*asked)
    for name in ("a_ids.png", "a.json"):
        whole = (Path("out") / name).read_bytes()
        change(Path("out") / name)
        assert ("done already" in call(*asked)[1]) == (change is Path.touch)
        assert (Path("out") / name).read_bytes() == whole


def test_a_result_that_is_cut_off_is_written_again(folder: Path) -> None:
    asked, result = ("in/a.png", "umbrella", "--out", "out"), Path("out/a.png")
    call(*asked)
    whole = result.read_bytes()
    result.write_bytes(whole[: len(whole) // 2])
    call(*asked)
    assert result.read_bytes() == whole


def test_no_json_of_other_words_stays_beside_a_new_picture(folder: Path) -> None:
    call("in/a.png", "umbrella", "--out", "out", "--json")
    Path("out/b.json").write_text("{}")
    call("in", "grass", "--out", "out")
    assert not Path("out/a.json").exists() and Path("out/b.json").read_text() == "{}", "one's own is left alone"


def test_more_words_than_a_file_may_have_letters(mini: Segmenter, folder: Path) -> None:
    words = ", ".join((mini.known_words or ())[:60])
    assert len(words) > 255 and call("in/a.png", words)[0] == 0
    code, said = call(words, "umbrella")
    assert code == 1 and "there is no picture or folder" in said


def test_results_never_hit_one_another(folder: Path) -> None:
    Path("in/a.png").rename("in/b_ids.png")
    code, said = call("in", "umbrella", "--json")
    assert code == 1 and "segmented/b_ids.png would be written over" in said and not Path("segmented").exists()


def test_weights_trained_again_answer_again(folder: Path) -> None:
    shutil.copytree(MINIATURE, "clip")
    for said in ("out/b.png", "are done already"):
        assert said in call("in/b.jpg", "umbrella", "--out", "out", "--model", "clip")[1]
    os.utime("clip/open_clip_model.safetensors")
    assert "done already" not in call("in/b.jpg", "umbrella", "--out", "out", "--model", "clip")[1]


def test_a_damaged_picture_does_not_stop_the_others(folder: Path) -> None:
    Path("in/b.jpg").write_bytes(b"damaged")
    code, said = call("in", "umbrella", "--task", "instances")
    assert code == 1 and Path("segmented/a.png").is_file() and not Path("segmented/b.png").exists()
    assert "error: in/b.jpg cannot be read as a picture" in said and "error: 1 could not be segmented" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["in"], "give pictures or folders first, then the words"),
        (["in/a.png", "in/b.jpg"], "in/b.jpg is a file; the words come last"),
        (["in", "umbrella", "--out", "in"], "in/a.png would be written over; give --out a folder without pictures"),
        (["nowhere.jpg", "umbrella"], "there is no picture or folder nowhere.jpg"),
        (["in/a.png", "in/a.png", "umbrella"], "more than one picture is called a"),
        (["in", "umbrella", "--task", "boxes"], "task is 'boxes'"),
        (["in", "lawns"], "never learned 'lawns'"),
        (["in", "umbrella", "--proposals", "nothing"], "there is no source 'nothing'"),
        ([".", "umbrella"], "has no pictures"),
        (["in", "umbrella", "--task", "boxes", "--model", "nonesuch"], "task is 'boxes'"),
        (
            ["in", "umbrella", "--out", "in/a.png", "--model", "nonesuch"],
            "in/a.png is a file; name a folder to write to",
        ),
        (
            ["in", "umbrella", "--out", "in/a.png/b", "--model", "nonesuch"],
            "in/a.png is a file; name a folder to write to",
        ),
    ],
)
def test_the_command_line_refuses_in_one_sentence(folder: Path, arguments: list[str], sentence: str) -> None:
    code, said = call(*arguments)
    assert code == 1 and sentence in said and "Traceback" not in said


def test_the_public_name() -> None:
    assert maskclip.Segmenter is Segmenter


# The README's own lines, as they are printed


def snippets(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.S)


def test_the_readmes_snippets_run_as_printed(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("my.png")
    local, photographs = (code for code in snippets("python") if "Segmenter" in code)
    found: dict[str, Any] = {}
    exec(local, found)
    assert "umbrella" in {one.name for one in found["answer"].segments} and Path("named.png").is_file()
    loaded = []
    with monkeypatch.context() as patched:  # what it would fetch stands for itself
        patched.setattr(segmenter, "load_clip", lambda *a: loaded.append(a) or load_clip(MINIATURE))
        patched.setattr(segmenter, "load_source", lambda *a: loaded.append(a))
        exec(photographs, {})
    assert [one[:2] for one in loaded] == [
        ("ViT-L-14-336-quickgelu", "openai"), (segmenter.PROPOSALS, loaded[0][2]),
    ]  # fmt: skip
    (line,) = (line for code in snippets("sh") for line in code.splitlines() if line.startswith("maskclip segment"))
    assert CliRunner().invoke(app, shlex.split(line)[1:]).exit_code == 0
    assert Path("segmented/my.json").is_file()
