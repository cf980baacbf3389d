"""A training killed in the middle and started again, for every network that promises to survive it."""

from pathlib import Path
from typing import Any

import pytest

import maskclip.training.proposal_networks as training
from maskclip.training.proposal_networks import train_proposals


def whole_and_resumed(
    name: str, dataset: Any, config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> tuple[Path, Path]:
    """Train once undisturbed and once killed at `step` and resumed; the two folders, whose files must be the same."""
    whole = train_proposals(name, dataset, config, folder / "whole", 1, device="cpu", progress=False)
    undisturbed = training.learning_rate

    def dies(number: int, settings: Any) -> float:
        if number == step:
            raise KeyboardInterrupt
        return undisturbed(number, settings)

    monkeypatch.setattr(training, "learning_rate", dies)
    with pytest.raises(KeyboardInterrupt):
        train_proposals(name, dataset, config, folder / "cut", 1, device="cpu", progress=False)
    monkeypatch.undo()
    cut = folder / "cut"
    assert (cut / "checkpoint.pt").is_file() and not (cut / "record.json").exists()
    train_proposals(name, dataset, config, cut, 1, device="cpu", progress=False)
    for file in ("network.safetensors", "curves.csv"):
        assert (whole / file).read_bytes() == (cut / file).read_bytes()
    assert not (cut / "checkpoint.pt").exists()
    return whole, cut
