"""MADE-UP results in the study's layout, for the report's tests only: seeded noise around the paper's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from study.methods import METHODS, NETWORKS
from study.report.results import SCORE_COLUMNS
from study.report.tables import TABLES, paper_number

GROUPS = ("all", "things", "stuff", "trained", "novel")
WORDS = {
    "filled / empty": {"filled heart": 88.0, "empty heart": 81.0},
    "horse / donkey": {"horse": 70.0, "donkey": 66.0},
    "red / blue": {"red star": 93.0, "blue star": 95.0},
}
COSTS = {  # TFLOPs and seconds
    "regionclip": (37, None),
    "zegformer": (39, None),
    "simseg": (37.5, None),
    "clip_baseline": (38.1, 95.0),
    "wo_rma": (0.41, 1.3),
    "maskclip": (0.52, 2.4),
}


def write_made_up_results(root: Path, seeds: tuple[int, ...] = (0, 1, 2), noise: float = 0.3) -> Path:
    """Write results/mini and runs/mini/times below `root`; results/mini is returned. Not results of anything.

    Scores follow the paper's table numbers, times 1.2, plus noise.
    """
    results, times = root / "results" / "mini", root / "runs" / "mini" / "times"
    times.mkdir(parents=True)
    for seed in seeds:
        random, folder = np.random.default_rng(seed), results / str(seed)
        folder.mkdir(parents=True)
        scores = pd.DataFrame(_scores(), columns=SCORE_COLUMNS[:5]).assign(seed=seed, profile="mini")
        scores["value"] = 1.2 * scores.value + noise * random.standard_normal(len(scores))
        scores.drop_duplicates(SCORE_COLUMNS[:4]).to_csv(folder / "scores.csv", index=False)
        for name in ("maskclip", "maskclip_maskrcnn", "wo_refinement", "layers_1_7_13_19", "mask2former"):
            step = np.arange(0, 400, 5)
            loss = 3 + 9 * np.exp(-step / 90) + random.normal(0, 0.6, len(step))
            pd.DataFrame({"step": step, "loss": loss, "lr": 1e-4}).to_csv(folder / f"curves_{name}.csv", index=False)
        quality = [
            (source, "a150", group, metric, 0.4 + 0.06 * i + 0.03 * random.standard_normal())
            for i, source in enumerate(NETWORKS)
            for group in GROUPS
            for metric in ("AR100", "mean_best_iou")
        ]
        columns = ["source", "dataset", "group", "metric", "value"]
        pd.DataFrame(quality, columns=columns).to_csv(folder / "proposal_quality.csv", index=False)
        words = [(pair, word, a + random.normal()) for pair, words in WORDS.items() for word, a in words.items()]
        asked = pd.DataFrame(words, columns=["pair", "word", "accuracy"]).assign(chance=50.0, trained=False)
        asked[["pair", "word", "chance", "trained", "accuracy"]].to_csv(folder / "attributes.csv", index=False)
        for stage, seconds in (("02_proposals", 320 + seed), ("03_baselines", 60), ("04_maskclip", 240)):
            (times / f"{seed}-{stage}.csv").write_text(f"stage,seconds,peak_gb\n{seed}-{stage},{seconds},1.9\n")
    costs = [
        (method, metric, 100, "ViT-L-14-336", 336, value)
        for method, pair in COSTS.items()
        for metric, value in zip(("tflops", "time_s"), pair)
        if value
    ]
    columns = ["method", "metric", "masks", "model", "resolution", "value"]
    pd.DataFrame(costs, columns=columns).to_csv(results / "efficiency.csv", index=False)
    return results


def _scores() -> list[tuple]:
    """(method, proposals, data set, metric, value) of every number that the paper prints of a method of the study."""
    return [
        (method.trained_as, method.network, *TABLES[number].columns[column], value)
        for method in METHODS.values()
        for number in method.tables
        for column in TABLES[number].columns
        if number != 6 and (value := paper_number(number, method.id, column)) > 0
    ]
