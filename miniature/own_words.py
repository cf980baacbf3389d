"""Scenes for words a user would type (Figs. 5 and 7, claim C18): the same thing filled and outlined, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from maskclip.proposals import Proposals
from miniature.pictographs import PAIRS, THINGS
from miniature.scenes import COLOURS, render_scene
from miniature.textures import STUFF

if TYPE_CHECKING:
    from maskclip.model.pipeline import MaskCLIP

WORD_PAIRS = tuple((f"filled {name}", f"outlined {name}") for name in PAIRS)


def pair_scene(
    pair: tuple[str, str], seed: int, others: int = 2, domain: str = "pencil"
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A picture with both things of a pair in one colour, `others` more things, and a stuff region.

    Returns:
        image uint8 [H, W, 3]; the segment of every pixel, int [H, W]; the segments' names, the pair's among them.
    """
    rng = np.random.default_rng([seed, 17])
    rest = [name for name in THINGS if name not in pair]
    names = [*pair, *rng.choice(rest, others, replace=False).tolist(), str(rng.choice(STUFF))]
    colours = [str(rng.choice(list(COLOURS)))] * 2 + rng.choice(list(COLOURS), others).tolist()
    return render_scene(names, domain, seed=int(rng.integers(2**31)), colours=colours)


def pair_accuracy(model: MaskCLIP, pair: tuple[str, str], seeds: Iterable[int]) -> list[dict]:
    """How often each word of a pair is given to its own thing, with only the two words to choose from (chance: 50 %).

    Masks are the scenes' own, so that only naming is measured. One row per word: pair, word, percent right, things.
    """
    right: dict[str, list[bool]] = {word: [] for word in pair}
    for seed in seeds:
        image, segments, names = pair_scene(pair, seed)
        for word in pair:
            mask = torch.from_numpy(segments == names.index(word))
            if mask.any():  # not where another thing hides it
                proposal = Proposals(torch.where(mask, 10.0, -10.0)[None], torch.ones(1))
                best = int(model(image, pair, proposal).class_probs.argmax())
                right[word].append(pair[best] == word)
    return [
        {"pair": " / ".join(pair), "word": word, "accuracy": 100 * float(np.mean(hits)), "things": len(hits)}
        for word, hits in right.items()
    ]
