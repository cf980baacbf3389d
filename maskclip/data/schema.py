"""What annotation files must hold. pydantic reads and checks them in one pass, faster than `json` alone reads them."""

from __future__ import annotations

import codecs
import reprlib
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from maskclip.data.types import Category


@dataclass(frozen=True)
class Must:
    """What a field must be, in words for the error."""

    be: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        words = f"it must be {self.be}"
        return core_schema.custom_error_schema(handler(source), custom_error_type="must", custom_error_message=words)


Whole = Annotated[int, Must("a whole number")]
Side = Annotated[int, Field(gt=0), Must("a whole number of pixels")]
Text = Annotated[str, Field(pattern=r"\S"), Must("a text that is not blank")]
Names = Annotated[list[str], Must("a list of names")]
Flag = Annotated[Literal[0, 1] | bool, Must("0 or 1")]  # not "0", which would count as true
Area = Annotated[float, Field(ge=0, allow_inf_nan=False), Must("a number of pixels")]
SegmentId = Annotated[int, Field(gt=0, lt=1 << 24), Must("a whole number from 1 (0 is void) to 16777215")]
FileName = Annotated[str, Field(pattern=r"^[^/\\]*[^/\\\s][^/\\]*$")]
ImageId = Annotated[int | FileName, Must("a whole number or a text without slashes")]  # it names files of predictions
Coordinate = Annotated[float, Field(gt=-1e5, lt=1e5)]  # pycocotools' memory grows with the length of a polygon's sides
Run = Annotated[int, Field(ge=0)]


class RunLengths(TypedDict):
    size: tuple[int, int]
    counts: list[Run] | str


Segmentation = Annotated[
    list[list[Coordinate]] | RunLengths,
    Must('polygons, [[x, y, x, y, ...], ...] near the picture, or a run-length code, {"size", "counts"}'),
]


class CategoryEntry(TypedDict):
    id: Whole
    name: Text
    isthing: NotRequired[Flag]


class SplitFile(TypedDict):
    base: Names
    target: Names


class ImageEntry(TypedDict):
    id: ImageId
    height: Side
    width: Side
    file_name: NotRequired[Text]
    coco_url: NotRequired[Text]  # LVIS has nothing else
    neg_category_ids: NotRequired[list[int]]  # LVIS: looked for, not there
    not_exhaustive_category_ids: NotRequired[list[int]]  # LVIS: not all are marked


class SegmentEntry(TypedDict):
    id: SegmentId
    category_id: Whole
    iscrowd: NotRequired[Flag]
    area: NotRequired[Area]


class PanopticEntry(TypedDict):
    image_id: ImageId
    file_name: Text
    segments_info: list[SegmentEntry]


class InstanceEntry(TypedDict):
    id: NotRequired[Any]
    image_id: ImageId
    category_id: Whole
    segmentation: Segmentation
    iscrowd: NotRequired[Flag]
    area: NotRequired[Area]


class _File(TypedDict):
    categories: list[CategoryEntry]
    images: list[ImageEntry]


class PanopticFile(_File):
    annotations: list[PanopticEntry]


class InstanceFile(_File):
    annotations: list[InstanceEntry]


def read_json(path: Path, kind: Any) -> Any:
    """The fields of `kind` in a JSON file.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no JSON or of another kind; the sentence names
            the first wrong place, as jq would: `annotations[0].category_id`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the data folder against docs/data.md.")
    try:
        return _adapter(kind).validate_json(path.read_bytes().removeprefix(codecs.BOM_UTF8), strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
    if wrong["type"] == "json_invalid":
        raise ValueError(f"{path} is no whole JSON file ({wrong['ctx']['error']}); fetch or write it again.")
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in wrong["loc"]).lstrip(".")
    if wrong["type"] == "missing":
        raise ValueError(f"{path}: {place} is missing; add it.")
    wanted = wrong["msg"].replace("Input should", "it must")
    raise ValueError(f"{path}: {place or 'it'} is {reprlib.repr(wrong['input'])}, but {wanted}; correct it.")


_adapter = cache(TypeAdapter)


def read_categories(entries: list[CategoryEntry], path: Path) -> list[Category]:
    """Categories of a file's entries; ids must differ, and so must names."""
    if not entries:
        raise ValueError(f"{path} lists no category; a data set needs at least one.")
    for what in ("id", "name"):
        index_by(entries, what, f"{path}, categories")
    return [Category(e["id"], e["name"], bool(e.get("isthing", 1))) for e in entries]


def index_by(entries: list[Any], key: str, where: Path | str) -> dict[Any, Any]:
    """Entries by their `key`, each of which must occur once."""
    indexed = {entry[key]: entry for entry in entries}
    if len(indexed) < len(entries):
        value = Counter(entry[key] for entry in entries).most_common(1)[0][0]
        raise ValueError(f"{where}: the {key} {value!r} occurs more than once; keep one entry of each.")
    return indexed


def check_listed(entries: list[Any], key: str, known: Container, where: Path | str) -> None:
    """ValueError, naming the entry, unless all entries' `key` is known."""
    for entry in entries:
        if entry[key] not in known:
            number = f" of annotation {entry['id']}" if "id" in entry else ""
            raise ValueError(f"{where}: the {key} {entry[key]!r}{number} is not listed there; add or correct it.")
