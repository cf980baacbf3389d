"""Makes the miniature's models from nothing, one at a time: `python -m miniature clip OUT WORK`."""

from __future__ import annotations

import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import typer

from maskclip.device import find_device
from maskclip.evaluation.proposal_quality import ProposalQuality
from maskclip.files import check_folder, write_atomically
from maskclip.model.clip import load_clip
from maskclip.proposals import load_source
from maskclip.segmenter import Segmenter
from miniature.clip_training import train_clip
from miniature.measuring import least_similarity, name_true_masks, none_of_these, unseen_scenes, zero_shot
from miniature.pretraining import base_pictures, pretrain, read_plan
from miniature.schedule import read_schedule

HERE = Path(__file__).parent
AFTER = {
    "mask2former": ", after `backbone`",
    "mask_rcnn": ", after `backbone`",
    "maskclip": ", after `clip` and `mask2former`",
}
NONE = {"right": "of those asked for, named right, %", "wrong": "of the others, named, %"}


def _table(rows: list[dict], what: dict[str, str]) -> list[str]:
    """Rows as a Markdown table; `what` gives the columns' titles by key."""
    frame = pd.DataFrame(rows)[list(what)].rename(columns=what)
    return ["", frame.to_markdown(index=False, floatfmt=".1f"), ""]


@contextmanager
def _clocked(work: Path) -> Iterator[Callable[[], float]]:
    """Minutes of one core spent so far, earlier sittings counted in: what ends a sitting writes them down."""
    file, began = work / "minutes.json", time.process_time()
    try:
        earlier = float(json.loads(file.read_text())) if file.exists() else 0.0
    except (ValueError, TypeError):
        raise ValueError(f"{file} holds no number; delete it, and its minutes are not counted") from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def minutes() -> float:
        return earlier + (time.process_time() - began) / 60

    try:
        yield minutes
    finally:
        write_atomically(file, json.dumps(minutes()))


CARD = """# {title}

Trained from nothing by one command, `python -m miniature {name} OUT WORK`{after}.
{tables}
Seed {seed}; {minutes:.0f} minutes of one core ({made}).

The plan:

```yaml
{plan}
```
"""


def card(title: str, name: str, plan: Path, seed: int, minutes: float, tables: list[str]) -> str:
    """A model's card: how it was made, what it cost, how good it is."""
    packages = (f"{package} {version(package)}" for package in ("torch", "open_clip_torch", "transformers"))
    made, text = ", ".join((platform.machine(), *packages)), plan.read_text(encoding="utf-8").strip()
    return CARD.format(
        title=title,
        name=name,
        tables="\n".join(tables),
        seed=seed,
        minutes=minutes,
        made=made,
        plan=text,
        after=AFTER.get(name, ""),
    )


def make_clip(
    out: Path, work: Path, plan: Path = HERE / "clip.yaml", scenes: int = 90, device: str = "cpu", painters: int = 0
) -> None:
    """Train the mini CLIP, measure it on pictures never trained on, and write curve and card."""
    schedule = read_schedule(plan)
    log = train_clip(out, work, schedule, lambda row: print(json.dumps(row), flush=True), device, painters)
    pd.DataFrame(log).to_csv(out / "training.csv", index=False)
    describe_clip(out, plan, scenes, log[-1]["seconds"] / 60)


def describe_clip(out: Path, plan: Path, scenes: int, minutes: float) -> None:
    """Measure a trained mini CLIP, choose its threshold for "none of these", and write its card."""
    clip, seed = load_clip(out), read_schedule(plan).seed
    singles, masks = zero_shot(clip), name_true_masks(clip, unseen_scenes(1, scenes))
    segmenter = Segmenter.load(out, proposals=lambda images: [], device="cpu")
    least = least_similarity(none_of_these(segmenter, unseen_scenes(2, scenes)))
    known = json.loads((out / "words.json").read_text()) | {"least_similarity": least}
    (out / "words.json").write_text(json.dumps(known, indent=1) + "\n")
    rows = none_of_these(segmenter, unseen_scenes(3, scenes))
    none = [row for row in rows if not row["threshold"] > 0 or row["threshold"] == least]
    measured = {"seed": seed, "minutes": minutes, "single things": singles, "true masks": masks, "none": none}
    (out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    titles = {"accuracy": "named right, %"}
    tables = _table(singles, {"attribute": "single things", "value": ""} | titles | {"pictures": "pictures"})
    tables += _table(none, {"way": "masks in unseen scenes, half of their names asked for"} | NONE)
    tables += _table(masks, {"method": "true masks in unseen scenes", "group": ""} | titles | {"segments": "segments"})
    (out / "README.md").write_text(card("Mini CLIP", "clip", plan, seed, minutes, tables))


def make_network(name: str, out: Path, work: Path, plan: Path = HERE / "pretraining.yaml", pictures: int = 60) -> None:
    """Train a backbone or a proposal network's start, measure it on pictures never trained on; curve and card."""
    seed = read_plan(plan).seed_of(name)
    with _clocked(work) as minutes:
        weights, curve = pretrain(name, plan, out, work)
    pd.DataFrame(curve).to_csv(out / f"{name}.csv", index=False)
    if name == "backbone":
        rows = [curve[-1] | {"accuracy": 100 * curve[-1]["accuracy"]}]
        what = {"step": "steps", "accuracy": "single things named right in training, %"}
    elif name == "maskclip":
        rows, what = [curve[0], curve[-1]], {key: key for key in ("step", "loss", "loss_ce", "loss_dice", "loss_bce")}
    else:
        unseen = base_pictures(seed + 1, pictures)
        quality, source = ProposalQuality(unseen.categories, unseen.names), load_source(weights)
        for sample in unseen:
            quality.update(source([sample.image])[0], sample)
        rows = [row | {"value": 100 * row["value"]} for row in quality.compute()]
        what = {"group": "unseen pictures", "metric": "", "value": "%", "segments": "segments"}
    title = "Mini MaskCLIP" if name == "maskclip" else f"Start of {name}"
    text = card(title, name, plan, seed, minutes(), _table(rows, what))
    (out / f"{name}.md").write_text(text)


def main(
    model: Literal["clip", "backbone", "mask2former", "mask_rcnn", "maskclip"],
    out: Path,
    work: Path,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="of the mini CLIP")] = "cpu",
    painters: Annotated[int, typer.Option(help="processes that paint the mini CLIP's pictures ahead")] = 0,
) -> None:
    """Make a model of the miniature from nothing; killed, it goes on from the last checkpoint in WORK.

    OUT receives the weights, the curve (*.csv) and a card (*.md) with seed, cost and what was measured. The mini CLIP
    trains on a GPU too: --device cuda --painters 14.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        check_folder(work).mkdir(parents=True, exist_ok=True)
        if model == "clip":
            make_clip(out, work, device=find_device(device), painters=painters)
        else:
            make_network(model, out, work)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    typer.run(main)
