"""The miniature's pictures and data sets: who has seen what, scenes with sense, true formats, same bytes."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from maskclip.data import open_dataset
from miniature import words
from miniature.datasets import annotated_scene, recipe, write_world
from miniature.drawings import sprites
from miniature.painting import paint
from miniature.scenes import STYLES, Ground, Recipe, Scene, crowded_ground, random_scene, sticker_of
from miniature.textures import texture_bank


@pytest.fixture(scope="module")
def bank() -> torch.Tensor:
    return texture_bank(1, 1, 192)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_world(root, seed=3, coco_train=6, coco_val=2, ade=3, pascal=3, lvis=4)
    return root


def scenes_of(made_of: Recipe, count: int) -> list[Scene]:
    return [random_scene(np.random.default_rng([5, i]), made_of) for i in range(count)]


@pytest.mark.parametrize(
    ("dataset", "artist", "style"),
    [("coco", "nora", "sticker"), ("lvis", "nora", "sticker"), ("ade", "max", "print"), ("pascal", "faye", "chalk")],
)
def test_each_set_has_one_artist_and_one_style(dataset: str, artist: str, style: str) -> None:
    rows = {row for rows in sprites().variants[artist].values() for row in rows}
    for scene in scenes_of(recipe(dataset), 60):
        assert scene.style == style
        assert {t.row for t in scene.things} <= rows


def test_sets_differ_in_scenes_and_words() -> None:
    rooms = {name: recipe(name).places.get("room", 0) / sum(recipe(name).places.values()) for name in ("coco", "ade")}
    assert rooms["ade"] > 3 * rooms["coco"]
    assert set(recipe("ade").likely) != set(recipe("pascal").likely) != set(recipe("coco").likely)
    lvis = recipe("lvis")
    assert lvis.count > recipe("coco").count and lvis.scale < recipe("coco").scale  # many small things
    rare = [n for n in dict.fromkeys(lvis.likely) if lvis.likely.count(n) == 1]
    assert len(rare) > 80 and len([n for s in scenes_of(lvis, 80) for n in s.things if n.name in rare]) > 5


def test_the_ade20k_mirrors_have_much_stuff_and_more_things(bank: torch.Tensor) -> None:
    """As ADE20K has twice COCO's segments a picture; rooms and streets of several walls, floors, roads."""
    known, shown = set(words.stuff()), {}
    for name in ("coco", "ade", "pascal"):
        drawn = [annotated_scene(np.random.default_rng([9, i]), recipe(name), bank) for i in range(40)]
        kinds = [len(known & set(scene.names)) for scene in drawn]
        shown[name] = np.mean(kinds), np.mean([len(scene.names) for scene in drawn]) - np.mean(kinds)
    assert shown["ade"][0] > 4 and all(shown["ade"][0] > 2 * shown[other][0] for other in ("coco", "pascal"))
    assert all(shown["ade"][1] > shown[other][1] + 0.5 for other in ("coco", "pascal"))


@pytest.mark.parametrize("place", words.GROUNDS)
def test_much_stuff_is_a_places_own_and_what_is_above_is_drawn_above(place: str) -> None:
    bands = words.GROUNDS[place]
    for seed in range(40):
        ground = crowded_ground(np.random.default_rng(seed), place, 4, 6)
        assert len(set(ground.stuff)) == len(ground.stuff) <= 6
        assert len(ground.stuff) >= min(4, len({name for band in bands for name in band}))
        assert all(any(name in band for name in ground.stuff) for band in bands)
        height = {name: y for name, (_, y) in zip(ground.stuff, ground.centres, strict=True)}
        for above, below in pairwise(bands if ground.beside else ()):
            highest = min(height[name] for name in ground.stuff if name in below and name not in above)
            assert all(height[name] < highest for name in ground.stuff if name in above), ground


def test_things_are_at_home_more_often_than_chance() -> None:
    made_of = recipe("coco")
    for place in ("water", "field", "room"):
        here = Recipe(made_of.artists, made_of.styles, made_of.likely, {place: 1.0})
        names = [t.name for s in scenes_of(here, 80) for t in s.things]
        chance = np.mean([place in words.things()[n].places for n in made_of.likely])
        at_home = np.mean([place in words.things()[n].places for n in names])
        assert at_home > chance + 0.2 and at_home < 0.97, place  # and odd ones too


def test_the_nearer_is_in_front() -> None:
    for scene in scenes_of(recipe("coco"), 30):
        feet = [t.y + 0.4 * t.size for t in scene.things if t.size > 0.145]
        assert feet == sorted(feet)


def test_large_kinds_are_drawn_larger() -> None:
    rng = np.random.default_rng(0)
    size = {n: np.mean([sticker_of(rng, n, "nora").size for _ in range(20)]) for n in ("elephant", "dog", "strawberry")}
    assert size["elephant"] > 1.3 * size["dog"] > 1.69 * size["strawberry"]


def test_masks_are_what_is_painted(bank: torch.Tensor) -> None:
    rng = np.random.default_rng(1)
    one = sticker_of(rng, "apple", "nora", "red")
    with_it, without = (Scene("sticker", Ground(("grass",), ((0.5, 0.5),)), things, 7) for things in ((one,), ()))
    pictures, owner, _ = paint([with_it, without], bank, 96, 96)
    changed = (pictures[0] - pictures[1]).abs().amax(0) > 0.3
    assert owner[0].max() == 0 and owner[1].max() == -1
    assert (changed & (owner[0] < 0)).float().mean() < 0.01
    again = paint([with_it, without], bank, 96, 96)[0]
    assert torch.equal(pictures, again)


def test_styles_differ(bank: torch.Tensor) -> None:
    one = sticker_of(np.random.default_rng(1), "dog", "nora", "brown")
    ground = Ground(("grass", "sky"), ((0.2, 0.2), (0.7, 0.8)))
    pictures = paint([Scene(style, ground, (one,), 7) for style in STYLES], bank, 96, 96)[0]
    assert min((a - b).abs().mean() for a, b in zip(pictures, pictures.roll(1, 0))) > 0.08
    assert pictures[2].mean() < 0.6 * pictures[0].mean()


def test_scenes_have_crowds_overlaps_void_and_several_regions(bank: torch.Tensor) -> None:
    drawn = [annotated_scene(np.random.default_rng([8, i]), recipe("coco"), bank) for i in range(60)]
    assert any(any(s.crowd) for s in drawn)
    assert any(~np.any(s.masks, 0).all() for s in drawn)
    assert np.mean([len(set(s.names) & set(words.stuff())) for s in drawn]) > 1.4
    assert all(np.sum(s.masks, 0).max() == 1 for s in drawn)  # masks do not overlap, however much things do


def test_target_things_are_in_the_base_networks_pictures_and_not_annotated(world: Path) -> None:
    _, target = words.coco_split()
    pictures = [random_scene(np.random.default_rng([3, 0, i]), recipe("coco")) for i in range(40)]
    assert any(t.name in target for s in pictures for t in s.things)
    base = open_dataset("coco_split_train", world)
    assert {c.name for c in base.categories} <= set(words.coco_split()[0])


def test_written_sets_are_read_by_the_studys_readers(world: Path) -> None:
    for name in ("coco_train", "coco_val", "coco_split_val", "a150", "a150_semantic", "a847", "p59", "p459", "lvis"):
        dataset = open_dataset(name, world)
        assert len(dataset) > 0
        sample = next(iter(dataset))
        assert min(sample.image.shape[:2]) == 128
        assert any(d.segments or (d.semantic is not None and d.semantic.max() >= 0) for d in dataset), name
    split = json.loads((world / "coco" / "annotations" / "split.json").read_text())
    assert {part: len(names) for part, names in split.items()} == {"base": 48, "target": 17}
    assert len(open_dataset("a847", world).categories) >= 200 and len(open_dataset("lvis", world).categories) >= 200


def test_stuff_is_one_segment_a_picture(world: Path) -> None:
    panoptic = json.loads((world / "coco" / "annotations" / "panoptic_train2017.json").read_text())
    stuff = {c["id"] for c in panoptic["categories"] if not c["isthing"]}
    for annotation in panoptic["annotations"]:
        ids = [s["category_id"] for s in annotation["segments_info"] if s["category_id"] in stuff]
        assert len(ids) == len(set(ids))


def test_same_seed_same_bytes(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path, seed=3, coco_train=6, coco_val=2, ade=3, pascal=3, lvis=4)

    def digest(root: Path) -> dict[str, str]:
        files = (p for p in sorted(root.rglob("*")) if p.is_file())
        return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    assert digest(tmp_path) == digest(world)


def test_a_folder_of_ones_own_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="was not written by the miniature"):
        write_world(tmp_path, coco_train=1, coco_val=1, ade=1, pascal=1, lvis=1)
    assert (tmp_path / "coco" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"coco_train": 0}, {"lvis": True}])
def test_wrong_counts_are_one_sentence(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} of the miniature must be a whole number"):
        write_world(tmp_path, **wrong)
