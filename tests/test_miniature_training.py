"""The miniature's trainings: what they see, one schedule from nothing, resumable after a kill, repeatable."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import miniature.pretraining
from maskclip.model.clip import load_clip, text_embeddings
from maskclip.model.pipeline import MaskCLIP
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.settings import BackboneConfig
from miniature import words
from miniature.__main__ import HERE, make_clip, make_network
from miniature.captions import columns, spoken_words, targets_of, training_scenes
from miniature.clip_training import train_clip
from miniature.datasets import BANK_SIZE, annotated_scene, recipe
from miniature.drawings import sprites
from miniature.measuring import _shares, single_scenes
from miniature.mini_clip import grow, merges_for
from miniature.painting import paint
from miniature.pretraining import backbone_stage, base_pictures, pretrain, train_backbone
from miniature.questions import ask, question_scene, questions
from miniature.scenes import COLOURS, STYLES, Scene
from miniature.schedule import Schedule, Stage, read_schedule
from miniature.textures import texture_bank

PLAIN = Stage(3, 4, 32, ("nora",), ("sticker",), plain=1.0)
FULL = Stage(3, 4, 48, words.ARTISTS, ("sticker", "print", "chalk"), plain=0.2, single=0.3, most=4, colours=0.25)
TUNED = replace(FULL, seen=96, lr=5e-4)
TINY = Schedule(3, 1e-3, 2, 2, 0.02, 0.3, 1, 64, 64, 2, 2, 2, (PLAIN, FULL, TUNED), keep=0.25)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The folder and the log of an undisturbed training."""
    folder = tmp_path_factory.mktemp("straight")
    return folder / "m", train_clip(folder / "m", folder / "w", TINY)


def assert_the_same(folder: Path, log: list[dict], straight: tuple[Path, list[dict]]) -> None:
    assert [row["loss"] for row in log] == [row["loss"] for row in straight[1]]
    weights = (path / "open_clip_model.safetensors" for path in (folder, straight[0]))
    assert next(weights).read_bytes() == next(weights).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sead": 5}, "sead is an unknown key"),
        ({"stages": [asdict(PLAIN) | {"plane": 0.9}]}, r"stages\[0\].plane is an unknown key"),
        ({"stages": [asdict(PLAIN) | {"steps": -50}]}, r"stages\[0\].steps .*greater than 0"),
        ({"stages": []}, "stages .*at least 1"),
        ({"warmup": 0}, "warmup .*greater than 0"),
        ({"lr": float("nan")}, "lr "),
        ({"image_size": 17}, "image_size .*multiple of 8"),
    ],
)
def test_a_wrong_schedule_is_told_before_the_training(change: dict, said: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(asdict(TINY) | change))
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=rf"clip.yaml\.{said}"):
        read_schedule(tmp_path / "clip.yaml")


def test_a_wrong_plan_is_told_before_the_training(tmp_path: Path) -> None:
    text = (HERE / "pretraining.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(
        text.replace("backbone: {seed: 11, steps: 1500", "backbone: {sead: 11, steps: 0")
    )
    with pytest.raises(ValueError, match=r"plan.yaml.backbone.seed is missing; .*steps.*; .*sead is an unknown key"):
        pretrain("backbone", tmp_path / "plan.yaml", tmp_path, tmp_path)


def test_a_broken_clock_is_named(tmp_path: Path) -> None:
    (tmp_path / "minutes.json").write_text("{")
    with pytest.raises(ValueError, match=r"minutes.json holds no number; delete it"):
        make_network("backbone", tmp_path, tmp_path)


def test_clip_sees_all_words_artists_and_styles() -> None:
    stage = read_schedule(HERE / "clip.yaml").stages[-1]
    assert set(stage.artists) == set(words.ARTISTS) and len(stage.styles) == 3
    scenes = [s for i in range(40) for s in training_scenes(np.random.default_rng([1, i]), replace(stage, batch=50))]
    seen = {t.name for s in scenes for t in s.things}
    assert len(seen) > 0.97 * len(words.things())
    assert {s.style for s in scenes} == {"sticker", "print", "chalk"}
    owner = {row: artist for artist, by in sprites().variants.items() for rows in by.values() for row in rows}
    assert {owner[t.row] for s in scenes for t in s.things} == set(words.ARTISTS)


def test_common_words_are_seen_oftener() -> None:
    stage = replace(read_schedule(HERE / "clip.yaml").stages[-1], batch=100)
    seen = [t.name for i in range(30) for s in training_scenes(np.random.default_rng([2, i]), stage) for t in s.things]
    common = [n for n, f in words.frequency().items() if f > 0.9 and n in words.things()]
    rare = [n for n, f in words.frequency().items() if f < 0.4 and n in words.things()]
    assert np.mean([seen.count(n) for n in common]) > 1.5 * np.mean([seen.count(n) for n in rare])


def test_captions_say_hypernyms_now_and_then_and_never_count_them_as_wrong() -> None:
    scenes = training_scenes(np.random.default_rng(4), replace(PLAIN, batch=200))
    said, also = targets_of(scenes, np.random.default_rng(5))
    assert torch.allclose(said.sum(1), torch.ones(200)) and not (also & (said > 0)).any()
    start = len(words.things()) + len(words.stuff())
    assert 5 < int((said[:, start:] > 0).any(1).sum()) < 40
    for row, scene in enumerate(scenes):
        true = {h for h, held in words.hypernyms().items() if scene.things[0].name in held}
        wrong = {columns()[i] for i in torch.nonzero(~also[row] & (said[row] == 0))[:, 0].tolist()}
        assert not true & wrong


def test_every_word_is_one_token() -> None:
    merges = merges_for(spoken_words())
    assert len(merges) < 4000
    assert {"".join(pair) for pair in merges} >= {"giraffe</w>", "umbrella</w>", "four-legged</w>"}


def test_a_killed_training_ends_as_an_undisturbed_one(straight: tuple[Path, list[dict]], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(row: dict) -> None:
        raise Killed

    with pytest.raises(Killed):  # at the first line of the log, which is the last step: after one of fine-tuning's
        train_clip(tmp_path / "m", tmp_path / "w", TINY, kill)
    assert_the_same(tmp_path / "m", train_clip(tmp_path / "m", tmp_path / "w", TINY), straight)


def test_fine_tuning_comes_last_at_its_own_rate_on_a_larger_input(straight: tuple[Path, list[dict]]) -> None:
    assert [TINY.rate(step) for step in range(9)] == pytest.approx(
        [5e-4, *[1e-3] * 4, 5e-4, 2.5e-4, 1e-3 / 3, 5e-4 / 3]
    )
    visual = load_clip(straight[0]).model.visual
    assert visual.image_size == (96, 96) and len(visual.positional_embedding) == 1 + 12 * 12


def test_what_comes_out_keeps_some_of_the_weights_before_the_last_stage(
    straight: tuple[Path, list[dict]], tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    train_clip(before, tmp_path / "w", replace(TINY, keep=1.0))
    train_clip(after, tmp_path / "w", replace(TINY, keep=0.0))
    assert len([*tmp_path.glob("w/clip.*.pt")]) == 2, "another schedule begins anew, what was there stays"
    first, last, out = (load_file(f / "open_clip_model.safetensors") for f in (before, after, straight[0]))
    assert not torch.equal(first["visual.conv1.weight"], last["visual.conv1.weight"])
    for name, weight in out.items():
        mean = last[name].float().lerp(first[name].float(), 0.25)
        torch.testing.assert_close(weight.float(), mean, rtol=0, atol=1e-3)


def test_flat_drawings_have_no_rim_and_ink_of_any_colour() -> None:
    stage = replace(FULL, batch=60, plain=1.0, single=0.0, side=64, flat=0.5)
    scenes = training_scenes(np.random.default_rng(6), stage)
    flat = [scene for scene in scenes if scene.things[0].ink]
    assert 15 < len(flat) < 45 and all(s.things[0].ink in set(COLOURS) - {s.things[0].colour} for s in flat)
    round_ = [replace(scene, things=(replace(scene.things[0], ink=None),)) for scene in flat]
    bank = texture_bank(5, 2, 96)
    owners, wider = (paint(some, bank, 64, 64)[1] for some in (flat, round_))
    assert (owners >= 0).sum() < (wider >= 0).sum()
    scene = replace(flat[0], style="sticker", things=(replace(flat[0].things[0], colour="red", ink="blue"),))
    picture, owner = (part[0] for part in paint([scene], bank, 64, 64)[:2])
    colours = picture[:, owner == 0].T
    red, blue = ((colours - torch.tensor(COLOURS[c])).norm(dim=1) < 0.1 for c in ("red", "blue"))
    assert (red | blue).float().mean() > 0.5 and red.any() and blue.any()


@pytest.mark.parametrize(("style", "red"), [("sticker", 0.89), ("print", 0.6), ("chalk", 0.9)])
def test_a_bare_drawing_is_of_its_own_colour(style: str, red: float) -> None:
    scene = training_scenes(np.random.default_rng(6), replace(FULL, batch=1, plain=1.0, single=0.0))[0]
    scene = replace(scene, style=style, things=(replace(scene.things[0], colour="red", bare=True, ink=None),))
    picture, owner = (part[0] for part in paint([scene], texture_bank(5, 2, 96), 64, 64)[:2])
    median = picture[:, owner == 0].median(1).values
    assert median[0] > red - 0.1 and median[0] - median[1:].max() > 0.2


def test_positions_grow_as_a_picture_does() -> None:
    visual = torch.nn.Module()
    corner = torch.arange(16.0).view(4, 4)  # a slope down and across
    visual.positional_embedding = torch.nn.Parameter(torch.cat([torch.tensor([7.0]), corner.flatten()])[:, None])
    visual.image_size, visual.grid_size = (32, 32), (4, 4)
    grow(visual, 64)
    positions = visual.positional_embedding.detach()[:, 0]
    grown = positions[1:].view(8, 8)
    assert positions[0].item() == 7 and visual.grid_size == (8, 8) and visual.image_size == (64, 64)
    assert (grown.diff(dim=0) > 0).all() and (grown.diff(dim=1) > 0).all()
    assert grown.mean().item() == pytest.approx(corner.mean().item(), abs=1e-4)


def test_it_does_not_matter_who_paints(straight: tuple[Path, list[dict]], tmp_path: Path) -> None:
    log = train_clip(tmp_path / "m", tmp_path / "w", TINY, painters=2)
    assert_the_same(tmp_path / "m", log, straight)


def test_the_run_leaves_a_clip_that_names_masks_and_its_card(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(TINY)))))
    make_clip(tmp_path / "m", tmp_path / "w", tmp_path / "plan.yaml", scenes=2)
    clip = load_clip(tmp_path / "m")
    assert text_embeddings(clip, ["dog", "four-legged animal"]).shape == (2, 128)
    measured = json.loads((tmp_path / "m" / "measured.json").read_text())
    assert {r["method"] for r in measured["true masks"]} == {"mask class tokens", "masked image"}
    assert measured["single things"][0]["pictures"] == sum(len(words.drawn_by(a)) for a in words.ARTISTS)
    text = (tmp_path / "m" / "README.md").read_text()
    assert "Seed 3; " in text and "artist" in text and "text_steps: 2" in text
    assert len((tmp_path / "m" / "training.csv").read_text().splitlines()) == 2


def test_each_run_writes_its_curve_cost_and_card(tmp_path: Path) -> None:
    plan = yaml.safe_load((HERE / "pretraining.yaml").read_text())
    plan["backbone"] |= {"steps": 2, "batch": 4, "side": 32}
    plan["pictures"]["mask2former"] = 4
    plan["mask2former"]["training"] |= {"steps": 2, "batch": 2, "warmup_steps": 1}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    for name in ("backbone", "mask2former"):
        (tmp_path / name).mkdir()
        make_network(name, tmp_path / "out", tmp_path / name, tmp_path / "plan.yaml", pictures=2)
        text = (tmp_path / "out" / f"{name}.md").read_text()
        seed = plan[name].get("seed", plan["seed"])
        assert f"Seed {seed}; " in text and "minutes of one core" in text and "steps: 2" in text
        assert len((tmp_path / "out" / f"{name}.csv").read_text().splitlines()) > 1
    assert "AR100" in text


def test_base_networks_see_the_coco_mirrors_pictures_with_base_names_only() -> None:
    drawn = base_pictures(1, 12, variants=1)
    base, target = words.coco_split()
    assert {c.name for c in drawn.categories if c.isthing} == set(base) and not {
        c.name for c in drawn.categories
    } & set(target)
    assert sum(len(s.segments) for s in drawn) > 20
    alike = annotated_scene(np.random.default_rng([1, 9, 0]), recipe("coco"), texture_bank(3, 1, BANK_SIZE))
    assert np.array_equal(drawn[0].image, alike.image)  # one artist, one style (test_world.py)


def test_the_backbone_sees_all_artists_and_styles_and_is_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = training_scenes(np.random.default_rng(1), backbone_stage(1, 120, 32))
    assert {s.style for s in scenes} == set(STYLES) and all(len(s.things) == 1 for s in scenes)
    owner = {row: artist for artist, by in sprites().variants.items() for rows in by.values() for row in rows}
    assert {owner[s.things[0].row] for s in scenes} == set(words.ARTISTS)
    shape = BackboneConfig(stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), block="basic", normalization="group")
    settings = {"seed": 1, "steps": 2, "batch": 2, "side": 32, "lr": 1e-3, "checkpoint_every": 1}
    straight = train_backbone(tmp_path / "a", tmp_path / "wa", shape, **settings)

    def dies(rng: np.random.Generator, stage: Stage) -> list[Scene]:
        if [*tmp_path.glob("wb/backbone.*.pt")]:
            raise KeyboardInterrupt
        return training_scenes(rng, stage)

    monkeypatch.setattr(miniature.pretraining, "training_scenes", dies)
    with pytest.raises(KeyboardInterrupt):  # after the first step
        train_backbone(tmp_path / "b", tmp_path / "wb", shape, **settings)
    monkeypatch.undo()
    resumed = train_backbone(tmp_path / "b", tmp_path / "wb", shape, **settings)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in straight]
    one, other = ({k: v.clone() for k, v in load_file(tmp_path / x).items()} for x in "ab")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_single_scenes_hold_every_drawn_word() -> None:
    drawn = single_scenes(1, 1)
    assert {s.things[0].name for _, s in drawn} == set(words.things())
    assert len(drawn) == sum(len(words.drawn_by(a)) for a in words.ARTISTS)


@pytest.mark.parametrize("title", [q.title for q in questions()])
def test_questions_show_what_they_ask(title: str) -> None:
    question = next(q for q in questions() if q.title == title)
    for artist in words.ARTISTS:
        image, owner, answers = question_scene(question, 3, artist, "print")
        assert image.shape == (128, 160, 3) and owner.shape == (128, 160)
        assert answers and set(answers) <= set(question.answers)
        assert {*np.unique(owner).tolist()} <= {-1, *range(len(answers))}


def test_answers_have_intervals(straight: tuple[Path, list[dict]]) -> None:
    clip = load_clip(straight[0])
    model = MaskCLIP(clip, MaskCLIPVisualEncoder.from_open_clip(clip.model, rma_layers=()))
    rows = ask(model, questions()[2], range(4))
    assert [r["word"] for r in rows] == ["car", "truck", "van"]
    assert all(0 <= r["accuracy"] <= 100 and r["low"] < r["high"] and r["things"] > 1 for r in rows)


def test_shares_of_right_and_wrong_names() -> None:
    """(how sure, is the name asked for, is it the one given): a name that is not given is neither right nor wrong."""
    said = [(0.9, True, True), (0.4, True, True), (0.8, True, False), (0.0, True, True), (0.7, False, False)]
    said += [(0.3, False, False), (0.0, False, False), (0.2, False, False)]
    assert _shares(said, 0.0) == {"right": 50.0, "wrong": 75.0}
    assert _shares(said, 0.35) == {"right": 50.0, "wrong": 25.0}
    assert _shares(said, 0.5) == {"right": 25.0, "wrong": 25.0}
