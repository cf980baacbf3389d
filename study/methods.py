"""The one table of what the study compares: proposal networks, and methods (rows of tables).

To add a row to a table, add one entry to METHODS; of a trained method also its name to a stage of dvc.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ruamel.yaml import YAML

from maskclip.settings import scale_layers
from study.params import Proposals

TEST_PICTURES = ("a150", "a847", "p59", "lvis", "coco_val")  # `maskclip.data.DATASETS` knows their tasks
TRAINING_PICTURES = ("coco_train", "coco_split_train")
TABLES = range(2, 10)  # of the paper
SCORE_COLUMNS = ["method", "proposals", "dataset", "metric", "value", "seed", "profile"]  # of a stage's results
GROUND_TRUTH = "ground_truth"  # in place of a network: the annotated segments themselves (Table 7)


@dataclass(frozen=True)
class ProposalNetwork:
    """One network of stage one."""

    id: str  # its name in files and on the command line
    colour: str = ""  # in charts, #rrggbb
    settings: str = "mask2former"  # its entry under `proposals` in the profile
    training_set: str = "coco_train"
    pictures: tuple[str, ...] = ("coco_train", "coco_val", "a150", "a847", "p59", "lvis")  # it proposes for
    class_aware: bool = False  # it learns with class labels; all others learn object or no object

    def __post_init__(self) -> None:
        _require(self, "colour", "settings", "training_set", "pictures")
        _known(self, "settings of a profile's proposals", [self.settings], Proposals.__dataclass_fields__)
        _known(self, "training sets", [self.training_set], TRAINING_PICTURES)
        _known(self, "pictures", (self.training_set, *self.pictures), TEST_PICTURES + TRAINING_PICTURES)

    def __str__(self) -> str:
        return f"network {self.id!r}"


@dataclass(frozen=True)
class Method:
    """One row of the paper's Tables 2 to 9."""

    id: str  # its name in files and on the command line
    label: str = ""  # its name in tables and charts
    colour: str = ""  # in charts, #rrggbb
    tables: tuple[int, ...] = ()  # the paper's tables it is a row of
    network: str = ""  # whose proposals it names; empty: only its cost is measured
    training_set: str | None = None  # None: nothing to train
    tests: tuple[str, ...] = ()  # the collections of test pictures it is scored on
    rma_layers: tuple[int, ...] | None = None  # with RMA, of 24; None: the profile's
    refine_masks: bool = True  # it moves the proposals' masks (Table 8)
    mask_tokens: bool = True  # False: one CLIP pass a mask (CLIP Baseline, Alg. 1)
    weights: str = ""  # the method whose trained weights it uses; empty: its own
    as_published: bool = False  # it is evaluated with the released code's errors, by the profile `released` alone
    labels: dict[int, str] = field(default_factory=dict)  # where a table calls it otherwise

    def __post_init__(self) -> None:
        costs_only = self.tables == (6,)
        _require(self, "label", "colour", "tables", *(() if costs_only else ("network", "tests")))
        _known(self, "tables", (*self.tables, *self.labels), TABLES)
        if costs_only:
            return
        _known(self, "networks", [self.network], (*NETWORKS, GROUND_TRUTH))
        _known(self, "training sets", filter(None, [self.training_set]), TRAINING_PICTURES)
        try:
            scale_layers(list(self.rma_layers or ()), 24)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self} of study/methods.py: {error}") from None
        if self.network != GROUND_TRUTH:
            pictures = filter(None, (self.training_set, *self.tests))
            _known(self, f"pictures with {self.network}'s proposals", pictures, NETWORKS[self.network].pictures)
        if self.mask_tokens and self.rma_layers != () and not (self.training_set or self.weights):
            raise ValueError(f"{self} of study/methods.py has layers to train: give it a training_set")

    def __str__(self) -> str:
        return f"method {self.id!r}"

    @property
    def trained_as(self) -> str:
        """The method whose weights it uses."""
        return self.weights or self.id

    @property
    def scored_as(self) -> str:
        """Under whose name its results stand: on annotated masks, as those of the method whose weights it uses."""
        return self.id if self.as_published else self.trained_as

    @property
    def short(self) -> str:
        """Its label where every row is a MaskCLIP."""
        return self.label.removeprefix("MaskCLIP ").strip("()")

    @property
    def supervision(self) -> str:
        """What it, and the network before it, learned from COCO (Table 2's column)."""
        labels = self.training_set or self.weights or (self.network in NETWORKS and NETWORKS[self.network].class_aware)
        return "masks + labels" if labels else "masks"

    def label_in(self, table: int) -> str:
        """Its label in one of the paper's tables."""
        return self.labels.get(table, self.label)


Entry = TypeVar("Entry", bound=ProposalNetwork | Method)


class _Named(dict[str, Entry]):
    """Entries by id; an unknown id says what there is, one given twice fails at once."""

    def __init__(self, *entries: Entry) -> None:
        for entry in entries:
            if entry.id in self:
                raise ValueError(f"study/methods.py has two entries {entry.id!r}; rename one")
            self[entry.id] = entry

    def __missing__(self, name: str) -> Entry:
        raise ValueError(f"the study has no {name!r}; it has {', '.join(self)}")


def _require(entry: ProposalNetwork | Method, *names: str) -> None:
    if lacking := [name for name in names if not getattr(entry, name)]:
        raise ValueError(f"{entry} of study/methods.py lacks its {', '.join(lacking)}")
    for name in ("tables", "tests", "pictures"):
        if not isinstance(getattr(entry, name, ()), tuple):
            raise ValueError(
                f"{entry} of study/methods.py: {name} must be a tuple, such as ({getattr(entry, name)!r},)"
            )
    if not re.fullmatch(r"\w+", entry.id) or not re.fullmatch("#[0-9a-f]{6}", entry.colour):
        raise ValueError(f"{entry} of study/methods.py needs an id of letters, digits and _, a colour #rrggbb")


def _known(entry: ProposalNetwork | Method, what: str, names: Iterable[object], known: Iterable[object]) -> None:
    for name in names:
        if name not in known:
            there = ", ".join(map(str, known))
            raise ValueError(f"{entry} of study/methods.py: {name!r} is none of the {what} ({there})")


# The base network serves the COCO split. The last two differ in class labels alone, to compare.
NETWORKS: dict[str, ProposalNetwork] = _Named(
    ProposalNetwork("mask2former", "#0072b2"),
    ProposalNetwork("mask_rcnn", "#56b4e9", settings="mask_rcnn"),
    ProposalNetwork(
        "mask2former_base", "#009e73", training_set="coco_split_train", pictures=("coco_split_train", "coco_val")
    ),
    ProposalNetwork("class_agnostic", "#e69f00", settings="twins", pictures=("coco_val", "a150")),
    ProposalNetwork("class_aware", "#cc79a7", settings="twins", pictures=("coco_val", "a150"), class_aware=True),
)

_ALL, _ADE = ("a150", "a847", "p59", "lvis"), ("a150",)

# Okabe and Ito's colours: colour-blind eyes tell them apart too. Blue is the paper's method.
METHODS: dict[str, Method] = _Named(
    Method("clip_baseline", "CLIP Baseline", "#a3a8b0", (2, 3, 4, 6), "mask2former", None, _ALL, mask_tokens=False),
    Method("wo_rma", "MaskCLIP w/o RMA", "#e69f00", (2, 3, 4, 6), "mask2former", None, _ALL, rma_layers=()),
    Method("maskclip_maskrcnn", "MaskCLIP (Mask R-CNN)", "#56b4e9", (2, 3, 4), "mask_rcnn", "coco_train", _ALL),
    Method(
        "maskclip", "MaskCLIP", "#0072b2", (2, 3, 4, 6, 7, 8, 9), "mask2former", "coco_train", _ALL,
        labels={9: "6, 12, 18, 24"},
    ),
    Method(
        "maskclip_published", "MaskCLIP, evaluated as published", "#004b76", (2, 3, 4), "mask2former", None, _ADE,
        weights="maskclip", as_published=True,
    ),
    Method("maskclip_gt", "MaskCLIP + GT masks", "#009e73", (7,), GROUND_TRUTH, None, _ADE, weights="maskclip"),
    Method(
        "wo_refinement", "MaskCLIP w/o MR", "#cc79a7", (8,), "mask2former", "coco_train", _ADE, refine_masks=False
    ),
    *(
        Method(
            f"layers_{'_'.join(map(str, layers))}", ", ".join(map(str, layers)), colour, (9,),
            "mask2former", "coco_train", _ADE, rma_layers=layers,
        )
        for layers, colour in (
            ((1, 7, 13, 19), "#f4c9a8"), ((3, 9, 15, 21), "#e89a5c"), ((21, 22, 23, 24), "#d55e00"),
        )
    ),
    Method(
        "maskclip_split", "MaskCLIP (COCO split)", "#009e73", (5,), "mask2former_base", "coco_split_train",
        ("coco_val",), labels={5: "MaskCLIP"},
    ),
    Method("regionclip", "RegionCLIP", "#d7dade", (6,)),
    Method("zegformer", "ZegFormer", "#d7dade", (6,)),
    Method("simseg", "SimSeg", "#d7dade", (6,)),
)  # fmt: skip


def rows_of(table: int) -> dict[str, Method]:
    """The methods that are rows of one of the paper's tables, by their labels there; ValueError if two share one."""
    methods = [method for method in METHODS.values() if table in method.tables]
    rows = {method.label_in(table): method for method in methods}
    if hidden := [method.id for method in methods if method not in rows.values()]:
        raise ValueError(f"method {hidden[0]!r} of study/methods.py has another one's label in Table {table}")
    return rows


def check_stages(path: str | Path = "dvc.yaml") -> None:
    """Check that the pipeline runs every network and method, and no other; ValueError names the first fault.

    What is trained stands in a stage's matrix, and a method's stage depends on its network. A row with nothing to
    train stands in some stage's metrics: `baselines_<id>.json`, or `ground_truth_masks_<weights>.json`. One evaluated
    as published is of the profile `released`, which is no part of it.
    """
    stages = YAML(typ="safe").load(Path(path))["stages"]
    matrices = [(str(stage), stage.get("matrix", {})) for stage in stages.values()]
    of = {name: text for text, m in matrices for name in (*m.get("network", ()), *m.get("method", ()))}
    trained = {*NETWORKS, *(method.id for method in METHODS.values() if method.training_set)}
    if wrong := sorted(trained ^ set(of)):
        here, there = (path, "study/methods.py") if wrong[0] in of else ("study/methods.py", path)
        raise ValueError(f"{here} has {wrong[0]!r}, which {there} has not; add it there")
    for method in METHODS.values():
        file = f"{'ground_truth_masks' if method.network == GROUND_TRUTH else 'baselines'}_{method.trained_as}.json"
        if method.weights and method.weights not in METHODS:
            raise ValueError(f"{method} of study/methods.py: there is no method {method.weights!r} with weights")
        if method.training_set and not re.search(rf"[/']{method.network}'", of[method.id]):
            raise ValueError(
                f"{path}: the stage of {method.id!r} lacks the folder of {method.network} among its deps; move it to "
                "the stage that has it"
            )
        if method.network and not (method.training_set or method.as_published) and file not in str(stages):
            raise ValueError(f"{path}: no stage has the metrics {file} of {method.id!r}")
