"""The miniature's words and drawings: the data sets' own names, three artists, nothing twice."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from miniature import drawings, words
from miniature.drawings import PACKAGES, Package, check_packages, sprites


def test_as_many_words_as_the_study_asks_for() -> None:
    assert len(words.things()) >= 300 and len(words.stuff()) >= 30
    sizes = {name: len(words.vocabulary(name).names) for name in words.SETS}
    assert sizes["ade150"] >= 90 and sizes["p59"] >= 40 and sizes["ade847"] >= 200 and sizes["lvis"] >= 200
    assert len(words.vocabulary("coco").things) >= 65
    drawn_twice = [t for t in words.things().values() if sum(map(bool, t.drawings.values())) >= 2]
    assert len(drawn_twice) >= 250


def test_cocos_split_is_whole() -> None:
    base, target = words.coco_split()
    assert (len(base), len(target)) == (48, 17) and not set(base) & set(target)
    assert {*base, *target} <= set(words.vocabulary("coco").things)


def test_every_name_is_of_one_drawing_only() -> None:
    names = [n for t in words.things().values() for n in t.names] + [n for s in words.stuff().values() for n in s]
    assert len(names) == len(set(names))
    glyphs = [d for t in words.things().values() for artist in t.drawings.values() for d in artist]
    assert len(glyphs) == len(set(glyphs))


def test_every_set_is_drawn_by_its_own_artist_alone() -> None:
    artist = {"coco": "nora", "lvis": "nora", "ade150": "max", "ade847": "max", "p59": "faye", "p459": "faye"}
    for dataset, name in artist.items():
        known = words.vocabulary(dataset)
        drawn = [w for w in [*known.things.values(), *known.stuff.values()] if w in words.things()]
        assert drawn and all(words.things()[w].drawings[name] for w in drawn)
    by_artist = {a: {d for t in words.things().values() for d in t.drawings[a]} for a in words.ARTISTS}
    assert not any(one & other for one, other in combinations(by_artist.values(), 2))


def test_no_two_words_look_the_same() -> None:
    """The nearest two drawings of different words differ, but for a glass that is full or empty."""
    bodies, owners = [], []
    for by_thing in sprites().variants.values():
        for name, rows in by_thing.items():
            bodies += [(sprites().levels[24][row, 1:]).flatten().numpy() for row in rows]
            owners += [name] * len(rows)
    flat = np.stack(bodies)
    for i in range(len(flat)):
        far = np.abs(flat - flat[i]).mean(1)
        far[[o.removeprefix("empty ")[:8] == owners[i].removeprefix("empty ")[:8] for o in owners]] = 1
        assert far.min() > 0.02, f"{owners[i]} looks like {owners[int(far.argmin())]}"


def test_common_words_are_common_and_the_tail_is_long() -> None:
    often = words.frequency()
    assert often["car"] > 2.5 * often["fox"]
    assert sorted(often.values())[len(often) // 2] < 0.6


def test_hypernyms_hold_what_they_should() -> None:
    held = words.hypernyms()
    assert {"dog", "bird", "fish"} <= set(held["animal"]) and "car" in held["vehicle"] and "apple" in held["food"]
    assert "dog" in held["four-legged animal"] and "chicken" in held["two-legged animal"]
    assert not set(held) & {n for t in words.things().values() for n in t.names}


def test_a_missing_drawing_is_named_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {n: c for n, c in drawings._names("material").items() if n != "fountain"}
    real = drawings._names
    monkeypatch.setattr(drawings, "_names", lambda package: without if package == "material" else real(package))
    with pytest.raises(
        ValueError, match=r"has no drawing 'fountain' \(of fountain\): pip install 'fonticon-mat.*==7\.2\.96"
    ):
        check_packages()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "noto", Package("no-such-fonts", "1.0", "a.ttf", "none"))
    drawings._names.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"no-such-fonts are not installed: pip install 'no-such-fonts==1.0"):
        check_packages()
    drawings._names.cache_clear()


def test_rim_holds_body_holds_ink() -> None:
    for size, level in sprites().levels.items():
        assert level.shape[1:] == (3, size, size)
        rim, body, ink = level.unbind(1)
        assert (body <= rim + 1e-3).float().mean() > 0.999 and (ink <= body + 1e-3).float().mean() > 0.97
        assert rim.flatten(1).mean(1).min() > 0.03
