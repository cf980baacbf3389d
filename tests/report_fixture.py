"""MADE-UP results in the study's layout, for the report's tests only: seeded noise around the paper's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

METHODS = {
    "clip_baseline": "CLIP Baseline",
    "wo_rma": "MaskCLIP w/o RMA",
    "maskclip_maskrcnn": "MaskCLIP (Mask R-CNN)",
    "maskclip": "MaskCLIP",
}


def write_made_up_results(root: Path, seeds: tuple[int, ...] = (0, 1, 2), noise: float = 0.3) -> Path:
    """Write results that follow the paper's table numbers, times 1.2, plus noise. Not results of anything."""
    from study.report import paper_numbers

    paper = {key: float(value) for key, value in paper_numbers().items()}
    for seed in seeds:
        random = np.random.default_rng(seed)
        rows: list[tuple] = []

        def add(method, dataset, metric, value, proposals=None, rows=rows, random=random, seed=seed):
            proposals = proposals or ("mask_rcnn" if method == "maskclip_maskrcnn" else "mask2former")
            value = 1.2 * value + noise * random.standard_normal()
            rows.append((method, proposals, dataset, metric, value, seed, "mini"))

        for method, label in METHODS.items():
            for column, dataset in (("A-150", "a150"), ("A-847", "a847"), ("P-459", "p459"), ("P-59", "p59")):
                add(method, dataset, "mIoU", paper[2, label, column])
            for metric in ("PQ", "PQth", "PQst", "SQ", "SQth", "SQst", "RQ", "RQth", "RQst"):
                add(method, "a150", metric, paper[3, label, metric])
            for name, dataset in (("ADE20K", "a150"), ("LVIS", "lvis")):
                for metric in ("AP", "AP50", "AP75"):
                    add(method, dataset, metric, paper[4, label, f"{name} {metric}"])
        for column in (
            "constrained base",
            "constrained target",
            "generalized base",
            "generalized target",
            "generalized all",
        ):
            add("maskclip_split", "coco_split", f"AP50_{column.replace(' ', '_')}", paper[5, "MaskCLIP", column])
        for metric in ("PQ", "mIoU"):
            add("maskclip", "a150", metric, paper[7, "MaskCLIP + GT masks", metric], "ground_truth")
        for metric in ("PQ", "PQth", "PQst", "SQ", "SQth", "SQst"):
            add("wo_refinement", "a150", metric, paper[8, "MaskCLIP w/o MR", metric])
        for layers in ("1, 7, 13, 19", "3, 9, 15, 21", "21, 22, 23, 24"):
            for metric in ("PQ", "PQth", "PQst"):
                add(f"layers_{layers.replace(', ', '_')}", "a150", metric, paper[9, layers, metric])
        folder = root / str(seed)
        folder.mkdir(parents=True)
        columns = ["method", "proposals", "dataset", "metric", "value", "seed", "profile"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "scores.csv", index=False)
        for method in ("maskclip", "maskclip_maskrcnn", "wo_refinement", "layers_1_7_13_19", "mask2former"):
            step = np.arange(0, 400, 5)
            loss = 3 + 9 * np.exp(-step / 90) + random.normal(0, 0.6, len(step))
            pd.DataFrame(
                {
                    "step": step,
                    "loss": loss,
                    "loss_ce": loss / 3,
                    "loss_dice": loss / 3,
                    "loss_bce": loss / 3,
                    "lr": 1e-4,
                }
            ).to_csv(folder / f"curves_{method}.csv", index=False)
        quality = [
            (source, "a150", group, metric, base + 0.03 * random.standard_normal())
            for source, base in (
                ("mask2former", 0.66),
                ("mask_rcnn", 0.55),
                ("mask2former_base", 0.5),
                ("class_agnostic", 0.4),
                ("class_aware", 0.38),
            )
            for group in ("all", "things", "stuff", "trained", "novel")
            for metric in ("AR100", "mean_best_iou")
        ]
        pd.DataFrame(quality, columns=["source", "dataset", "group", "metric", "value"]).to_csv(
            folder / "proposal_quality.csv", index=False
        )
        words = [
            ("filled / empty", "filled heart", 88.0),
            ("filled / empty", "empty heart", 81.0),
            ("horse / donkey", "horse", 70.0),
            ("horse / donkey", "donkey", 66.0),
            ("red / blue", "red star", 93.0),
            ("red / blue", "blue star", 95.0),
        ]
        pd.DataFrame([(p, w, a + random.normal()) for p, w, a in words], columns=["pair", "word", "accuracy"]).to_csv(
            folder / "attributes.csv", index=False
        )
        times = root.parent / "runs" / "times"
        times.mkdir(parents=True, exist_ok=True)
        for stage, seconds in (("02_proposals", 320 + seed), ("03_baselines", 60), ("04_maskclip", 240)):
            (times / f"{seed}-{stage}.csv").write_text(f"stage,seconds,peak_gb\n{seed}-{stage},{seconds},1.9\n")
    costs = {
        "regionclip": (37, None),
        "zegformer": (39, None),
        "simseg": (37.5, None),
        "clip_baseline": (38.1, 95.0),
        "wo_rma": (0.41, 1.3),
        "maskclip": (0.52, 2.4),
    }
    pd.DataFrame(
        [
            (method, metric, 100, "ViT-L-14-336", 336, value)
            for method, pair in costs.items()
            for metric, value in zip(("tflops", "time_s"), pair)
            if value
        ],
        columns=["method", "metric", "masks", "model", "resolution", "value"],
    ).to_csv(root / "efficiency.csv", index=False)
    return root
