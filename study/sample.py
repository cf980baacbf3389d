"""The whole chain on real pictures: `python -m study.sample FOLDER OUT`.

FOLDER is laid out as panopticapi's sample data (see `open_coco_sample`). Reader -> ground-truth and Mask2Former
proposals -> visual encoder -> merge -> metrics -> pictures. OUT gets, for each kind of proposals, the panoptic
predictions as JSON and PNGs that panopticapi reads, besides metrics.csv and comparison.png. The study's own trained
networks are used where `make study` has left them; else the w/o RMA baseline, and what Mask2Former's training begins
with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pycocotools import mask as coco_mask

from maskclip.data import Dataset, Sample, open_coco_sample
from maskclip.evaluation.metrics import (
    MeanIoU,
    PanopticQuality,
    average_precision,
    coco_results,
    true_panoptic,
    write_panoptic,
)
from maskclip.files import write_atomically
from maskclip.model.merge import panoptic_map
from maskclip.model.pipeline import MaskCLIP, NamedMasks
from maskclip.proposals import ProposalSource, ground_truth_proposals, load_source
from maskclip.proposals.mask2former import Mask2FormerSource, build_mask2former
from maskclip.visualize import comparison, draw_masks, draw_panoptic
from study.run import Run

FILES = {
    "ground truth, true words": "ground_truth_true_words.json",
    "ground truth": "ground_truth_named.json",
    "mask2former": "mask2former.json",
}


def run_sample(folder: str | Path, out: str | Path, run: Run, network: str | Path | None = None) -> pd.DataFrame:
    """Segment every picture of `folder` from ground-truth and from Mask2Former masks; metrics in percent, one row per
    kind of masks. `network`: a proposal network (`load_source`) in place of the study's."""
    dataset, out = open_coco_sample(folder), Path(out)
    if not len(dataset):
        raise ValueError(f"{dataset.source} annotates no picture; give a folder with at least one.")
    if Path(run.study.clip.model).name == "mini_clip":
        print(
            "the words come from the miniature CLIP, which has never seen a photograph: masks and metrics are right, "
            "names are not"
        )
    method = "maskclip" if (run.folder / "maskclip" / "encoder.pt").is_file() else "wo_rma"
    model = MaskCLIP(run.clip, run.encode(method), temperature=run.study.maskclip.temperature)
    source = proposal_source(run, network)
    kinds = list(FILES)
    scores = {kind: Scores(dataset) for kind in kinds}
    truth, rows = [], []
    for sample in dataset:
        found = source([sample.image])[0]
        masks = {"ground truth": ground_truth_proposals(sample), "mask2former": found}
        named = {kind: model(sample.image, dataset.names, proposals) for kind, proposals in masks.items()}
        named[kinds[0]] = true_words(sample, len(dataset.categories))
        drawn = {kind: scores[kind].update(named[kind], sample, run) for kind in kinds}
        truth.append((sample.image_id, *true_panoptic(sample)))
        binary = found.top(25).masks(sample.size).numpy()
        rows.append([sample.image, draw_masks(sample.image, binary), *(drawn[kind] for kind in reversed(kinds))])
    write_panoptic(out / "ground_truth.json", dataset.categories, truth)
    for kind in kinds:
        write_panoptic(out / FILES[kind], dataset.categories, scores[kind].written)
    table = pd.DataFrame([{"masks": kind, "method": method, **scores[kind].compute()} for kind in kinds])
    write_atomically(out / "metrics.csv", lambda path: table.to_csv(path, index=False))
    titles = ["Image", "Mask2Former's masks", "… named", "Ground-truth masks named", "Ground truth"]
    figure = comparison(rows, titles, width=20)
    write_atomically(out / "comparison.png", lambda path: figure.savefig(path, dpi=100, format="png"))
    return table


def proposal_source(run: Run, network: str | Path | None) -> ProposalSource:
    """The given proposal network, or the study's trained one, or what the study's begins with (said aloud)."""
    trained = run.folder / "mask2former"
    if network is None and not (trained / "record.json").is_file():
        config = run.study.proposals.mask2former
        begun = config.start or "random weights"
        print(f"no trained Mask2Former in {trained}: its masks come from {begun} (run `make study` for better)")
        torch.manual_seed(run.seed)
        return Mask2FormerSource(build_mask2former(config), config.short_side, config.long_side)
    return load_source(network or trained, run.device)


def true_words(sample: Sample, classes: int) -> NamedMasks:
    """The annotated masks with their true classes: what the chain makes of perfect masks and words. Crowd regions are
    not among the masks, but mIoU counts their pixels: it may stay a little below 100 where PQ is 100."""
    kept = [segment.category for segment in sample.segments if not segment.iscrowd]
    probs = torch.nn.functional.one_hot(torch.tensor(kept, dtype=torch.long), classes).float()
    return NamedMasks(probs, ground_truth_proposals(sample).mask_logits, sample.size)


class Scores:
    """All metrics of one kind of masks, and its panoptic maps for writing."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.instances = dataset, things_as_instances(dataset)
        self.quality, self.iou = PanopticQuality(dataset.categories), MeanIoU(len(dataset.categories))
        self.results: list[dict] = []
        self.written: list[tuple[int | str, np.ndarray, list[dict]]] = []

    def update(self, named: NamedMasks, sample: Sample, run: Run) -> np.ndarray:
        """Merge one picture's masks three ways, count them, and draw the panoptic map."""
        isthing, settings = self.dataset.isthing, run.study.evaluation
        ids, segments = panoptic_map(
            named.class_probs,
            named.mask_logits,
            sample.size,
            isthing,
            score_threshold=settings.object_mask_threshold,
            overlap_threshold=settings.overlap_threshold,
        )
        self.quality.update(ids, segments, sample)
        self.iou.update(named.semantic(), sample.semantic)  # type: ignore[arg-type]  # panoptic sets have one
        self.results += coco_results(
            sample.image_id, *named.instances(isthing, settings.top_k), self.dataset.categories
        )
        self.written.append((sample.image_id, ids, segments))
        return draw_panoptic(sample.image, ids, segments, self.dataset.names, text=1.4)

    def compute(self) -> dict[str, float]:
        average = average_precision(self.instances, self.results)
        return {**self.quality.compute(), "mIoU": self.iou.compute()["mIoU"], **average}


def things_as_instances(dataset: Dataset) -> Dataset:
    """A panoptic set whose things can be evaluated by AP: the same, with annotations in COCO's instance form."""
    images, annotations = [], []
    for sample in dataset:
        images.append({"id": sample.image_id, "height": sample.size[0], "width": sample.size[1]})
        for segment in sample.segments:
            category = dataset.categories[segment.category]
            if category.isthing:
                code = coco_mask.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
                entry = {"image_id": sample.image_id, "category_id": category.id, "iscrowd": int(segment.iscrowd)}
                annotations.append(entry | {"segmentation": code, "area": int(segment.mask.sum())})
    kinds = [{"id": c.id, "name": c.name} for c in dataset.categories]
    content = {"images": images, "annotations": annotations, "categories": kinds}
    return Dataset(
        dataset.name, dataset.categories, dataset.image_ids, dataset.read, dataset.files, dataset.source, content
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m study.sample", description="MaskCLIP's whole chain on real pictures."
    )
    parser.add_argument("folder", help="panoptic_examples.json, panoptic_examples/ and input_images/")
    parser.add_argument("out", help="where predictions, metrics.csv and comparison.png go")
    parser.add_argument("--params", default="params.yaml", help="the study's parameters (its CLIP, thresholds)")
    parser.add_argument("--seed", type=int, default=0, help="which run's trained networks to use")
    parser.add_argument("--network", help="a proposal network: a folder of ours, or a Mask2Former of transformers")
    options = parser.parse_args()
    try:
        table = run_sample(options.folder, options.out, Run(options.seed, options.params), options.network)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table.set_index("masks").T.to_string(float_format="{:.2f}".format))
    print(f"pictures: {options.out}/comparison.png; to count PQ with panopticapi's own evaluation.py:")
    print(f"  --gt_json_file {options.out}/ground_truth.json --pred_json_file {options.out}/mask2former.json")


if __name__ == "__main__":
    main()
