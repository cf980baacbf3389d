"""Is the data right? Every fault of every set at once, before a GPU is paid for: `maskclip check DIR`."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maskclip.data.datasets import DATASETS, DatasetEntry, find_entry, open_dataset, place_of, read_left_out
from maskclip.data.images import read_labels, read_size
from maskclip.data.types import Dataset

SAMPLE = 200  # annotations that are read where not all are, spread over the set
LEAST_LEFT_OUT = 10  # images that may be damaged; of large sets one in a hundred
NAMED = 3  # of faults of one kind


@dataclass(frozen=True)
class Published:
    """What the owners of a data set say, and where they publish it."""

    pictures: tuple[int, ...]  # one of these
    things: int
    stuff: int
    prepare: str  # the set's name for `maskclip prepare`; empty: it makes none
    where: str
    licence: str


_COCO = ("coco", "cocodataset.org", "annotations CC BY 4.0, pictures as on Flickr")
_ADE = ("ade20k", "sceneparsing.csail.mit.edu", "BSD 3-clause, research and education")
_PASCAL = ("pascal-context", "host.robots.ox.ac.uk/pascal/VOC and cs.stanford.edu/~roozbeh", "as on Flickr")
PUBLISHED = {
    "coco_train": Published((118287,), 80, 53, *_COCO),
    "coco_val": Published((5000,), 80, 53, *_COCO),
    "coco_split_train": Published((), 48, 0, *_COCO),
    "coco_split_val": Published((), 65, 0, *_COCO),
    "a150": Published((2000,), 100, 50, *_ADE),
    "a150_semantic": Published((2000,), 100, 50, *_ADE),
    "a150_instances": Published((2000,), 100, 0, *_ADE),
    "a847": Published((2000,), 847, 0, "ade20k-full", "groups.csail.mit.edu/vision/datasets/ADE20K", _ADE[2]),
    "p59": Published((5104, 5105), 59, 0, *_PASCAL),
    "p459": Published((5104, 5105), 459, 0, *_PASCAL),
    "lvis": Published((19809,), 1203, 0, "lvis", "lvisdataset.org", "annotations CC BY 4.0, pictures COCO's"),
}


@dataclass
class Finding:
    """What was found of one data set."""

    name: str
    pictures: int | None = None
    categories: int | None = None
    faults: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # what is wrong with pictures to do without, by their paths


def check_data(
    root: str | Path, names: Iterable[str] = DATASETS, *, published: bool = True, thorough: bool = False,
    skip_damaged: bool = False, workers: int | None = None,
) -> list[Finding]:  # fmt: skip
    """Look at data sets under `root` as docs/data.md lays them out; every fault is a sentence.

    Args:
        published: compare counts with the published ones; False for sets of one's own.
        thorough: read every picture and annotation, not only whether they are there and `SAMPLE` annotations.
        skip_damaged: a picture that is damaged or missing, or whose annotation is, is no fault but to be left out of
            all sets, as those are that were left out before and are not mended. `update_manifests` writes it down.
        workers: threads that read; None: one per processor.
    """
    options = published, thorough, skip_damaged, workers or os.cpu_count() or 1
    return [_check(find_entry(name), Path(root), *options) for name in names]


def _check(
    entry: DatasetEntry, root: Path, published: bool, thorough: bool, skip_damaged: bool, workers: int
) -> Finding:
    finding, wanted = Finding(entry.name), PUBLISHED.get(entry.name)
    finding.faults = [sentence for places in entry.places(root) if (sentence := _missing(places, root))]
    if finding.faults:
        if wanted:
            makes = f", maskclip prepare {wanted.prepare} makes it" if wanted.prepare else ""
            finding.faults[-1] += f"; {wanted.where} publishes it{makes}"
        return finding
    try:
        dataset, left_out = open_dataset(entry.name, root, whole=True), read_left_out(root)
    except (ValueError, OSError, KeyError) as error:
        finding.faults.append(str(error))
        return finding
    finding.pictures, finding.categories = len(dataset), len(dataset.categories)
    if published and wanted:
        finding.faults += _counts(dataset, wanted)
    lacking = {i: path for i in dataset.image_ids for path in dataset.files(i) if not path.is_file()}
    absent = {i: f"{path} is missing" for i, path in lacking.items()}
    there = [i for i in dataset.image_ids if i not in lacking]
    before = {i for i in there if left_out and place_of(dataset, i, root) in left_out}
    sample = before | set(there if thorough else spread(there, SAMPLE))
    chosen = [i for i in there if i in sample]
    places = {image_id: place for place, image_id in enumerate(dataset.image_ids)}

    def look(image_id: Any) -> None:
        if image_id in before or (thorough and not entry.pictures):  # else they are another set's
            dataset[places[image_id]]
            return
        with dataset.numbered(places[image_id]):
            dataset.check_size(dataset.annotation(image_id), read_size(dataset.files(image_id)[0]))

    damaged = _each(look, chosen, f"images of {entry.name}", workers)
    bad = {i: place_of(dataset, i, root) for i in absent | damaged}
    skipped = {i for i, place in bad.items() if skip_damaged or place in left_out}
    if len(skipped) > max(LEAST_LEFT_OUT, len(dataset) // 100) or (skipped and len(skipped) == len(dataset)):
        finding.faults.append(
            f"{len(skipped):,} of {len(dataset):,} images are damaged, too many to go on without; they are of another "
            "release than their annotations, or have to be fetched again"
        )
        skipped = set()
    finding.pictures -= len(skipped)
    finding.left_out = {bad[i]: said for i, said in (absent | damaged).items() if i in skipped}
    for kind, of_kind in (("files that the annotations name", absent), (f"of {len(chosen):,} images read", damaged)):
        faults = [said for i, said in of_kind.items() if i not in skipped]
        finding.faults += _few(faults, kind)
    if entry.reader.__name__ == "open_semantic_folder":
        finding.faults += _label_values(dataset, chosen)
    return finding


def _missing(wanted: list[Path], root: Path) -> str:
    """A sentence where none of the places is there, with the place where it lies instead."""
    if any(path.exists() for path in wanted):
        return ""
    parts = wanted[0].relative_to(root).parts
    tails = [Path(*parts[i:]) for i in range(max(1, len(parts) - 1))]  # with its folder, if it has one
    for pattern in (f"{depth}{tail}" for depth in ("", "*/", "*/*/") for tail in tails):
        if found := sorted(path for path in root.glob(pattern) if path not in wanted):
            return f"{wanted[0]} is missing, but {found[0]} is there, at another level; move it"
    return f"{' or '.join(map(str, wanted))} is missing"


def _counts(dataset: Dataset, wanted: Published) -> list[str]:
    faults, things = [], sum(dataset.isthing)
    kinds = (things, len(dataset.categories) - things)
    semantic_only = dataset.instances is None and wanted.stuff == 0  # names without a word on things
    if (sum(kinds) if semantic_only else kinds) != (wanted.things if semantic_only else (wanted.things, wanted.stuff)):
        cure = f"maskclip prepare {wanted.prepare}" if wanted.prepare else f"see {wanted.where}"
        faults.append(
            f"{dataset.source} has {kinds[0]} things and {kinds[1]} stuff, {dataset.name} has {wanted.things} and "
            f"{wanted.stuff}; it is of another release or another set: {cure}"
        )
    if wanted.pictures and len(dataset) not in wanted.pictures:
        said = " or ".join(f"{count:,}" for count in wanted.pictures)
        faults.append(f"{dataset.name} has {len(dataset):,} pictures, published are {said}; see {wanted.where}")
    return faults


def _label_values(dataset: Dataset, chosen: Sequence[Any]) -> list[str]:
    """Label maps that were not counted from 0: their last value is one too high, or nothing in them is void."""
    seen, void_seen = np.zeros(65536, bool), False
    for image_id in chosen:
        try:
            values, void = read_labels(dataset.files(image_id)[1])
        except ValueError:
            continue  # told with the annotations
        void_seen |= bool((values == void).any())
        seen[np.unique(values)] = True
    if len(chosen) < 20 or void_seen or not seen[0]:  # without void, 0 is it
        return []
    return [
        f"none of {len(chosen)} label maps in {dataset.files(chosen[0])[1].parent} has a void pixel: they seem to be "
        "counted from 1, with 0 for void; subtract 1 (0 becomes 255, or 65535 in 16 bits)"
    ]


def spread(ids: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, at even distances."""
    return [ids[place] for place in np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int))]


def _each(read: Callable[[Any], object], ids: Sequence[Any], what: str, workers: int) -> dict[Any, str]:
    """The sentences of those that cannot be read, by their ids."""

    def sentence(image_id: Any) -> str:
        try:
            read(image_id)
        except (ValueError, OSError, KeyError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(workers) as pool:
        said = list(tqdm(pool.map(sentence, ids), what, len(ids), disable=len(ids) < 2000, mininterval=5))
    return {image_id: one for image_id, one in zip(ids, said, strict=True) if one}


def _few(faults: list[str], what: str) -> list[str]:
    if len(faults) <= NAMED:
        return faults
    return [*faults[:NAMED], f"... and {len(faults) - NAMED:,} more such {what}"]


def check_weights(clip: str, pretrained: str | None, backbone: str | None) -> dict[str, str]:
    """What each of a profile's weights is: "here", "to be fetched", or a sentence about what to do."""
    from maskclip import hub

    found: dict[str, str] = {}
    wanted = dict[str, tuple[str, bool]]()
    if pretrained and not Path(pretrained).is_file():
        wanted[f"CLIP {clip}, {pretrained}"] = hub.clip_repository(clip, pretrained)
    if backbone and not Path(backbone).is_file():
        wanted[f"backbone {backbone}"] = backbone, hub.is_cached(backbone)
    for what, (repo, here) in wanted.items():
        try:
            if repo and not here:
                hub.check_reachable(repo, what, "their folder in place of the name")
            found[what] = "here" if here else "to be fetched"
        except FileNotFoundError as error:
            found[what] = str(error)
    return found
