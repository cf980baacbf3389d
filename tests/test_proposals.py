"""Proposal sources, their training and their quality, on toy scenes of coloured ellipses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from resuming import whole_and_resumed
from safetensors.torch import save_file
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor
from transformers import ResNetBackbone

from maskclip.data import read_image
from maskclip.evaluation.proposal_quality import ProposalQuality, match_greedily
from maskclip.proposals import Proposals, backbone, ground_truth_proposals, load, load_source
from maskclip.proposals.backbone import FrozenBatchNorm2d
from maskclip.proposals.base import as_seen
from maskclip.proposals.mask2former import Mask2FormerSource, build_mask2former
from maskclip.proposals.mask_rcnn import MaskRCNNSource, boxes_of_masks, build_mask_rcnn, paste_masks
from maskclip.settings import BackboneConfig, Mask2FormerConfig, MaskRCNNConfig, TrainingConfig
from maskclip.training.augmentation import StepExamples, augment
from maskclip.training.proposal_networks import mask2former_loss, mask_rcnn_loss, train_proposals

BACKBONE = BackboneConfig(8, (8, 16, 16, 32), (1, 1, 1, 1), "basic", "group")
TRAINING = TrainingConfig(
    steps=6, batch=2, learning_rate=1e-3, backbone_factor=1.0, crop=64, scale=(0.5, 1.5), checkpoint_every=2,
    color_jitter=0.2, gradient_norm=1.0,
)  # fmt: skip
MASK2FORMER = Mask2FormerConfig(
    BACKBONE, TRAINING, queries=6, decoder_layers=2, encoder_layers=1, hidden_dim=32, feedforward_dim=32,
    encoder_feedforward_dim=32, heads=4, points=64, short_side=64, long_side=128,
)  # fmt: skip
MASK_RCNN = MaskRCNNConfig(
    BACKBONE, dataclasses.replace(TRAINING, optimizer="sgd", crop=0), fpn_dim=16, head_dim=32, mask_head_layers=1,
    anchor_sizes=(8, 16, 32, 64, 128), rpn_proposals_train=50, rpn_proposals=50, rpn_samples=16, box_samples=16,
    score_threshold=0.0, detections=10, train_short_sides=(48, 64), short_side=64, long_side=128, mask_stride=1,
)  # fmt: skip
LONG = dataclasses.replace(MASK2FORMER, training=dataclasses.replace(TRAINING, steps=12, checkpoint_every=3))
NETWORKS = {"mask2former": MASK2FORMER, "mask_rcnn": MASK_RCNN}


@dataclass
class Category:
    id: int
    name: str
    isthing: bool


@dataclass
class Segment:
    category: int
    mask: np.ndarray
    iscrowd: bool = False


@dataclass
class Sample:
    image_id: int
    image: np.ndarray
    segments: list[Segment]
    semantic: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[:2]


@dataclass
class ToyScenes:
    """Two-coloured ground, a few ellipses: disjoint segments that cover the image."""

    count: int = 8
    size: tuple[int, int] = (64, 80)
    seed: int = 0
    name: str = "toy"
    categories: list[Category] = field(
        default_factory=lambda: [Category(0, "disc", True), Category(1, "sky", False), Category(2, "sand", False)]
    )

    @property
    def image_ids(self) -> list[int]:
        return [100 + index for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        return f"{self.count}-{self.size}-{self.seed}"

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        rows, columns = np.mgrid[: self.size[0], : self.size[1]]
        ids = (rows > self.size[0] * rng.uniform(0.3, 0.7)).astype(int)
        classes = [1, 2]
        for _ in range(rng.integers(1, 4)):
            y, x = rng.uniform(0, self.size[0]), rng.uniform(0, self.size[1])
            ids[(rows - y) ** 2 + (columns - x) ** 2 < rng.uniform(6, 18) ** 2] = len(classes)
            classes.append(0)
        colors = rng.uniform(0, 255, (len(classes), 3))
        image = np.clip(colors[ids] + rng.normal(0, 8, (*self.size, 3)), 0, 255).astype(np.uint8)
        segments = [Segment(label, ids == number) for number, label in enumerate(classes) if (ids == number).any()]
        return Sample(self.image_ids[index], image, segments)


def sources() -> dict[str, object]:
    torch.manual_seed(0)
    return {
        "mask2former": Mask2FormerSource(build_mask2former(MASK2FORMER), MASK2FORMER),
        "mask_rcnn": MaskRCNNSource(build_mask_rcnn(MASK_RCNN), MASK_RCNN),
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_any_sizes_and_each_image_alone(name):
    source = sources()[name]
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (64, 80), (50, 300), (64, 92), (301, 40), (64, 80)]  # 80 and 92 wide are both padded to 96
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    together = source(images)
    assert len(together) == len(images)
    for image, proposals in zip(images, together):
        (alone,) = source([image])
        torch.testing.assert_close(proposals.mask_logits, alone.mask_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(proposals.scores, alone.scores, atol=1e-5, rtol=1e-4)
        assert ((proposals.scores >= 0) & (proposals.scores <= 1)).all()
        assert proposals.masks(image.shape[:2]).shape == (len(proposals), *image.shape[:2])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.uint16), "cat.jpg"]
)
def test_what_is_no_rgb_image_is_refused(name, image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        sources()[name]([image])


def test_odd_picture_files_give_the_proposals_of_their_plain_twins(tmp_path):
    source = sources()["mask2former"]
    rgb = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    turned = Image.Exif()
    turned[0x0112] = 6  # shown after a quarter turn clockwise
    odd = {
        "grey16.png": (Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, 2), {}),
        "cmyk.tif": (Image.fromarray(rgb).convert("CMYK"), rgb, {}),
        "turned.png": (Image.fromarray(rgb), np.rot90(rgb, -1), {"exif": turned}),
        "one.png": (Image.fromarray(rgb[:1, :1]), rgb[:1, :1], {}),
    }
    for name, (picture, plain, options) in odd.items():
        picture.save(tmp_path / name, **options)
        (found,) = source([read_image(tmp_path / name)])
        (wanted,) = source([np.ascontiguousarray(plain)])
        torch.testing.assert_close(found.mask_logits, wanted.mask_logits, atol=1e-4, rtol=1e-4)


def test_no_proposals_is_an_answer():
    source = sources()["mask_rcnn"]
    source.model.roi_heads.score_thresh = 1.1
    (proposals,) = source([np.zeros((64, 80, 3), np.uint8)])
    assert len(proposals) == 0 and proposals.masks((64, 80)).shape == (0, 64, 80)


def test_pasting_is_bilinear_resizing_inside_the_box():
    masks = torch.rand(2, 28, 28)
    boxes = torch.tensor([[4.0, 8.0, 32.0, 36.0], [10.0, 3.0, 38.0, 59.0]])  # 28 x 28 and 28 x 56 pixels
    pasted = paste_masks(masks, boxes, (64, 48))
    torch.testing.assert_close(pasted[0, 8:36, 4:32], masks[0], atol=1e-5, rtol=0)
    resized = functional.interpolate(masks[1:, None], size=(56, 28), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(pasted[1, 5:57, 10:38], resized[2:-2], atol=1e-5, rtol=0)
    pasted[0, 7:37, 3:33] = pasted[1, 2:60, 9:39] = 0
    assert pasted.max() == 0
    assert paste_masks(masks[:0], boxes[:0], (64, 48)).shape == (0, 64, 48)


def test_boxes_of_masks_equal_torchvisions():
    from torchvision.ops import masks_to_boxes

    masks = torch.rand(20, 17, 23) > 0.97
    masks = masks[masks.any((1, 2))]
    expected = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(boxes_of_masks(masks), expected)


@pytest.mark.parametrize("segments", [0, 3, 9])  # 9 are more than the 6 queries
def test_losses_with_no_and_with_too_many_segments(segments):
    torch.manual_seed(0)
    images = [torch.rand(3, 64, 64) * 255 for _ in range(2)]
    masks = [torch.zeros(count, 64, 64) for count in (segments, 1)]
    for group in masks:
        for index in range(len(group)):
            group[index, 6 * index : 6 * index + 12, 10:40] = 1
    classes = [torch.zeros(len(group), dtype=torch.int64) for group in masks]
    loss = mask2former_loss(build_mask2former(MASK2FORMER), images, masks, classes)
    loss.backward()
    assert torch.isfinite(loss)
    model = build_mask_rcnn(MASK_RCNN).train()
    total = torch.stack(list(mask_rcnn_loss(model, images, masks, classes).values())).sum()
    total.backward()
    assert torch.isfinite(total)


def test_large_scale_jittering_moves_image_and_masks_alike():
    config = dataclasses.replace(TRAINING, color_jitter=0.0)
    scenes = ToyScenes(size=(90, 70))
    for index in range(len(scenes)):
        sample = scenes[index]
        for number, segment in enumerate(sample.segments):  # paint each segment in its own flat grey
            sample.image[segment.mask] = 40 + 20 * number
        example = augment(sample, config, np.random.default_rng(index))
        assert example.image.shape == (3, 64, 64) and example.masks.shape[1:] == (64, 64)
        assert example.masks.sum(0).max() <= 1 and example.masks.flatten(1).sum(1).min() > 0
        for mask in example.masks.bool():
            values = example.image[0][mask]
            assert (values - values.median()).abs().median() < 2  # one colour, but for the resampled rim


def test_examples_follow_from_seed_and_number_alone():
    scenes = ToyScenes()
    forward = [StepExamples(scenes, TRAINING, 3)[number] for number in range(12)]
    one = StepExamples(scenes, TRAINING, 3)
    for number in reversed(range(12)):
        torch.testing.assert_close(one[number].image, forward[number].image, atol=0, rtol=0)
    other = StepExamples(scenes, TRAINING, 4)
    assert not torch.equal(other[0].image, forward[0].image)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_killed_and_resumed_is_bit_equal(name, tmp_path, monkeypatch):
    scenes = ToyScenes()
    whole_and_resumed(name, scenes, NETWORKS[name], tmp_path, monkeypatch, step=5)
    source = load_source(tmp_path / "cut")
    assert len(source([scenes[0].image])) == 1


def test_a_damaged_training_is_trained_again(tmp_path, capsys):
    config = dataclasses.replace(MASK2FORMER, training=dataclasses.replace(TRAINING, steps=1))
    out = train_proposals("mask2former", ToyScenes(), config, tmp_path, device="cpu", progress=False)
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    flipped = bytearray(whole["network.safetensors"])
    flipped[-9] ^= 1
    for name, damaged, said in [
        ("network.safetensors", whole["network.safetensors"][:5000], "not a whole safetensors file"),
        ("network.safetensors", bytes(flipped), "is not what .*record.json was written for"),
        ("curves.csv", whole["curves.csv"][:20], None),
        *(("record.json", text, "cut off or damaged") for text in (b"", whole["record.json"][:99], b"[]", b"\xff")),
        ("record.json", b'{"network": "mask2former"}', "record of .* is damaged"),
    ]:
        (out / name).write_bytes(damaged)
        if said:
            with pytest.raises(ValueError, match=said):
                load_source(out)
        train_proposals("mask2former", ToyScenes(), config, out, device="cpu", progress=False)
        assert {file.name: file.read_bytes() for file in out.iterdir()} == whole
        assert "damaged or of another training; what was there is kept as" in capsys.readouterr().out
        aside = max(tmp_path.parent.glob(f"{tmp_path.name}.damaged*"), key=lambda place: place.stat().st_ctime_ns)
        assert (aside / name).read_bytes() == damaged


@pytest.mark.parametrize(
    ("network", "inference"),
    [("mask2former", {"short_side": 32, "long_side": 64}), ("mask_rcnn", {"short_side": 32, "detections": 3})],
)
def test_how_a_network_proposes_does_not_train_it_anew(network, inference, tmp_path):
    def train(**changes) -> tuple[int, dict, int]:
        """When the weights were written, the record, and how high the proposed masks are."""
        config = dataclasses.replace(NETWORKS[network], **changes)
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=1))
        out = train_proposals(network, ToyScenes(), config, tmp_path / "net", device="cpu", progress=False)
        (proposals,) = load_source(out)([ToyScenes()[0].image])
        record = json.loads((out / "record.json").read_text())
        return (out / "network.safetensors").stat().st_mtime_ns, record, proposals.mask_logits.shape[1]

    (written, record, high), (later, told, low) = train(), train(**inference)
    assert later == written and told["config"] == record["config"] | inference
    assert {**told, "config": None} == {**record, "config": None}
    assert low < high  # it proposes as it is told now
    written, *_ = train(**{"points": 32} if network == "mask2former" else {"long_side": 96})
    assert written != later and (tmp_path / f"net.{record['hash']}").is_dir()


def test_pictures_of_a_data_set_are_seen_at_their_own_size(tmp_path):
    def train(**changes) -> Path:
        config = dataclasses.replace(MASK2FORMER, training=dataclasses.replace(TRAINING, steps=0), **changes)
        return train_proposals("mask2former", ToyScenes(), config, tmp_path, device="cpu", progress=False)

    def high(pictures: str = "") -> int:
        return load_source(tmp_path, pictures=pictures)([ToyScenes()[0].image])[0].mask_logits.shape[1]

    train()
    weights = (tmp_path / "network.safetensors").stat().st_mtime_ns
    assert high() == high("toy") == 16
    train(test_sizes={"toy": (32, 128)})
    assert (high(), high("toy"), high("others")) == (16, 8, 16)
    assert (tmp_path / "network.safetensors").stat().st_mtime_ns == weights


def test_kill_minus_nine(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_proposals as t, torch; torch.set_num_threads(1); "
        "t.train_proposals('mask2former', t.ToyScenes(), t.LONG, sys.argv[2], 0, device='cpu', progress=False)"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not (tmp_path / "killed" / "record.json").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("killed", "whole"):
            train_proposals("mask2former", ToyScenes(), LONG, tmp_path / name, 0, device="cpu", progress=False)
    finally:
        torch.set_num_threads(threads)
    weights = [(tmp_path / name / "network.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_training_learns_and_class_aware_heads_are_ignored(tmp_path):
    training = dataclasses.replace(TRAINING, steps=30, learning_rate=3e-3, schedule="cosine", checkpoint_every=100)
    config = dataclasses.replace(MASK2FORMER, training=training)
    train_proposals("mask2former", ToyScenes(), config, tmp_path / "a", class_aware=True, device="cpu", progress=False)
    losses = np.genfromtxt(tmp_path / "a" / "curves.csv", delimiter=",", names=True)["loss"]
    assert len(losses) == 30 and losses[-5:].mean() < 0.85 * losses[:5].mean()
    source = load_source(tmp_path / "a")
    assert source.model.class_predictor.out_features == 4  # three classes and none
    (proposals,) = source([ToyScenes()[0].image])
    assert proposals.scores.shape == (6,)


@pytest.mark.parametrize("name", NETWORKS)
def test_three_stages_for_small_pictures(name, tmp_path):
    backbone = dataclasses.replace(BACKBONE, widths=(8, 16, 16), depths=(1, 1, 1))
    config = dataclasses.replace(
        NETWORKS[name], backbone=backbone, training=dataclasses.replace(NETWORKS[name].training, steps=1)
    )
    if name == "mask_rcnn":
        config = dataclasses.replace(config, anchor_sizes=(8, 16, 32, 64))
    out = train_proposals(name, ToyScenes(), config, tmp_path, device="cpu", progress=False)
    (proposals,) = load_source(out)([ToyScenes()[0].image])
    assert proposals.mask_logits.shape[1:] == ((16, 20) if name == "mask2former" else (64, 80))


def test_bad_training_arguments(tmp_path):
    with pytest.raises(ValueError, match="no proposal network 'sam'"):
        train_proposals("sam", ToyScenes(), MASK2FORMER, tmp_path)
    with pytest.raises(ValueError, match="its own config"):
        train_proposals("mask_rcnn", ToyScenes(), MASK2FORMER, tmp_path)
    with pytest.raises(ValueError, match="no images"):
        train_proposals("mask2former", ToyScenes(count=0), MASK2FORMER, tmp_path)
    with pytest.raises(FileNotFoundError, match="no proposal network"):
        load_source(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no source 'gird': .*mask2former, mask_rcnn.* OWNER/NAME"):
        load_source("gird")  # at once, without asking a hub


def test_weights_cut_off_or_of_another_architecture(tmp_path):
    config = dataclasses.replace(MASK2FORMER, training=dataclasses.replace(TRAINING, steps=0))
    out = train_proposals("mask2former", ToyScenes(), config, tmp_path / "a", device="cpu", progress=False)
    weights = (out / "network.safetensors").read_bytes()
    (out / "network.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_source(out)
    other = dataclasses.replace(config, decoder_layers=3)
    other_out = train_proposals("mask2former", ToyScenes(), other, tmp_path / "b", device="cpu", progress=False)
    (out / "network.safetensors").write_bytes((other_out / "network.safetensors").read_bytes())
    with pytest.raises(ValueError, match="another architecture"):
        load_source(out)


def test_a_new_source_is_one_entry(monkeypatch):
    def quarters(images):
        """An imaginary source: the four quarters of every image."""
        logits = 10 * torch.eye(4).view(4, 2, 2) - 5
        return [Proposals(logits, torch.ones(4)) for _ in images]

    monkeypatch.setitem(load.SOURCES, "quarters", load.SourceKind("quarters", lambda device: quarters))
    (proposals,) = load_source("quarters")([ToyScenes()[0].image])
    assert proposals.masks((2, 2)).sum((1, 2)).tolist() == [1, 1, 1, 1]


def test_the_source_of_the_docs_is_one(monkeypatch):
    text = (Path(__file__).parent.parent / "docs/proposals.md").read_text(encoding="utf-8")
    exec(textwrap.dedent(text.split("```python\n")[1].split("```")[0]), found := {})
    monkeypatch.setitem(load.SOURCES, "grid", load.SourceKind("grid", found["grid"]))
    (proposals,) = load_source("grid")([ToyScenes()[0].image])
    assert proposals.masks((64, 64)).sum((1, 2)).min() > 0 and len(proposals) == 16


def test_a_new_network_is_one_entry(tmp_path, monkeypatch):
    """An imaginary network of one convolution with settings of its own, saved and loaded as all are."""

    @dataclass(frozen=True)
    class GridConfig:
        masks: int = 3
        start: str | None = None

    def source(network, config, classes):
        def propose(images):
            pixels = [torch.from_numpy(image).permute(2, 0, 1).float() for image in images]
            return [Proposals(network(one[None])[0], torch.ones(config.masks)) for one in pixels]

        return propose

    def build(config, classes):
        return torch.nn.Conv2d(3, config.masks, 1)

    monkeypatch.setitem(load.SOURCES, "grid", load.SourceKind("grid", source, GridConfig, build))
    assert load.network_of(GridConfig()) == "grid"
    network = load.build_network(GridConfig(5), 1)
    record = {"network": "grid", "classes": 1, "config": dataclasses.asdict(GridConfig(5))}
    save_file(network.state_dict(), tmp_path / "grid.safetensors", {"record": json.dumps(record)})
    (proposals,) = load_source(tmp_path / "grid.safetensors")([ToyScenes()[0].image])
    assert proposals.mask_logits.shape == (5, 64, 80)
    begun = load.build_network(GridConfig(5, str(tmp_path / "grid.safetensors")), 1)
    assert torch.equal(begun.weight, network.weight)


def test_unknown_sources_are_named(tmp_path):
    record = {"network": "sam", "classes": 1, "config": {}}
    save_file({"a": torch.ones(1)}, tmp_path / "sam.safetensors", {"record": json.dumps(record)})
    with pytest.raises(
        ValueError, match=r"sam\.safetensors is of the proposal network 'sam'; known are mask2former, mask_rcnn"
    ):
        load_source(tmp_path / "sam.safetensors")
    with pytest.raises(ValueError, match="there is no proposal network 'TrainingConfig'; known are"):
        load.build_network(TRAINING, 1)
    with pytest.raises(FileNotFoundError, match="mask_rcnn has to be trained; give the folder or file"):
        load_source("mask_rcnn")


@pytest.mark.parametrize(("parts", "sentence"), [
    (("grid",), "proposal source 'grid' needs a name and a function: SourceKind"),
    (("grid", "propose"), "proposal source 'grid' needs a name and a function"),
    ((len,), "proposal source .*len.* needs a name and a function"),
    (("grid", len, TrainingConfig), "proposal source 'grid' lacks build"),
    (("grid", len, None, len), "proposal source 'grid' lacks settings"),
])  # fmt: skip
def test_half_filled_sources_are_named(parts, sentence):
    with pytest.raises(ValueError, match=sentence):
        load.SourceKind(*parts)


def test_sources_have_names_and_settings_of_their_own():
    grid, other = load.SourceKind("grid", len), load.SOURCES["mask_rcnn"]
    assert load.by_name(grid, other) == {"grid": grid, "mask_rcnn": other}
    with pytest.raises(ValueError, match=r"has 'grid' and 'grid'; each needs its own name"):
        load.by_name(grid, other, load.SourceKind("grid", max))
    with pytest.raises(ValueError, match=r"has 'mask_rcnn' and 'mine'; each needs its own name, settings"):
        load.by_name(other, load.SourceKind("mine", len, MaskRCNNConfig, max))
    with pytest.raises(ValueError, match=r"built-in function len> of .*load.py is no entry; write SourceKind"):
        load.by_name(len)


@pytest.mark.parametrize(("function", "wrong"), [
    (lambda images: [len(image) for image in images], r"gives a list"),
    (lambda images: [image.shape for image in images], r"fails \('str' object has no attribute 'shape'\)"),
    (lambda images: [as_seen(image, MASK2FORMER, 4, "cpu") for image in images], r"fails \(a proposal source takes"),
    (lambda device: None, "gives a NoneType"),
])  # fmt: skip
def test_what_is_no_source_is_named_when_it_is_loaded(function, wrong, monkeypatch):
    monkeypatch.setitem(load.SOURCES, "grid", load.SourceKind("grid", function))
    with pytest.raises(ValueError, match=rf"'grid' {wrong}.*; it takes a device .*SourceKind\('grid', lambda device"):
        load_source("grid")


def test_ground_truth_leaves_out_crowds_and_void():
    sample = ToyScenes()[0]
    sample.segments[0].iscrowd = True
    proposals = ground_truth_proposals(sample)
    assert len(proposals) == len(sample.segments) - 1
    assert proposals.masks((64, 80)).numpy().tolist() == [segment.mask.tolist() for segment in sample.segments[1:]]
    semantic = np.full((64, 80), -1, np.int32)
    semantic[:10], semantic[20:30] = 7, 3
    proposals = ground_truth_proposals(Sample(1, sample.image, [], semantic))
    assert len(proposals) == 2 and proposals.masks((64, 80)).sum().item() == 1600


def test_ground_truth_has_perfect_quality():
    scenes = ToyScenes()
    quality = ProposalQuality(scenes.categories, trained={"disc", "sky"})
    for index in range(len(scenes)):
        quality.update(ground_truth_proposals(scenes[index]), scenes[index])
    rows = quality.compute()
    assert {row["group"] for row in rows} == {"all", "things", "stuff", "trained", "novel"}
    assert all(row["value"] == 1 for row in rows)


def test_quality_equals_pycocotools():
    from pycocotools import mask as rle
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    scenes = ToyScenes(count=12)
    quality = ProposalQuality(scenes.categories, trained=set())
    truth: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}], "info": {}}
    found = []
    rng = np.random.default_rng(0)
    for index in range(len(scenes)):
        sample = scenes[index]
        truth["images"].append({"id": index, "height": 64, "width": 80})
        masks = []
        for segment in sample.segments:
            encoded = rle.encode(np.asfortranarray(segment.mask.astype(np.uint8)))
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": index, "category_id": 1, "iscrowd": 0,
                "segmentation": encoded, "area": int(segment.mask.sum()), "bbox": rle.toBbox(encoded).tolist(),
            })  # fmt: skip
            for _ in range(2):  # shifted copies, of every overlap
                masks.append(np.roll(segment.mask, tuple(rng.integers(-6, 7, 2)), (0, 1)))
        scores = rng.permutation(len(masks)) / len(masks)
        logits = torch.where(torch.from_numpy(np.stack(masks)), 5.0, -5.0)
        quality.update(Proposals(logits, torch.from_numpy(scores).float()), sample)
        for mask, score in zip(masks, scores):
            encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            found.append({"image_id": index, "category_id": 1, "segmentation": encoded, "score": float(score)})
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(found), "segm")
    evaluation.params.useCats = 0
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, 0, -1].mean()
    ours = next(row["value"] for row in quality.compute() if (row["group"], row["metric"]) == ("all", "AR100"))
    assert ours == pytest.approx(recall, abs=1e-9) and 0.2 < ours < 0.9


def test_one_proposal_counts_once():
    iou = np.array([[0.9, 0.85], [0.1, 0.8]])
    assert match_greedily(iou, 0.5).tolist() == [True, True]
    assert match_greedily(iou[:1], 0.5).tolist() == [True, False]
    assert match_greedily(np.zeros((0, 2)), 0.5).tolist() == [False, False]


def test_the_pixel_decoder_keeps_float32_in_mixed_precision():
    level = build_mask2former(MASK2FORMER).model.pixel_level_module
    pixels, dtypes = torch.zeros(1, 3, 64, 64), []
    level.encoder.register_forward_hook(lambda module, given, found: dtypes.append(found.feature_maps[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = level(pixels, output_hidden_states=True)
    assert dtypes == [torch.bfloat16]
    assert {one.dtype for one in (found.decoder_last_hidden_state, *found.decoder_hidden_states)} == {torch.float32}


def test_as_many_boxes_are_learned_from_as_in_detectron2():
    """2,000 of each level before non-maximum suppression, 1,000 of a picture after it."""
    rpn = build_mask_rcnn(dataclasses.replace(MASK_RCNN, rpn_proposals_train=2000)).rpn
    assert (rpn._pre_nms_top_n["training"], rpn._post_nms_top_n["training"]) == (2000, 1000)


@pytest.mark.parametrize("weights", ["own.safetensors", "timm/resnet50.tv_in1k"])
def test_torchvisions_weights_make_the_same_resnet(weights, tmp_path, monkeypatch):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50()
    for norm in (module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        for number in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            number.uniform_(0.5, 1.0)
    save_file(theirs.state_dict(), tmp_path / "own.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backbone, "check_reachable", lambda *asked: None)
    monkeypatch.setattr(backbone, "hf_hub_download", lambda repo, name: "own.safetensors")
    settings = BackboneConfig(weights=weights)
    ours = ResNetBackbone(backbone.resnet_config(settings)).eval()
    backbone.set_up_backbone(ours, settings)
    layers = [f"layer{stage}" for stage in (1, 2, 3, 4)]
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = create_feature_extractor(theirs.eval(), layers)(pixels).values()
        for feature, their in zip(ours(pixels).feature_maps, wanted, strict=True):
            torch.testing.assert_close(feature, their, rtol=1e-4, atol=1e-4 * their.abs().max().item())
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="is of another architecture"):
        backbone.set_up_backbone(ResNetBackbone(backbone.resnet_config(settings)), settings)


def test_a_frozen_norm_is_torchvisions():
    norm, theirs = FrozenBatchNorm2d(5), torchvision.ops.FrozenBatchNorm2d(5)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.rand(5, generator=generator) + 0.1 for name in theirs.state_dict()}
    norm.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 4, 3, generator=generator, requires_grad=True)
    torch.testing.assert_close(norm(x), theirs(x), rtol=1e-5, atol=1e-6)
    (ours,), (other,) = (torch.autograd.grad(n(x).square().sum(), x) for n in (norm, theirs))
    torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)
    assert not list(norm.parameters())
