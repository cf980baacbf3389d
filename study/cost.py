"""What a study will cost before it is paid for: GPU hours, memory and disk of every stage.

python -m study.cost --profile paper --gpu A5000 --gpus 8
python -m study.cost --profile released --gpu A100            # the authors' row: nothing trains
python -m study.cost --gpu here                               # this machine, measured
python -m study.cost --gpu H100 --clip ViT-bigG-14 --data 10  # a larger CLIP, ten times the training pictures

A floor: of the CPU's work (reading pictures, compressing masks, scoring) there is nothing in it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from maskclip.data.check import PUBLISHED, Published
from maskclip.data.datasets import DATASETS, open_dataset, scored_on
from maskclip.proposals.store import room_for
from maskclip.roofline import GPUS, Gpu, find_gpu
from maskclip.settings import MaskClipTraining, TrainingConfig, proposing_for
from study import errors_as_sentences
from study.methods import METHODS, NETWORKS, Method, ProposalNetwork, baselines, data_sets, on_ground_truth
from study.params import Study, load_study
from study.work import (
    MASKS,
    SEGMENTS,
    ClipSize,
    Step,
    baseline_mask,
    maskclip_picture,
    maskclip_step,
    naming,
    network_picture,
    network_step,
    seen_scale,
)

COLUMNS = ["stage", "part", "times", "tflops", "seconds", "gpu_hours", "memory_gb", "disk_gb"]
SIZES = {"p59": (375, 500), "a150": (512, 683), "a847": (512, 683)}  # of photographs; all others are COCO's
COCO_SIZE, DRAWN = (480, 640), (128, 160)
PRODUCTS = {"no": "float32", "bf16": "fp16"}  # what a GPU calls a precision, if otherwise than settings

# A training step of the released code takes 15 times as long as a pass of CLIP, ours 2.1 times, on one and the same
# CPU (docs/paper_and_released_code.md).
RELEASED = 15 / 2.1
BESIDE = {"baselines": baselines, "ground_truth_masks": on_ground_truth}  # methods of stages that train nothing
OF_RELEASED = "maskclip", "maskclip_published"  # rows of the profile that trains nothing


@dataclass(frozen=True)
class Part:
    """What a stage does many times: a step of its training, or what it does to a picture."""

    stage: str  # as `dvc repro` knows it
    part: str
    times: int = 0
    step: Step = field(default_factory=Step)  # of one GPU
    precision: tuple[str, str] = ("float32", "tf32")  # of products and convolutions: torch's own choice
    gpus: int = 1  # that one step takes
    disk: float = 0.0  # GB

    def row(self, gpu: Gpu) -> dict[str, object]:
        """This part in `COLUMNS`."""
        seconds = gpu.seconds(self.step.work, *self.precision)
        counted = self.step.work.tflops * self.gpus, seconds, self.times * seconds * self.gpus / 3600
        return dict(zip(COLUMNS, (self.stage, self.part, self.times, *counted, self.step.memory, self.disk)))


def predict(study: Study, gpu: Gpu, gpus: int = 1, data: float = 1.0, stages: str | Path = "dvc.yaml") -> pd.DataFrame:
    """Every stage of the study's first seed, in `COLUMNS`: tflops, seconds are of one of `times` steps or pictures.

    Args:
        gpu: of `maskclip.roofline.GPUS`, or measured.
        gpus: among which batches and pictures are divided: less memory, and `gpu_hours / gpus` by the clock.
        data: how many times COCO's training pictures there are, seen as often as COCO's.
    Raises:
        ValueError: a CLIP that is no ViT, a batch that does not divide among the GPUs, or none of GPUs or data.
    """
    if gpus < 1 or not 0 < data < math.inf:
        raise ValueError(f"{gpus} GPUs and {data:g} times the data; there must be at least one GPU, and some data")
    return pd.DataFrame([part.row(gpu) for part in parts(study, gpus, data, stages)], columns=COLUMNS)


def parts(study: Study, gpus: int, data: float, stages: str | Path) -> Iterator[Part]:
    """What dvc.yaml's stages do on a GPU, in its order."""
    clip, stage_two = ClipSize.of(study.clip.model), study.maskclip
    there = data_sets(study.data.without)
    if not stage_two.steps:  # the profile `released`, which is no part of dvc.yaml
        yield _store(study, NETWORKS["mask2former"], "a150", "released")
        yield from (_evaluation(study, clip, METHODS[one], "a150", "released") for one in OF_RELEASED)
        return
    for name, stage in YAML(typ="safe").load(Path(stages))["stages"].items():
        matrix = stage.get("matrix", {})
        seed = "@0" if "seed" in matrix else ""
        for network in (NETWORKS[one] for one in matrix.get("network", ())):
            yield from _proposals(study, network, f"{name}{seed}-{network.id}", gpus, data)
        for method in (METHODS[one] for one in matrix.get("method", ())):
            where = f"{name}{seed}-{method.id}"
            step = maskclip_step(clip, stage_two, _layers(study, method), _share(stage_two, gpus))
            yield _training(where, stage_two, step, gpus, data)
            for pictures in filter(there.__contains__, method.tests):
                yield _evaluation(study, clip, method, pictures, where)
        beside = BESIDE.get(name, list[Method])()
        for method in beside:
            for pictures in ("a150",) if name == "ground_truth_masks" else filter(there.__contains__, method.tests):
                yield _evaluation(study, clip, method, pictures, f"{name}{seed}", name == "ground_truth_masks")
        if not (beside or matrix.keys() - {"seed"}):
            yield Part(f"{name}{seed}", "minutes, on CPU and GPU")


def _proposals(study: Study, network: ProposalNetwork, stage: str, gpus: int, data: float) -> Iterator[Part]:
    config = getattr(study.proposals, network.settings)
    yield _training(stage, config.training, network_step(config, _share(config.training, gpus)), gpus, data)
    for name in filter(data_sets(study.data.without).__contains__, network.pictures):
        yield _store(study, network, name, stage, data)


def _store(study: Study, network: ProposalNetwork, name: str, stage: str, data: float = 1.0) -> Part:
    config, pictures = getattr(study.proposals, network.settings), number_of_pictures(study, name, data)
    config, size = proposing_for(config, name), _size(study, name)
    masks, scale = getattr(config, "queries", 0) or config.detections, seen_scale(config, size)
    room = room_for(*(round(scale * side / getattr(config, "mask_stride", 4)) for side in size))
    step, disk = network_picture(config, size), pictures * masks * room / 1e9
    return Part(stage, f"store {name}", pictures, step, disk=disk)


def _share(training: TrainingConfig | MaskClipTraining, gpus: int) -> int:
    if training.batch % gpus:
        raise ValueError(
            f"a batch of {training.batch} does not divide among {gpus} GPUs; choose another number of them"
        )
    return training.batch // gpus


def _training(stage: str, training: TrainingConfig | MaskClipTraining, step: Step, gpus: int, data: float) -> Part:
    products = PRODUCTS.get(training.mixed_precision, training.mixed_precision)
    precision = (products, "tf32" if products == "float32" else products)
    return Part(stage, "train", round(training.steps * data), step, precision, gpus, step.checkpoint)


def _layers(study: Study, method: Method) -> int:
    return len(study.maskclip.rma_layers if method.rma_layers is None else method.rma_layers)


def _evaluation(
    study: Study, clip: ClipSize, method: Method, pictures: str, stage: str, on_truth: bool = False
) -> Part:
    """A method on a collection of test pictures: its pass, and all merging that it is scored on."""
    size, step = _size(study, pictures), baseline_mask(clip)
    if method.mask_tokens:
        step = maskclip_picture(clip, _layers(study, method))
    work = step.work if method.mask_tokens else (SEGMENTS if on_truth else MASKS) * step.work
    memory = step.work.memory
    for entry in scored_on(pictures):
        words = _published(entry.words or entry.name, study.data.root)
        merging = naming(words.things + words.stuff, entry.task, size, clip.side)
        work, memory = work + merging, max(memory, merging.memory)
    step = replace(step, work=replace(work, memory=memory))
    products = PRODUCTS.get(study.evaluation.precision, study.evaluation.precision)
    number = number_of_pictures(study, pictures)
    return Part(stage, f"{method.id} on {pictures}", number, step, (products, products))


def number_of_pictures(study: Study, name: str, data: float = 1.0) -> int:
    """How many pictures a set has, as drawn, published or counted where it lies, within the study's limits; training
    sets `data` times. ValueError: nobody knows."""
    training = DATASETS[name].training
    name = {"coco_split_train": "coco_train"}.get(name, name)  # of how many has base categories, none is published
    drawn = {"a150": "ade", "a847": "ade", "p59": "pascal"}.get(name, name)
    there = getattr(study.data.world, drawn, None) or _published(name, study.data.root).pictures[0]
    limit = study.data.training_limit if training else study.evaluation.limit
    return round(min(there, limit or there) * (data if training else 1))


@cache
def _published(name: str, root: str) -> Published:
    """What is published of a set; of one of your own, what lies there."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    try:
        dataset = open_dataset(name, root)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"how large {name} is, nobody knows: {error}; lay it there, or add its counts to PUBLISHED of "
            "maskclip/data/check.py"
        ) from None
    return Published((len(dataset),), len(dataset.categories), 0, "", "", "")


def _size(study: Study, name: str) -> tuple[int, int]:
    return DRAWN if study.data.world else SIZES.get(name, COCO_SIZE)


def by_stage(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a stage: TFLOPs, hours and disk of its parts together, memory of the largest."""
    frame = frame.assign(pflops=frame.tflops * frame.times / 1e3)
    ways = dict(pflops="sum", gpu_hours="sum", memory_gb="max", disk_gb="sum")
    return frame.groupby("stage", sort=False).agg(ways)


def check_points() -> pd.DataFrame:
    """What was published or measured of the paper profile, and the prediction of it; `deviation` is 0.1 for a tenth
    too much.

    The paper's own is stage two's training (Sec. 4.2) and the features of 100 masks (Sec. 4.3), by its own code. The
    H100's were measured with this package, and the roofline's utilisation is chosen by their seconds; Mask2Former's
    before its pixel decoder was kept in float32, which the prediction has.
    """
    study = load_study("paper")
    clip, training = ClipSize.of(study.clip.model), study.maskclip
    a5000, rtx3090, h100 = GPUS["A5000"], GPUS["RTX3090"], GPUS["H100"]
    mask2former, mask_rcnn = (
        network_step(config, config.training.batch)
        for config in (study.proposals.mask2former, study.proposals.mask_rcnn)
    )
    of_eight = maskclip_step(clip, training, len(training.rma_layers), training.batch // 8)
    hours = training.steps * a5000.seconds(of_eight.work, "fp16") / 3600
    baseline, wo_rma = MASKS * baseline_mask(clip).work, maskclip_picture(clip, 0).work
    rows = [
        ("stage two, hours (paper)", "8 A5000", 3.0, hours),
        ("the same, released code's steps (paper)", "8 A5000", 3.0, hours * RELEASED),
        ("100 masks, CLIP Baseline, s (paper)", "RTX3090", 3.0, rtx3090.seconds(baseline)),
        ("100 masks, MaskCLIP w/o RMA, s (paper)", "RTX3090", 0.6, rtx3090.seconds(wo_rma)),
        ("Mask2Former, step of 16, s", "H100", 1.2, h100.seconds(mask2former.work, "fp16")),
        ("Mask2Former, step of 16, GB", "H100", 74.0, mask2former.memory),
        ("Mask R-CNN, step of 16, s", "H100", 0.33, h100.seconds(mask_rcnn.work, "float32", "tf32")),
        ("Mask R-CNN, step of 16, GB", "H100", 19.0, mask_rcnn.memory),
    ]
    frame = pd.DataFrame(rows, columns=["what", "gpu", "measured", "predicted"])
    return frame.assign(deviation=frame.predicted / frame.measured - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="paper", help="one of configs/ (paper)")
    parser.add_argument("--gpu", default="A5000", help=f"{', '.join(GPUS)}, or here, which is measured (A5000)")
    parser.add_argument("--gpus", type=int, default=1, help="how many of them, as `processes` in params.yaml (1)")
    parser.add_argument("--clip", help="another CLIP of open_clip's, such as ViT-H-14 or ViT-bigG-14")
    parser.add_argument("--data", type=float, default=1.0, help="times the training pictures, with as many epochs (1)")
    parser.add_argument("--parts", action="store_true", help="trainings, stores and test sets of a stage apart")
    arguments = parser.parse_args()
    with errors_as_sentences():
        study = load_study(arguments.profile)
        if arguments.clip:
            study = replace(study, clip=replace(study.clip, model=arguments.clip))
        gpu = find_gpu(arguments.gpu)
        frame = predict(study, gpu, arguments.gpus, arguments.data)
        table = frame.set_index(["stage", "part"]) if arguments.parts else by_stage(frame)
        print(table.to_string(float_format=lambda x: f"{x:,.2f}"))
        print(told(frame, gpu, arguments.gpus))


def told(frame: pd.DataFrame, gpu: Gpu, gpus: int) -> str:
    """The sum in words, and where it does not fit."""
    hours, memory, disk = frame.gpu_hours.sum(), frame.memory_gb.max(), frame.disk_gb.sum()
    lines = [
        f"{hours:,.{1 if hours < 10 else 0}f} GPU hours a seed, {hours / gpus / 24:,.1f} days on {gpus}; "
        f"{memory:,.0f} GB of each GPU's {gpu.memory:,.0f}; {disk:,.0f} GB on disk"
    ]
    if tight := sorted(set(frame.stage[frame.memory_gb > gpu.memory])):
        lines.append(f"does not fit the GPU: {', '.join(tight)}; take more GPUs, or a smaller batch")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
