"""Tasks: which words they ask for, which of them they keep, and which pictures they are asked about."""

import functools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from maskclip.data import (
    DATASETS,
    Annotation,
    Category,
    Dataset,
    DatasetEntry,
    open_coco_panoptic,
    open_dataset,
    open_semantic_folder,
    same_pictures,
    scored_on,
)
from maskclip.data.check import check_data
from maskclip.data.datasets import METRICS
from maskclip.evaluation.judgements import Judgements
from maskclip.evaluation.tasks import (
    TASKS,
    InstanceTask,
    PanopticTask,
    SemanticTask,
    SplitTask,
    evaluate,
    judge,
    own_ids,
    tasks_of,
)
from maskclip.model.clip import load_clip
from maskclip.model.pipeline import MaskCLIP, NamedMasks, SegmentedImage
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals, ground_truth_proposals
from maskclip.settings import Evaluation
from miniature.datasets import write_world
from study.params import deviations, load_study
from study.run import Run

EVALUATION = Evaluation(limit=None, object_mask_threshold=0.3, overlap_threshold=0.5, top_k=10, objectness_power=0.0)
PANOPTIC = [Category(0, "wall", False), Category(4, "airplane", True), Category(7, "windowpane", True)]


def toy_set(categories: list[Category], image_ids: tuple = (), source: str = "toy") -> Dataset:
    return Dataset(
        "toy", categories, image_ids, lambda _: np.zeros((4, 4, 3), np.uint8), lambda i: Annotation(i, (4, 4)),
        lambda _: [], Path(source),
    )  # fmt: skip


def instance_set(*categories: Category) -> Dataset:
    return toy_set(list(categories), (1,))


def test_another_sets_categories_are_known_by_their_ids():
    """As ADE20K's two files, which call one class windowpane and `window `."""
    dataset = instance_set(Category(7, "window ", True), Category(4, "plane", True))
    task = InstanceTask(dataset, PANOPTIC)
    assert task.names == ["wall", "airplane", "windowpane"]
    logits = torch.full((3, 4, 4), 5.0)
    task.add(task.judge(lambda names: NamedMasks(torch.eye(len(names)), logits, (4, 4)), 1, EVALUATION))
    best = [result["category_id"] for result in task.results if result["score"] > 0.9]
    assert sorted(best) == [4, 7]


@pytest.mark.parametrize("lost", [Category(0, "wall", True), Category(9, "bed", True)])
def test_ids_that_do_not_fit_are_one_sentence(lost: Category):
    with pytest.raises(ValueError, match=f"'{lost.name}' has the id {lost.id}, which is no thing"):
        InstanceTask(instance_set(lost), PANOPTIC)


def test_semantic_words_are_another_sets_of_the_same_ids():
    """As ADE20K's "building, edifice", which its panoptic file calls "building"."""
    full = [Category(0, "wall", False), Category(1, "building, edifice", False)]
    dataset = toy_set(full)
    short = [Category(0, "wall", False), Category(1, "building", False)]
    assert SemanticTask(dataset, short).names == ["wall", "building"]
    assert SemanticTask(dataset).names == ["wall", "building, edifice"]
    with pytest.raises(ValueError, match="ids are not those of the panoptic annotation"):
        SemanticTask(dataset, short[::-1])


def test_words_choose_among_the_sets_own_names():
    dataset = instance_set(Category(3, "cat", True), Category(5, "dog", True))
    assert InstanceTask(dataset).names == ["cat", "dog"]
    assert InstanceTask(dataset, dataset.categories[1:]).names == ["dog"]
    with pytest.raises(ValueError, match="toy has no base and target categories"):
        SplitTask(dataset)


def test_sets_of_the_same_picture_files_are_run_as_one(tmp_path: Path):
    """As the mini world's A-150 and A-847; ADE20K's own have equal names, but not equal files."""
    sizes = {"a150": [3, 4], "a847": [3, 4], "p59": [3], "lvis": [3, 5]}
    for name, lengths in sizes.items():
        (tmp_path / name).mkdir()
        for index, length in enumerate(lengths):
            (tmp_path / name / f"{index}.jpg").write_bytes(bytes(length))
    sets = {
        name: Dataset(
            name, [], range(len(lengths)), None, None, lambda i, n=name: [tmp_path / n / f"{i}.jpg"], tmp_path
        )
        for name, lengths in sizes.items()
    }

    def grouped(*names):
        return [[dataset.name for dataset in group] for group in same_pictures(sets[name] for name in names)]

    assert grouped("a150", "a847", "p59", "lvis") == [["a150", "a847"], ["p59"], ["lvis"]]
    (tmp_path / "a847" / "1.jpg").unlink()  # whoever reads it says so
    assert grouped("a847", "a150") == [["a847"], ["a150"]]


@pytest.fixture
def moon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An imaginary data set, whose pictures lie in folders with repeated names, and its one entry in the table."""
    entry = DatasetEntry("moon", open_coco_panoptic, "moon", ("set.json", "masks", "pictures"), task="panoptic")
    monkeypatch.setitem(DATASETS, "moon", entry)
    write_set(tmp_path / "moon", ["cam1/0001.png", "cam2/0001.png", "cam1/0002.png"])
    return tmp_path


def write_set(folder: Path, pictures: list[str], first_id: int = 1) -> None:
    """A panoptic set: each picture shows a thing of another size on a wall."""
    images, annotations = [], []
    for number, picture in enumerate(pictures, first_id):
        ids = np.full((8, 10), 1, np.uint8)
        ids[: ord(picture[3]) + ord(picture[8]) - 96, 1:5] = 2
        for kind, pixels in (("pictures", np.dstack([ids] * 3) * 100), ("masks", np.dstack([ids, 0 * ids, 0 * ids]))):
            (folder / kind / picture).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / picture)
        segments = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 4 + 3 * (number % 2)}]
        images.append({"id": number, "file_name": picture, "height": 8, "width": 10})
        annotations.append({"image_id": number, "file_name": picture, "segments_info": segments})
    kinds = [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in PANOPTIC]
    content = {"images": images, "annotations": annotations, "categories": kinds}
    (folder / "set.json").write_text(json.dumps(content))


class Perfect:
    """In place of MaskCLIP: what it is given as proposals are the true masks and classes."""

    clip = SimpleNamespace(device=torch.device("cpu"))

    def embed(self, image: np.ndarray, truth: Annotation) -> SegmentedImage:
        masks = ground_truth_proposals(truth)
        known = [segment.category for segment in truth.segments if not segment.iscrowd]
        known = known or np.unique(truth.semantic[truth.semantic >= 0]).tolist()
        return SegmentedImage(torch.eye(1300)[known], masks.mask_logits, masks.scores, image.shape[:2])

    def name(self, masks: SegmentedImage, names: list[str], **_: object) -> NamedMasks:
        return NamedMasks(masks.embeddings[:, : len(names)], masks.mask_logits, masks.size)


class Truth(dict):
    """Annotations by image id, read when asked for, as the study's ground-truth proposals."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __missing__(self, image_id: int | str) -> Annotation:
        return self.dataset.annotation(image_id)


def scores_of(pictures: str, root: Path) -> dict[str, dict[str, float]]:
    """What a stage does: each data set opened once, each picture named by perfect masks, all tasks scored."""
    open_set = functools.cache(lambda name: open_dataset(name, root))
    dataset, tasks = open_set(pictures), tasks_of(pictures, open_set)
    evaluate(Perfect(), dataset, Truth(dataset), list(tasks.values()), EVALUATION)
    return {name: task.compute() for name, task in tasks.items()}


def test_what_a_profile_is_without_is_never_opened(monkeypatch: pytest.MonkeyPatch):
    """P-459 annotates P-59's pictures."""
    opened: list[str] = []
    monkeypatch.setitem(TASKS, "semantic", lambda dataset, *words: dataset)
    open_set: Any = opened.append
    assert list(tasks_of("p59", open_set, ("p459",))) == opened == ["p59"]
    own = object.__new__(Run)
    own.study = load_study("paper", Path(__file__).parent.parent / "configs")
    own.study.data.without.extend(["p459", "a847"])
    assert own.there(["coco_train", "a150", "a847", "p59", "p459"]) == ["coco_train", "a150", "p59"]
    assert "data.without has p459, which the paper tests" in deviations(own.study)


def test_a_new_data_set_is_one_entry(moon: Path, monkeypatch: pytest.MonkeyPatch):
    scores = scores_of("moon", moon)
    assert list(scores) == ["moon"] and scores["moon"]["PQ"] == scores["moon"]["PQst"] == 100
    (moon / "labels").mkdir()
    for picture in (moon / "moon/masks/cam1").iterdir():
        Image.fromarray(np.asarray(Image.open(picture))[..., 0] - 1).save(moon / "labels" / picture.name)
    (moon / "names.json").write_text(json.dumps([{"id": i, "name": name} for i, name in ((0, "Wand"), (1, "Ding"))]))
    files = ("moon/pictures/cam1", "labels", "names.json")
    entry = DatasetEntry("moon_labels", open_semantic_folder, "", files, task="semantic", pictures="moon")
    monkeypatch.setitem(DATASETS, "moon_labels", entry)
    with pytest.raises(ValueError, match="moon_labels annotates none of the pictures of moon"):
        scores_of("moon", moon)  # cam1/0001.png and 0001.png are not the same
    assert [entry.name for entry in scored_on("moon")] == ["moon", "moon_labels"]


def test_the_set_of_the_docs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")
    content, entry = (text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("json", "python"))
    for kind in ("masks", "pictures"):
        (tmp_path / "streets" / kind).mkdir(parents=True)
    (tmp_path / "streets/set.json").write_text(content)
    ids = np.zeros((480, 640, 3), np.uint8)
    ids[:200], ids[200:400] = (1, 0, 0), (2, 1, 0)
    Image.fromarray(ids).save(tmp_path / "streets/masks/a.png")
    Image.fromarray(ids).save(tmp_path / "streets/pictures/a.png")
    monkeypatch.setitem(DATASETS, "streets", eval(entry))
    assert scores_of("streets", tmp_path)["streets"]["PQ"] == 100
    (found,) = check_data(tmp_path, ["streets"], thorough=True)
    assert not found.faults and found.categories == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ("set.json", "masks")}, "data set 'moon': missing a required argument: 'images' for open_coco"),
        ({"files": ("set.json", "", "pictures")}, "data set 'moon': files must be a tuple of places"),
        ({"files": "panoptic.json"}, "data set 'moon': files must be a tuple of places, not 'panoptic.json'"),
        ({"files": ()}, "data set 'moon': missing a required argument"),
        ({"reader": None}, "data set 'moon' needs a name, a reader"),
        ({"options": {"only": ["cat"]}}, "data set 'moon': .* unexpected keyword argument 'only'"),
        ({"task": "panoptics"}, "data set 'moon' .* a task of panoptic, semantic, instances, split or none"),
        ({"name": ""}, "data set '' needs a name"),
    ],
)
def test_half_filled_entries(moon: Path, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(DATASETS["moon"], **change)


@pytest.mark.parametrize("field", ["pictures", "words"])
def test_entries_that_speak_of_unknown_sets(moon: Path, monkeypatch: pytest.MonkeyPatch, field: str):
    monkeypatch.setitem(DATASETS, "moon", replace(DATASETS["moon"], **{field: "mars"}))
    for call in (lambda: open_dataset("moon", moon), lambda: scored_on("a150")):
        with pytest.raises(ValueError, match="data set 'moon' speaks of 'mars', which is not in the table"):
            call()
    with pytest.raises(ValueError, match=r"there are no test pictures 'coco_train'; there are .*a150, .*coco_val"):
        monkeypatch.delitem(DATASETS, "moon")
        scored_on("coco_train")


def test_names_in_several_folders_are_several_pictures(moon: Path):
    """Known by their stems, the last of them would win."""
    dataset = open_dataset("moon", moon)
    assert own_ids(dataset, dataset) == {1: 1, 2: 2, 3: 3}
    write_set(moon / "again", ["cam1/0002.png", "cam2/0001.png", "cam1/0001.png"], first_id=7)
    again = open_coco_panoptic(moon / "again/set.json", moon / "again/masks", moon / "moon/pictures")
    assert own_ids(again, dataset) == {1: 9, 2: 8, 3: 7}
    assert [again.picture_name(i) for i in again.first(2).image_ids] == ["cam1/0001.png", "cam1/0002.png"]
    assert [dataset.picture_name(i) for i in dataset.first(2).image_ids] == ["cam1/0001.png", "cam1/0002.png"]


def test_two_images_of_one_picture_are_refused_by_name(moon: Path):
    write_set(moon / "twins", ["cam1/0001.png", "cam1/0001.png"])
    twins = open_coco_panoptic(moon / "twins/set.json", moon / "twins/masks", moon / "moon/pictures")
    with pytest.raises(ValueError, match=r"set.json: images 1 and 2 are both of cam1/0001.png"):
        own_ids(twins, open_dataset("moon", moon))


def test_every_file_is_opened_once_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_world(tmp_path, seed=1, coco_train=1, coco_val=2, ade=2, pascal=2, lvis=2)
    opened: Counter[Path] = Counter()

    def counted(function):
        def call(path, *arguments, **options):
            opened[Path(path)] += 1
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr(PIL.Image, "open", counted(PIL.Image.open))
    monkeypatch.setattr(Path, "read_text", counted(Path.read_text))
    for pictures in ("a150", "p59", "lvis", "coco_val"):
        scores = scores_of(pictures, tmp_path)
        tasks = {entry.results or entry.name: entry.task for entry in scored_on(pictures)}
        assert {name: sorted(values) for name, values in scores.items()} == {
            name: sorted(METRICS[task]) for name, task in tasks.items()
        }
        assert all(np.isfinite(value) for values in scores.values() for value in list(values.values())[:1])
        assert set(opened.values()) == {1}, {path: count for path, count in opened.items() if count > 1}
        kinds = Counter(path.suffix for path in opened)
        assert kinds[".jpg"] == 2  # both pictures
        assert kinds[".json"] == {"a150": 3, "p59": 2, "lvis": 1, "coco_val": 3}[pictures]
        opened.clear()


def test_mixed_precision_changes_little_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    dataset = toy_set([Category(0, "cow", True), Category(1, "sky", False)], image_ids=(1,))
    clip = load_clip(Path(__file__).parent.parent / "models" / "mini_clip")
    model = MaskCLIP(clip, MaskCLIPVisualEncoder.from_open_clip(clip.model, (2, 4)))
    proposals = {1: Proposals(10 * torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(3))}
    seen, name = [], model.name
    monkeypatch.setattr(model, "name", lambda masks, *a, **k: seen.append(masks.embeddings) or name(masks, *a, **k))
    task = PanopticTask(dataset)
    monkeypatch.setattr(task, "judge", lambda named, *_: named(dataset.names).panoptic([True, False]))
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for precision in ("float32", "tf32", "bf16", "fp16"):
        judge(model, dataset, proposals, [task], replace(EVALUATION, precision=precision), ("{}",), Judgements())
    exact, tf32, *halves = (normalize(one.float(), dim=-1) for one in seen)
    assert torch.equal(exact, tf32), "on a CPU"
    apart = [(1 - (half * exact).sum(-1)).abs().max().item() for half in halves]
    assert apart[1] < apart[0] < 1e-3 and not any(torch.equal(half, exact) for half in halves), apart
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert not torch.is_autocast_enabled("cpu")
