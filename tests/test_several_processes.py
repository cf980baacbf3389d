"""Training in two processes on the CPU: the same losses as in one, one set of files, one sentence if one fails; and
in half precision nearly the same."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_proposals import MASK2FORMER, MASK_RCNN, ToyScenes

from maskclip import files
from maskclip.files import load_checkpoint, save_checkpoint
from maskclip.model.clip import load_clip
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import ground_truth_proposals, load_source
from maskclip.training import finished
from maskclip.training.mask_tokens import Examples, load_trained_weights, train_maskclip, trained_weights
from maskclip.training.proposal_networks import train_proposals
from study.params import load_study
from study.run import launch

TOP = Path(__file__).parent.parent


def encoder_of(clip) -> MaskCLIPVisualEncoder:
    """Another in every process: training begins with the first one's."""
    generator = torch.Generator().manual_seed(int(os.environ.get("RANK", 0)))
    return MaskCLIPVisualEncoder.from_open_clip(
        clip.model, rma_layers=(5, 6), zero_init_refinement=True, generator=generator
    )


def train_all(out: Path, precision: str = "no") -> None:
    """Both proposal networks and MaskCLIP, three steps each, with so many points that chance hardly matters."""
    dataset, three = ToyScenes(count=8), {"steps": 3, "batch": 4, "mixed_precision": precision}
    for network, config in (("mask2former", MASK2FORMER), ("mask_rcnn", MASK_RCNN)):
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, **three))
        if network == "mask2former":
            config = dataclasses.replace(config, points=3000)
        train_proposals(network, dataset, config, out / network, 0, device="cpu", progress=False)
    clip = load_clip(str(TOP / "models" / "mini_clip"))
    settings = load_study("mini", configs=TOP / "configs").maskclip
    settings = dataclasses.replace(settings, **three | {"batch": 8}, points=3000, checkpoint_every=2)
    proposals = {sample.image_id: ground_truth_proposals(sample) for sample in dataset}
    encoder = encoder_of(clip)
    train_maskclip(encoder, clip, dataset, proposals, settings, out / "maskclip", 0)
    save_checkpoint(out / f"process{os.environ.get('RANK', 0)}.pt", trained_weights(encoder))


def fail(names: list[str]) -> None:
    raise ValueError(f"there is no {names[0]}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    launch(train_all, (one,), 1)
    launch(train_all, (two,), 2)
    return one, two


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("halves")
    launch(train_all, (out, "bf16"), 2)  # fresh processes: accelerate knows one precision in each
    return out


@pytest.mark.parametrize(
    ("network", "curve", "tolerance"),
    [("mask2former", "curves.csv", 0.03), ("mask_rcnn", "curves.csv", 0.1), ("maskclip", "curve.csv", 0.06)],
)
def test_two_processes_share_a_step_of_one(folders, network, curve, tolerance):
    # Each process draws points and boxes of its own and averages classes over its own masks, as the original does, so
    # the numbers differ a little.
    one, two = (pd.read_csv(folder / network / curve) for folder in folders)
    assert len(two) == 3 and list(one.columns) == list(two.columns)
    assert two["loss"].to_numpy() == pytest.approx(one["loss"].to_numpy(), rel=tolerance)
    assert not (folders[1] / network / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("network", "curve", "weights"),
    [
        ("mask2former", "curves.csv", "network.safetensors"),
        ("mask_rcnn", "curves.csv", "network.safetensors"),
        ("maskclip", "curve.csv", "encoder.pt"),
    ],
)
def test_half_precision_costs_little_and_weights_stay_whole(folders, halves, network, curve, weights):
    whole, half = (pd.read_csv(folder / network / curve)["loss"].to_numpy() for folder in (folders[1], halves))
    assert half == pytest.approx(whole, rel=0.05) and (half != whole).all()
    read = load_file if weights.endswith("safetensors") else load_checkpoint
    assert {tensor.dtype for tensor in read(halves / network / weights).values()} == {torch.float32}


def test_both_processes_end_with_the_same_encoder(folders):
    """Each has seen pictures of its own; only gradients they share keep them alike."""
    first, second = (load_checkpoint(folders[1] / f"process{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_two_processes_trained_is_read_as_ever(folders):
    scene = ToyScenes()[0].image
    for network in ("mask2former", "mask_rcnn"):
        assert len(load_source(folders[1] / network)([scene])) == 1
    clip = load_clip(str(TOP / "models" / "mini_clip"))
    load_trained_weights(encoder_of(clip), folders[1] / "maskclip" / "encoder.pt")


STAGES = ("maskclip", "mask2former", "mask_rcnn")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """Where a fresh Python that does nothing else had two processes, fresh ones too, share each training."""
    folder = tmp_path_factory.mktemp("fresh")
    program = folder / "fresh.py"
    program.write_text(
        "import sys, pathlib\n"
        "import test_several_processes as t\n"
        "if __name__ == '__main__':\n"
        "    for stage in t.STAGES:\n"
        "        t.launch(t.watched, (stage, pathlib.Path(sys.argv[1])), 2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOP), str(TOP / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_fresh_python_that_does_nothing_else_shares_the_training(stage, fresh):
    """Each process reads half of every batch, and one of them alone writes."""
    first, second = ((fresh / f"{stage}.read{rank}").read_text().split() for rank in (0, 1))
    assert len(first) == len(second) == 4 and sorted(first + second) == sorted(list("01234567"))
    assert sorted(file.name for file in fresh.glob(f"{stage}.wrote*")) == [f"{stage}.wrote0"]
    assert (fresh / f"{stage}.wrote0").read_text().split()[0] == "checkpoint.pt"


class Watched(ToyScenes):
    """Scenes that write down which of them this process reads."""

    def __getitem__(self, index: int):
        with Path(f"{self.name}.read{os.environ['RANK']}").open("a") as file:
            file.write(f"{index} ")
        return super().__getitem__(index)


def watched(stage: str, out: Path) -> None:
    """Two steps of four of eight scenes, written down in `out`."""
    os.chdir(out)
    write = files.write_atomically

    def wrote(path, function):
        with Path(f"{stage}.wrote{os.environ['RANK']}").open("a") as file:
            file.write(f"{Path(path).name} ")
        write(path, function)

    files.write_atomically = finished.write_atomically = wrote
    dataset, two = Watched(count=8, name=stage), {"steps": 2, "batch": 4, "checkpoint_every": 1}
    if stage == "maskclip":
        clip = load_clip(str(TOP / "models" / "mini_clip"))
        settings = dataclasses.replace(load_study("mini", configs=TOP / "configs").maskclip, **two)
        proposals = {sample.image_id: ground_truth_proposals(sample) for sample in ToyScenes(count=8)}
        train_maskclip(encoder_of(clip), clip, dataset, proposals, settings, out / stage, 0)
    else:
        config = {"mask2former": MASK2FORMER, "mask_rcnn": MASK_RCNN}[stage]
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, **two))
        device = "cpu" if torch.cuda.is_available() else None  # without a GPU it must find the CPU itself
        train_proposals(stage, dataset, config, out / stage, 0, device=device, progress=False)


def test_a_failing_process_is_one_sentence():
    with pytest.raises(RuntimeError, match=r"process [01] of 2: ValueError: there is no sea"):
        launch(fail, (["sea"],), 2)


def test_pictures_are_read_on_the_cpu_wherever_clip_is():
    """A reading process cannot use its parent's GPU: what lies there is brought over before."""
    clip, dataset = load_clip(str(TOP / "models" / "mini_clip")), ToyScenes(count=1)
    mean, std = (SimpleNamespace(cpu=lambda value=value: value) for value in (clip.mean, clip.std))  # on a GPU
    elsewhere = dataclasses.replace(clip, mean=mean, std=std)
    proposals = {sample.image_id: ground_truth_proposals(sample) for sample in dataset}
    image, logits, labels, masks = Examples(elsewhere, dataset, proposals, 0)[0]
    assert {tensor.device.type for tensor in (image, logits, labels, masks)} == {"cpu"}
    torch.testing.assert_close(image, Examples(clip, dataset, proposals, 0)[0][0])


def test_a_batch_that_does_not_divide_among_processes_is_one_sentence(tmp_path, monkeypatch):
    state = SimpleNamespace(num_processes=3)
    monkeypatch.setattr("maskclip.training.fit.PartialState", lambda cpu: state)
    clip, settings = load_clip(str(TOP / "models" / "mini_clip")), load_study("mini", configs=TOP / "configs").maskclip
    with pytest.raises(ValueError, match=r"a batch of 4 does not divide among 3 processes; set maskclip\.batch"):
        train_maskclip(encoder_of(clip), clip, ToyScenes(count=1), {}, settings, tmp_path, 0)
