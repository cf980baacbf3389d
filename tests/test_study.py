"""The quick study at smoke size: drawn, trained from its committed weights, scored, shown."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from study_copy import copy_study, run

SMALL = {
    "data": {"world": {"coco_train": 24, "coco_val": 6, "ade": 6, "pascal": 6, "lvis": 6}},
    "proposals": {"mask2former": {"training": {"steps": 6, "checkpoint_every": 2}}},
    "maskclip": {"steps": 5, "checkpoint_every": 1, "points": 128},
    "evaluation": {"limit": 2},  # fewer than the notebooks show, were there more
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main row, and the pictures, in a copy of the repository."""
    folder = copy_study(tmp_path_factory.mktemp("study") / "copy", params={"seeds": [3]}, mini=SMALL)
    run(folder, "dvc", "repro", "maskclip@3-maskclip", "pictures@3")
    return folder


def test_the_main_row_is_scored(study: Path) -> None:
    rows = pd.read_csv(study / "results/mini/3/maskclip.csv")
    assert set(rows.method) == {"maskclip"} and set(rows.dataset) >= {"a150", "a847", "p59", "p459", "lvis"}
    assert rows.seed.eq(3).all() and rows.profile.eq("mini").all()
    assert rows.value.dropna().between(0, 100).all()


def test_questions_are_asked_and_pictures_drawn(study: Path) -> None:
    asked = pd.read_csv(study / "results/mini/3/attributes.csv")
    assert asked.accuracy.between(0, 100).all() and asked.pair.nunique() > 5
    drawn = {picture.stem for picture in (study / "results/mini/3/figures").glob("*.png")}
    assert drawn >= {"panoptic", "fig1_pipeline", "fig2_rma", "fig6_baseline", "refinement", "questions", "own_words"}
