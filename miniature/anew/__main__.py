"""Makes the miniature's models from nothing, one at a time, each resumable after a kill.

    python -m miniature.anew clip OUT WORK
    python -m miniature.anew backbone OUT WORK
    python -m miniature.anew mask2former OUT WORK
    python -m miniature.anew mask_rcnn OUT WORK

OUT receives the weights, the curve (`*.csv`) and a card (`README.md`) with seed, cost and what was measured; WORK holds
checkpoints.
"""

from __future__ import annotations

import csv
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from maskclip.model.clip import load_clip
from miniature.anew.clip_training import train_clip
from miniature.anew.measuring import name_true_masks, unseen_scenes, zero_shot
from miniature.anew.pretraining import pretrain
from miniature.anew.schedule import read_schedule

HERE = Path(__file__).parent


def _say(row: dict) -> None:
    print(json.dumps(row), flush=True)


def _write_curve(path: Path, log: list[dict]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, log[0], lineterminator="\n")
        rows.writeheader()
        rows.writerows(log)


def card(log: list[dict], schedule_text: str, seed: int, singles: list[dict], masks: list[dict]) -> str:
    """The mini CLIP's card: how it was made, what it cost, how well it names."""
    lines = [
        "# Mini CLIP",
        "",
        "Trained from random weights by one command, `python -m miniature.anew clip OUT WORK`.",
        "",
    ]
    lines += ["| single things, zero-shot | top-1 over all names | pictures |", "|---|---|---|"]
    lines += [f"| {r['attribute']}: {r['value']} | {r['accuracy']:.1f} % | {r['pictures']} |" for r in singles]
    lines += ["", "| true masks in unseen scenes | named right | segments |", "|---|---|---|"]
    lines += [f"| {r['method']}, {r['group']} | {r['accuracy']:.1f} % | {r['segments']} |" for r in masks]
    last = log[-1]
    made = f"torch {version('torch')}, open_clip {version('open_clip_torch')}, {platform.machine()}"
    lines += ["", f"Seed {seed}, {last['step']} steps, {last['seconds'] / 60:.0f} minutes of one core ({made})."]
    return "\n".join([*lines, "", "The schedule:", "", "```yaml", schedule_text.strip(), "```", ""])


def make_clip(out: Path, work: Path, plan: Path = HERE / "clip.yaml", scenes: int = 90) -> None:
    """Train the mini CLIP, measure it on pictures never trained on, and write curve and card."""
    schedule = read_schedule(plan)
    log = train_clip(out, work, schedule, _say)
    _write_curve(out / "training.csv", log)
    clip = load_clip(out)
    singles, masks = zero_shot(clip), name_true_masks(clip, unseen_scenes(1, scenes))
    measured = {"seed": schedule.seed, "seconds": log[-1]["seconds"], "single things": singles, "true masks": masks}
    (out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    (out / "README.md").write_text(card(log, plan.read_text(), schedule.seed, singles, masks))


def main() -> None:
    """Make the model that the command line names."""
    if len(sys.argv) != 4 or sys.argv[1] not in ("clip", "backbone", "mask2former", "mask_rcnn"):
        raise SystemExit(__doc__)
    name, out, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.use_deterministic_algorithms(True, warn_only=True)
    work.mkdir(parents=True, exist_ok=True)
    if name == "clip":
        make_clip(out, work)
    else:
        pretrain(name, HERE / "pretraining.yaml", out, work, _say)


if __name__ == "__main__":
    main()
