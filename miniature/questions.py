"""The paper's questions to ask of pictures (Figs. 5 and 7): full or empty, car or truck, four legs or two, colours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from maskclip.proposals import Proposals
from miniature.drawings import sprites
from miniature.painting import bank_of, paint, to_uint8
from miniature.scenes import GROUNDS, Scene, arrange, random_ground, sticker_of
from miniature.words import ARTISTS, hypernyms

if TYPE_CHECKING:
    from maskclip.model.pipeline import MaskCLIP


@dataclass(frozen=True)
class Question:
    """Words to choose from; for each word the things that it is true of, and a colour if the word says one."""

    title: str
    place: str
    answers: dict[str, tuple[str, ...]]
    colours: tuple[str, ...] = ()


def questions() -> tuple[Question, ...]:
    """All questions, with chance at one over the number of words."""
    legs = {f"{number}-legged animal": hypernyms()[f"{number}-legged animal"] for number in ("four", "two")}
    fruit = {"red": "red apple", "green": "green apple"}
    cars = {"blue": "blue car", "red": "red car", "yellow": "yellow car"}
    return (
        Question("full or empty glass", "table", {"full glass": ("glass",), "empty glass": ("empty glass",)}),
        Question(
            "full or empty wine glass",
            "table",
            {"full wine glass": ("wine glass",), "empty wine glass": ("empty wine glass",)},
        ),
        Question("car, truck or van", "street", {"car": ("car",), "truck": ("truck",), "van": ("van",)}),
        Question("four legs or two", "field", legs),
        Question("horse, cow or dog", "field", {"horse": ("horse",), "cow": ("cow",), "dog": ("dog",)}),
        Question("red or green apple", "table", {word: ("apple",) for word in fruit.values()}, tuple(fruit)),
        Question("blue, red or yellow car", "street", {word: ("car",) for word in cars.values()}, tuple(cars)),
    )


def question_scene(
    question: Question, seed: int, artist: str, style: str, size: tuple[int, int] = (128, 160)
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A picture with one thing for each answer that the artist has drawn, side by side where the question belongs.

    Returns:
        image uint8 [H, W, 3]; which answer each pixel shows, int [H, W], -1 none; the answers.
    """
    rng = np.random.default_rng([seed, 17])
    known = sprites().variants[artist]
    stickers, answers = [], []
    for i, (word, held) in enumerate(question.answers.items()):
        drawn = [name for name in held if known.get(name)]
        if drawn:
            colour = question.colours[i] if question.colours else None
            one = sticker_of(rng, str(rng.choice(drawn)), artist, colour)
            stickers.append(replace(one, size=float(rng.uniform(0.38, 0.5))))
            answers.append(word)
    unit = min(size)
    order = arrange(rng, stickers, question.place, size[1] / unit, size[0] / unit)
    ground, centres, banded = random_ground(rng, question.place if question.place in GROUNDS else None)
    scene = Scene(style, ground, centres, tuple(order), int(rng.integers(2**31)), banded)
    picture, owner, _ = (out[0] for out in paint([scene], bank_of(max(size)), *size))
    which = [
        next(k for k, s in enumerate(stickers) if (s.name, s.colour, s.shade) == (o.name, o.colour, o.shade))
        for o in order
    ]
    return to_uint8(picture), torch.tensor([*which, -1])[owner].numpy(), answers


def ask(model: MaskCLIP, question: Question, seeds: range, style: str = "print") -> list[dict]:
    """How often each thing gets its own word, only the question's words to choose from; masks are the scenes' own.

    Returns:
        Rows of question, word, percent right with the half width of its 95 % interval, things, chance in percent.
    """
    right: dict[str, list[bool]] = {word: [] for word in question.answers}
    words = list(question.answers)
    able = [
        a for a in ARTISTS if all(any(sprites().variants[a].get(n) for n in held) for held in question.answers.values())
    ]
    for seed in seeds:
        image, owner, answers = question_scene(question, seed, able[seed % len(able)], style)
        for i, word in enumerate(answers):
            mask = torch.from_numpy(owner == i)
            if mask.any():  # not where another thing hides it
                proposal = Proposals(torch.where(mask, 10.0, -10.0)[None], torch.ones(1))
                right[word].append(words[int(model(image, words, proposal).class_probs.argmax())] == word)
    rows = []
    for word, hits in right.items():
        share = float(np.mean(hits))
        half = 196 * (share * (1 - share) / len(hits)) ** 0.5
        rows.append(
            {
                "question": question.title,
                "word": word,
                "accuracy": 100 * share,
                "half_width": half,
                "things": len(hits),
                "chance": 100 / len(words),
            }
        )
    return rows
