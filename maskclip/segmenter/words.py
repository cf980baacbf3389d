"""A user's words: classes with synonyms, what to count one by one, templates, and the words for all else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches

# What is not counted one by one, by its last word: "green grass" is grass. COCO's and ADE20K's stuff, in plain words.
STUFF = frozenset(
    "background beach brick bush ceiling cloud concrete counter dirt earth fence field floor foliage fog forest grass "
    "gravel ground hill ice lake land lawn leaves metal mountain mud net ocean path pavement plaster platform pool "
    "railroad railway rain river road rock roof rug runway sand sea sidewalk sky smoke snow soil stone street tile "
    "track tree trees vegetation wall water wood".split()
)
# Names for what a user does not ask for, where a CLIP does not come with a list of its own.
OTHERS = (
    "background", "wall", "floor", "ceiling", "sky", "cloud", "grass", "tree", "plant", "water", "road", "sand", "snow",
    "rock", "mountain", "building", "fence", "furniture", "curtain", "person", "clothes", "animal", "vehicle", "food",
    "tool", "text", "shadow",
)  # fmt: skip
# ViLD's 14 (Gu et al., ICLR 2022); "80" are CLIP's own for ImageNet, which open_clip holds.
_PLAIN = ("There is a {} in the scene.", "a photo of a {}.", "This is a photo of a {}.")
_SIZED = (template.replace("{}", f"{size} {{}}") for size in ("small", "medium", "large") for template in _PLAIN)
VILD_TEMPLATES = ("There is the {} in the scene.", "a photo of a {} in the scene.", *_PLAIN, *_SIZED)


@dataclass(frozen=True)
class Vocabulary:
    """Classes, each with its names, the first of which it is called by, and whether it is counted one by one."""

    synonyms: tuple[tuple[str, ...], ...]
    isthing: tuple[bool, ...]

    @property
    def labels(self) -> list[str]:
        """Each class's first name."""
        return [names[0] for names in self.synonyms]

    @property
    def names(self) -> list[str]:
        """All names, class by class."""
        return [name for names in self.synonyms for name in names]


def read_words(words: Iterable[str], things: Iterable[str] | None = None, stuff: Collection[str] = STUFF) -> Vocabulary:
    """Classes of a list of words, in which "lawn | grass" is one class with two names.

    things: the words to count one by one; None: all but those whose last word is among `stuff`.

    Raises:
        ValueError: no list of texts, an empty text, a name twice, or a thing that is none of the words.
    """
    if isinstance(words, Iterable) and not isinstance(words, str | Set | Mapping):  # which have no order, or more
        words = [str(word) if isinstance(word, str) else word for word in words]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"words must be a list of texts, such as ['dog', 'lawn | grass'], not {words!r:.100}")
    synonyms = [_names(word) for word in words]
    names = [name.lower() for one in synonyms for name in one]
    if "" in names:
        raise ValueError(f"one of the words {list(words)!r:.100} is empty; give each a text")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(map(repr, twice))} stands twice among the words; say it once")
    if things is None:
        isthing = [not any(is_stuff(name, stuff) for name in one) for one in synonyms]
    else:
        if not isinstance(things, Iterable):
            raise ValueError(f"things must be a list of some of the words, not {things!r:.100}")
        wanted, known = [things] if isinstance(things, str) else list(things), set(names)
        if unknown := [one for one in wanted if not isinstance(one, str) or not known.issuperset(_names(one.lower()))]:
            raise ValueError(f"things has {', '.join(map(repr, unknown))}, which is none of the words")
        lower = {name for thing in wanted for name in _names(thing.lower())}
        isthing = [any(name.lower() in lower for name in one) for one in synonyms]
    return Vocabulary(tuple(synonyms), tuple(isthing))


def _names(word: str) -> tuple[str, ...]:
    """The names that | joins, each with single spaces."""
    return tuple(" ".join(name.split()) for name in word.split("|"))


def is_stuff(name: str, stuff: Collection[str] = STUFF) -> bool:
    """A name, or its last word, is among the words of stuff."""
    return not {name.lower(), name.lower().split()[-1]}.isdisjoint(stuff)


def check_known(vocabulary: Vocabulary, known: Iterable[str]) -> None:
    """All words of all names are among those that a small CLIP has learned.

    Raises:
        ValueError: the names of which it has not, each with the nearest known.
    """
    names = sorted(set(known))
    learned = {word for name in names for word in name.lower().split()}
    unknown = [name for name in vocabulary.names if not set(name.lower().split()) <= learned]
    told = []
    for name in unknown:
        near = get_close_matches(name.lower(), names, 3, 0.5)
        told.append(f"{name!r}" + (f" (nearest: {', '.join(near)})" if near else ""))
    if told:
        raise ValueError(
            f"this CLIP has never learned {', '.join(told)}; it knows {len(names)} names, Segmenter.known_words lists "
            "them (for all words: Segmenter.load('ViT-L-14-336'))"
        )


def templates_of(name: str | Sequence[str]) -> tuple[str, ...]:
    """Templates by the name under which the literature knows them, "none", "14" or "80", or a list of one's own.

    Raises:
        ValueError: an unknown name, or no list of texts with {}.
    """
    if name == "80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    named = {"none": ("{}",), "14": VILD_TEMPLATES}
    own = tuple(name) if isinstance(name, Iterable) and not isinstance(name, str) else ()
    found = named.get(name, ()) if isinstance(name, str) else own
    if not found or not all(isinstance(one, str) and "{}" in one for one in found):
        raise ValueError(
            f"templates are {name!r:.100}; take 'none', '14' (ViLD's), '80' (CLIP's), or a list of texts with {{}}"
        )
    return found
