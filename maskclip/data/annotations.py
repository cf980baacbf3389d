"""What annotation files must hold, checked field by field before anything is read by them."""

import reprlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskclip.data.types import Category

LARGEST = 65534  # id of a category; 65535 is void


class Rule(NamedTuple):
    """What a field of the JSON must be. pydantic says the same, and reads COCO's 860,000 annotations in two thirds of
    the time, but in twice the memory."""

    fits: Callable[[Any], bool]
    wanted: str
    optional: bool = False


TEXT = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a text that is not blank")
FLAG = Rule(lambda v: v in (0, 1), "0 or 1", optional=True)  # not "0", which would count as true
CATEGORY_ID = Rule(lambda v: type(v) is int and 0 <= v <= LARGEST, f"a whole number from 0 to {LARGEST}")


def listed(known: Container) -> Rule:
    """The rule of an id that refers to an image or a category of the same file."""
    return Rule(lambda v: type(v) in (int, str) and v in known, "one that the file lists")


def check(entries: list, rules: dict[str, Rule], where: Path | str, what: str, key: str = "id") -> None:
    """ValueError, naming the file and the entry by its `key`, unless all entries' fields follow the rules."""
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: {what} number {i} is {reprlib.repr(entry)}, but must have {', '.join(rules)}.")
        for field, rule in rules.items():
            if not (rule.fits(entry[field]) if field in entry else rule.optional):
                label = reprlib.repr(entry[key]) if key in entry else f"number {i}"
                got = f"the {field} {reprlib.repr(entry[field])}" if field in entry else f"no {field}"
                raise ValueError(f"{where}: {what} {label} has {got}, which must be {rule.wanted}; correct it.")


def check_alike(entries: Iterable[dict], fields: Sequence[str], where: Path | str, what: str) -> None:
    """ValueError where an entry lacks one of the `fields` that others have: what it would say changes the metrics."""
    having, lacking = set[str](), dict[str, dict]()
    for entry in entries:
        for field in fields:
            if field in entry:
                having.add(field)
            else:
                lacking.setdefault(field, entry)
    for field in fields:
        if field in having and field in lacking:
            label = reprlib.repr(lacking[field].get("id", "without an id"))
            raise ValueError(f"{where}: {what} {label} lacks the {field} that others have; take the owner's own file.")


def index_by(entries: list[dict], key: str, where: Path | str) -> dict:
    """Entries by their `key`, each of which must occur once."""
    indexed = {entry[key]: entry for entry in entries}
    if len(indexed) < len(entries):
        value = Counter(entry[key] for entry in entries).most_common(1)[0][0]
        raise ValueError(f"{where}: {key} {value!r} occurs more than once; keep one entry of each.")
    return indexed


def read_categories(entries: list[dict], path: Path) -> list[Category]:
    """Categories from JSON entries {"id", "name", "isthing" (default 1)}; ids must differ, and so must names."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path}: there is no list of categories {{"id", "name"}} in it, or an empty one; give one.')
    check(entries, {"id": CATEGORY_ID, "name": TEXT, "isthing": FLAG}, path, "category")
    for key in ("id", "name"):
        index_by(entries, key, f"{path}, categories")
    return [Category(e["id"], e["name"], bool(e.get("isthing", 1))) for e in entries]
