"""The chain on a folder of real format, with tiny random networks: files, ids, sizes and numbers must be right."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image

from maskclip.data import open_coco_panoptic, open_coco_sample
from maskclip.evaluation.metrics import PanopticQuality, true_panoptic
from maskclip.evaluation.tasks import InstanceTask
from maskclip.model.clip import Clip
from maskclip.model.pipeline import MaskCLIP
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals
from maskclip.settings import Evaluation
from study import sample

TEXT = {"context_length": 4, "vocab_size": 40, "width": 8, "heads": 1, "layers": 1}


def write_folder(folder):
    """Two photographs of different sizes, things, stuff, a crowd and void; category ids with gaps."""
    (folder / "input_images").mkdir(parents=True)
    (folder / "panoptic_examples").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id, (h, w) in ((142238, (30, 44)), (439180, (36, 28))):
        ids = np.zeros((h, w), np.int64)
        ids[: h // 2, 2:], ids[h // 2 :], ids[5:15, 8:20], ids[-8:, -9:] = 70000, 300, 3937500, 12
        kinds = {70000: (187, 0), 300: (193, 0), 3937500: (1, 0), 12: (1, 1)}
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / "panoptic_examples" / f"{image_id:012d}.png")
        picture = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "input_images" / f"{image_id:012d}.jpg")
        images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": h, "width": w})
        infos = [
            {"id": i, "category_id": c, "iscrowd": crowd, "area": int((ids == i).sum()), "bbox": [0, 0, 1, 1]}
            for i, (c, crowd) in kinds.items()
        ]
        annotations.append({"image_id": image_id, "file_name": f"{image_id:012d}.png", "segments_info": infos})
    names = {1: ("person", 1), 187: ("sky", 0), 193: ("grass", 0), 200: ("rug", 0)}
    categories = [{"id": i, "name": n, "isthing": t} for i, (n, t) in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic_examples.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def tiny_run(tmp_path, monkeypatch):
    """What `run_sample` asks of a Run, with a random CLIP of 16 pixels and random proposals."""
    torch.manual_seed(0)
    vision = {"image_size": 16, "patch_size": 4, "width": 16, "head_width": 8, "layers": 2}
    network = CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT).eval()
    clip = Clip(
        network, lambda names: torch.tensor([[len(n), ord(n[0]) % 32, 3, 39] for n in names]), 16,
        torch.zeros(3, 1, 1), torch.ones(3, 1, 1), "tiny",
    )  # fmt: skip
    model = MaskCLIP(clip, MaskCLIPVisualEncoder.from_open_clip(network, rma_layers=()))
    generator = torch.Generator().manual_seed(1)

    def random_proposals(images):
        return [
            Proposals(4 * torch.randn(6, 5, 7, generator=generator), torch.rand(6, generator=generator)) for _ in images
        ]

    monkeypatch.setattr(sample, "proposal_source", lambda run, network: random_proposals)
    evaluation = Evaluation(None, 0.0, 0.2, 20, 0.0)
    study = SimpleNamespace(evaluation=evaluation, clip=SimpleNamespace(model="models/mini_clip"))
    thresholds = {"score_threshold": 0.0, "overlap_threshold": 0.2}
    return SimpleNamespace(
        folder=tmp_path / "runs", model=lambda method: model, study=study, seed=0, thresholds=thresholds
    )


def test_the_chain_end_to_end(tmp_path, tiny_run, capsys):
    folder, out = write_folder(tmp_path / "photos"), tmp_path / "out"
    table = sample.run_sample(folder, out, tiny_run).set_index("masks")
    assert "names are not" in capsys.readouterr().out
    perfect = table.loc["ground truth, true words"]
    assert perfect[["PQ", "SQ", "RQ", "PQth", "PQst", "AP", "AP75"]].tolist() == [100.0] * 7
    truth = open_coco_sample(folder)
    for kind, name in [("ground truth", "ground_truth"), ("mask2former", "mask2former")]:
        if kind == "ground truth":  # ground_truth.json is the annotation itself, not the named ground-truth masks
            name = "ground_truth_named"
        written = open_coco_panoptic(out / f"{name}.json", out / name, folder / "input_images_png")
        metric = PanopticQuality(truth.categories)
        for image_id, original in zip(truth.image_ids, truth, strict=True):
            entry = next(
                a for a in json.loads((out / f"{name}.json").read_text())["annotations"] if a["image_id"] == image_id
            )
            rgb = np.asarray(Image.open(out / name / entry["file_name"])).astype(int)
            ids = rgb @ [1, 256, 65536]
            assert ids.shape == original.size
            index = {c.id: i for i, c in enumerate(written.categories)}
            metric.update(
                ids, [{"id": s["id"], "category": index[s["category_id"]]} for s in entry["segments_info"]], original
            )
        assert metric.compute()["PQ"] == pytest.approx(table.loc[kind, "PQ"], nan_ok=True)
    assert {c["id"] for c in json.loads((out / "ground_truth.json").read_text())["categories"]} == {1, 187, 193, 200}
    assert Image.open(out / "comparison.png").size[0] == 2000 and (out / "metrics.csv").is_file()


def test_stuff_takes_no_place_among_the_best_instances(tmp_path):
    dataset = open_coco_sample(write_folder(tmp_path))
    task = InstanceTask(sample.things_as_instances(dataset), dataset.categories)
    assert [name for name, kept in zip(task.names, task.kept) if kept] == [
        category.name for category in dataset.categories if category.isthing
    ]
    assert len(task.names) > sum(task.kept) > 0, "all are asked for"


def test_things_become_instances(tmp_path):
    dataset = sample.things_as_instances(open_coco_sample(write_folder(tmp_path)))
    annotations = dataset.instances["annotations"]
    assert [(a["category_id"], a["iscrowd"], a["area"]) for a in annotations[:2]] == [(1, 0, 120), (1, 1, 72)]
    assert len(annotations) == 4
    ids, segments = true_panoptic(dataset[0])
    assert (ids == 0).sum() == 2 * 15 and [s["iscrowd"] for s in segments] == [False, False, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "photos lacks panoptic_examples.json"),
        ({"annotations": []}, "panoptic_examples.json annotates no picture"),
        ({"images": [{"id": "../../escape", "file_name": "a.jpg"}]}, "without slashes"),
        (
            {"annotations": [{"image_id": 142238, "file_name": "a", "segments_info": [{"id": 1}]}]},
            "no category_id",
        ),
    ],
)
def test_a_broken_folder_is_one_sentence(tmp_path, tiny_run, monkeypatch, change, message):
    if change is not None:
        path = write_folder(tmp_path / "photos") / "panoptic_examples.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.setattr(sample, "Run", lambda *_: tiny_run)
    monkeypatch.setattr("sys.argv", ["sample", str(tmp_path / "photos"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        sample.main()
    assert str(stopped.value).startswith("error: ") and message in str(stopped.value)
    assert not (tmp_path / "out").exists()
