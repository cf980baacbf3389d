"""The whole chain on real pictures: `python -m study.sample FOLDER OUT`.

FOLDER is laid out as panopticapi's sample data (see `open_coco_sample`). For ground-truth and Mask2Former masks OUT
gets panoptic predictions as JSON and PNGs that panopticapi reads, besides metrics.csv and comparison.png. The
networks are the study's where `make study` has left them; else w/o RMA, and what Mask2Former's training begins with.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pycocotools import mask as coco_mask

from maskclip.data import Dataset, Sample, open_coco_sample
from maskclip.evaluation.metrics import true_panoptic, write_panoptic
from maskclip.evaluation.tasks import InstanceTask, PanopticTask, SemanticTask
from maskclip.files import write_atomically
from maskclip.model.pipeline import NamedMasks
from maskclip.proposals import ProposalSource, ground_truth_proposals, load_source
from maskclip.proposals.load import build_network
from maskclip.proposals.mask2former import Mask2FormerSource
from maskclip.visualize import comparison, draw_masks, draw_panoptic
from study import errors_as_sentences
from study.run import Run

FILES = {
    "ground truth, true words": "ground_truth_true_words.json",
    "ground truth": "ground_truth_named.json",
    "mask2former": "mask2former.json",
}


def run_sample(folder: str | Path, out: str | Path, run: Run, network: str | Path | None = None) -> pd.DataFrame:
    """Segment a folder's pictures from ground-truth and Mask2Former masks: metrics in percent, a row a kind of masks.

    `network`: a proposal network (`load_source`) in place of the study's.
    """
    dataset, out = open_coco_sample(folder), Path(out)
    if not len(dataset):
        raise ValueError(f"{dataset.source} annotates no picture; give a folder with at least one.")
    if Path(run.study.clip.model).name == "mini_clip":
        print("the miniature CLIP has never seen a photograph: masks and metrics are right, names are not")
    method = "maskclip" if (run.folder / "maskclip" / "encoder.pt").is_file() else "wo_rma"
    model, source, things = run.model(method), proposal_source(run, network), things_as_instances(dataset)
    tasks = {
        kind: (PanopticTask(dataset), SemanticTask(dataset), InstanceTask(things, dataset.categories)) for kind in FILES
    }
    written: dict[str, list] = {"ground_truth.json": [], **{name: [] for name in FILES.values()}}
    rows = []
    for sample in dataset:
        found, true = source([sample.image])[0], ground_truth_proposals(sample)
        named = [true_words(sample, len(dataset.categories))]
        named += [model(sample.image, dataset.names, proposals) for proposals in (true, found)]
        drawn = [sample.image, draw_masks(sample.image, found.top(25).masks(sample.size).numpy())]
        for (kind, file), masks in reversed(list(zip(FILES.items(), named))):
            for task in tasks[kind]:
                task.add(task.judge(lambda words: masks, sample.image_id, run.study.evaluation))  # noqa: B023
            ids, segments = masks.panoptic(dataset.isthing, **run.thresholds)
            written[file].append((sample.image_id, ids, segments))
            drawn.append(draw_panoptic(sample.image, ids, segments, dataset.names, text=1.4))
        written["ground_truth.json"].append((sample.image_id, *true_panoptic(sample)))
        rows.append(drawn)
    for file, maps in written.items():
        write_panoptic(out / file, dataset.categories, maps)
    scores = [{name: value for task in tasks[kind] for name, value in task.compute().items()} for kind in FILES]
    table = pd.DataFrame([{"masks": kind, "method": method, **of} for kind, of in zip(FILES, scores)])
    write_atomically(out / "metrics.csv", lambda path: table.to_csv(path, index=False))
    titles = ["Image", "Mask2Former's masks", "… named", "Ground-truth masks named", "Ground truth"]
    figure = comparison(rows, titles, width=20)
    write_atomically(out / "comparison.png", lambda path: figure.savefig(path, dpi=100, format="png"))
    return table


def proposal_source(run: Run, network: str | Path | None) -> ProposalSource:
    """The given proposal network, or the study's trained one, or what the study's begins with (said aloud)."""
    trained, config = run.folder / "mask2former", run.study.proposals.mask2former
    if network or (trained / "record.json").is_file():
        return load_source(network or trained, run.device)
    print(
        f"no trained Mask2Former in {trained}, so masks come from {config.start or 'random weights'}: run `make study`"
    )
    torch.manual_seed(run.seed)
    return Mask2FormerSource(build_network(config, 1), config)


def true_words(sample: Sample, classes: int) -> NamedMasks:
    """Perfect masks and words. Crowds are not among them, but mIoU counts their pixels: it may stay below 100."""
    kept = [segment.category for segment in sample.segments if not segment.iscrowd]
    probs = torch.nn.functional.one_hot(torch.tensor(kept, dtype=torch.long), classes).float()
    return NamedMasks(probs, ground_truth_proposals(sample).mask_logits, sample.size)


def things_as_instances(dataset: Dataset) -> Dataset:
    """A panoptic set with its things in COCO's instance form too, for AP."""
    images, annotations = [], []
    for one in map(dataset.annotation, dataset.image_ids):
        images.append({"id": one.image_id, "height": one.size[0], "width": one.size[1]})
        for segment in (segment for segment in one.segments if dataset.isthing[segment.category]):
            entry = {"image_id": one.image_id, "category_id": dataset.categories[segment.category].id}
            code = coco_mask.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
            sizes = {"area": int(segment.mask.sum()), "iscrowd": int(segment.iscrowd)}
            annotations.append(entry | sizes | {"segmentation": code})
    things = [category for category in dataset.categories if category.isthing]
    kinds = [{"id": category.id, "name": category.name} for category in things]
    content = {"images": images, "annotations": annotations, "categories": kinds}
    return replace(dataset, categories=things, instances=content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="panoptic_examples.json, panoptic_examples/ and input_images/")
    parser.add_argument("out", help="where predictions, metrics.csv and comparison.png go")
    parser.add_argument("--params", default="params.yaml", help="the study's parameters (its CLIP, thresholds)")
    parser.add_argument("--seed", type=int, default=0, help="which run's trained networks to use")
    parser.add_argument("--network", help="proposals of another source, as `load_source` takes it")
    options = parser.parse_args()
    with errors_as_sentences():
        table = run_sample(options.folder, options.out, Run(options.seed, options.params), options.network)
    print(table.set_index("masks").T.to_string(float_format="{:.2f}".format))
    print(f"pictures: {options.out}/comparison.png; to count PQ with panopticapi's own evaluation.py:")
    print(f"  --gt_json_file {options.out}/ground_truth.json --pred_json_file {options.out}/mask2former.json")


if __name__ == "__main__":
    main()
