"""The paper's questions to ask of pictures (Figs. 5 and 7): full or empty, car or truck, four legs or two, colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest

from miniature.measuring import true_masks
from miniature.painting import bank_of, paint_one
from miniature.scenes import Scene, arrange, random_ground, sticker_of
from miniature.words import ARTISTS, drawn_by, hypernyms, table

if TYPE_CHECKING:
    from maskclip.model.pipeline import MaskCLIP


@dataclass(frozen=True)
class Question:
    """Words to choose from; for each word the things that it is true of, and a colour if the word says one."""

    title: str
    place: str
    answers: dict[str, tuple[str, ...]]
    colours: Sequence[str] = ()


def questions() -> tuple[Question, ...]:
    """All questions, with chance at one over the number of words."""
    out = []
    for question in table("questions.yaml"):
        answers = {
            word: tuple(name for what in held for name in hypernyms().get(what, (what,)))
            for word, held in question["answers"].items()
        }
        out.append(Question(**question | {"answers": answers}))
    return tuple(out)


def question_scene(
    question: Question, seed: int, artist: str, style: str, size: tuple[int, int] = (128, 160)
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A picture with one thing for each answer that the artist has drawn, side by side where the question belongs.

    Returns:
        image uint8 [H, W, 3]; which answer each pixel shows, int [H, W], -1 none; the answers.
    """
    rng = np.random.default_rng([seed, 17])
    stickers, answers = [], []
    for i, (word, held) in enumerate(question.answers.items()):
        if drawn := [name for name in held if name in drawn_by(artist)]:
            colour = question.colours[i] if question.colours else None
            one = sticker_of(rng, str(rng.choice(drawn)), artist, colour)
            stickers.append(replace(one, size=float(rng.uniform(0.38, 0.5))))
            answers.append(word)
    height, width = (side / min(size) for side in size)
    order = arrange(rng, stickers, question.place, width, height)
    ground = random_ground(rng, question.place)
    scene = Scene(style, ground, tuple(order), int(rng.integers(2**31)))
    image, owner, _ = paint_one(scene, bank_of(max(size)), *size)
    shades = [sticker.shade for sticker in stickers]  # which nothing changes
    return image, np.array([*(shades.index(sticker.shade) for sticker in order), -1])[owner], answers


def able(question: Question) -> list[str]:
    """The artists who have drawn something for each answer."""
    return [a for a in ARTISTS if all(set(held) & set(drawn_by(a)) for held in question.answers.values())]


def ask(model: MaskCLIP, question: Question, seeds: range, style: str = "print") -> list[dict]:
    """How often each thing gets its own word, only the question's words to choose from; masks are the scenes' own.

    Returns:
        Rows of question, word, percent right with its 95 % interval (Wilson's, `low` to `high`), things, chance in
        percent.
    """
    words = list(question.answers)
    right: dict[str, list[bool]] = {word: [] for word in words}
    artists = able(question)
    for seed in seeds:
        image, owner, answers = question_scene(question, seed, artists[seed % len(artists)], style)
        for i, word in enumerate(answers):
            if (owner == i).any():  # not where another thing hides it
                named = model(image, words, true_masks([owner == i]))
                right[word].append(words[int(named.class_probs.argmax())] == word)
    rows = []
    for word, hits in right.items():
        share = float(np.mean(hits))
        among = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")  # has a width at 100 %, too
        row = {"question": question.title, "word": word, "accuracy": 100 * share}
        row |= {"low": 100 * among.low, "high": 100 * among.high}
        rows.append(row | {"things": len(hits), "chance": 100 / len(words)})
    return rows
