"""The one table of what the study compares: proposal networks, and methods (rows of tables).

To add a row to a table, add one entry to METHODS; of a trained method also its name to a stage of dvc.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ruamel.yaml import YAML

from maskclip.data.datasets import DATASETS, METRICS, find_entry
from maskclip.settings import PAPER_DEPTH, scale_layers
from study.params import Proposals

TEST_PICTURES = ("a150", "a847", "p59", "lvis", "coco_val")  # the table of data sets knows their tasks
TRAINING_PICTURES = ("coco_train", "coco_split_train")
NEEDED = ("a150", "coco_val")  # of the test pictures: the notebooks draw and compare on them
TABLES = range(2, 10)  # of the paper; report/tables.yaml has their columns
COSTS = ("tflops", "time_s", "peak_gb")  # columns of the data set `efficiency`
SCORE_COLUMNS = ["method", "proposals", "dataset", "metric", "value", "seed", "profile"]  # of a stage's results
GROUND_TRUTH = "ground_truth"  # in place of a network: the annotated segments themselves (Table 7)


@dataclass(frozen=True)
class ProposalNetwork:
    """One network of stage one."""

    id: str  # its name in files and on the command line
    label: str = ""  # its name in charts
    colour: str = ""  # in charts, #rrggbb
    settings: str = "mask2former"  # its entry under `proposals` in the profile
    training_set: str = "coco_train"
    pictures: tuple[str, ...] = ("coco_train", "coco_val", "a150", "a847", "p59", "lvis")  # it proposes for
    class_aware: bool = False  # it learns with class labels; all others learn object or no object

    def __post_init__(self) -> None:
        _require(self, "label", "colour", "settings", "training_set", "pictures")
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
        _known(self, "tables", self.tables, TABLES)
        _known(self, "tables it is a row of", self.labels, self.tables)
        if costs_only:
            return
        _known(self, "networks", [self.network], (*NETWORKS, GROUND_TRUTH))
        _known(self, "training sets", filter(None, [self.training_set]), TRAINING_PICTURES)
        try:
            scale_layers(self.rma_layers or (), PAPER_DEPTH)
        except ValueError as error:
            raise ValueError(f"{self} of study/methods.py: {error}") from None
        if self.network != GROUND_TRUTH:
            pictures = filter(None, (self.training_set, *self.tests))
            _known(self, f"pictures with {self.network}'s proposals", pictures, NETWORKS[self.network].pictures)
        if self.mask_tokens and self.rma_layers != () and not (self.training_set or self.weights):
            raise ValueError(f"{self} of study/methods.py has layers to train: give it a training_set")
        if self.weights and not (self.as_published or self.network == GROUND_TRUTH):
            raise ValueError(f"{self} of study/methods.py has another's weights, so its network must be {GROUND_TRUTH}")

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


_TUPLES = {"tables": (2, 3), "tests": ("a150",), "pictures": ("coco_val",), "rma_layers": (6, 12, 18, 24)}


def _require(entry: ProposalNetwork | Method, *names: str) -> None:
    if lacking := [name for name in names if not getattr(entry, name)]:
        raise ValueError(f"{entry} of study/methods.py lacks its {', '.join(lacking)}")
    for name, such in _TUPLES.items():
        given = getattr(entry, name, None)
        if given is not None and not (isinstance(given, tuple) and all(type(one) is type(such[0]) for one in given)):
            raise ValueError(f"{entry} of study/methods.py: {name} must be a tuple such as {such}, not {given!r}")
    if not re.fullmatch(r"\w+", entry.id) or not re.fullmatch("#[0-9a-f]{6}", str(entry.colour)):
        raise ValueError(f"{entry} of study/methods.py needs an id of letters, digits and _, a colour #rrggbb")


def _known(entry: ProposalNetwork | Method, what: str, names: Iterable[object], known: Iterable[object]) -> None:
    for name in names:
        if name not in known:
            there = ", ".join(map(str, known))
            raise ValueError(f"{entry} of study/methods.py: {name!r} is none of the {what} ({there})")


# The base network serves the COCO split. The last two differ in class labels alone, to compare.
NETWORKS: dict[str, ProposalNetwork] = _Named(
    ProposalNetwork("mask2former", "Mask2Former", "#0072b2"),
    ProposalNetwork("mask_rcnn", "Mask R-CNN", "#56b4e9", settings="mask_rcnn"),
    ProposalNetwork(
        "mask2former_base",
        "Mask2Former, base classes",
        "#009e73",
        training_set="coco_split_train",
        pictures=("coco_split_train", "coco_val"),
    ),
    ProposalNetwork(
        "class_agnostic", "class-agnostic twin", "#e69f00", settings="twins", pictures=("coco_val", "a150")
    ),
    ProposalNetwork(
        "class_aware", "class-aware twin", "#cc79a7", settings="twins", pictures=("coco_val", "a150"), class_aware=True
    ),
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
    """The methods that are rows of one of the paper's tables, by their labels there.

    ValueError: two share one, or their colour. Those of which only the cost is measured are grey, all of them.
    """
    rows: dict[str, Method] = {}
    for method in (method for method in METHODS.values() if table in method.tables):
        own = method.label_in(table)
        for label, other in rows.items():
            if label == own or (method.network and method.colour == other.colour):
                what = "label" if label == own else "colour"
                raise ValueError(f"{method} of study/methods.py has the {what} of {other} in Table {table}; change it")
        rows[own] = method
    return rows


def data_sets(without: Sequence[str] = ()) -> list[str]:
    """The data sets that the study reads: its collections of pictures, and all that annotates these; but not those
    that a profile is `without`, nor what annotates their pictures.

    Raises:
        ValueError: it cannot be without one of them, or there is none of this name.
    """
    used = TEST_PICTURES + TRAINING_PICTURES
    names = [name for name, entry in DATASETS.items() if (entry.pictures or name) in used]
    tested = {name: DATASETS[name].pictures or name for name in names if DATASETS[name].task}
    spared = [name for name, pictures in tested.items() if pictures not in NEEDED]
    if wrong := [name for name in without if name not in spared]:
        raise ValueError(f"data.without has {wrong[0]!r}; the study can do without {', '.join(spared)} alone")
    return [name for name in names if not {name, DATASETS[name].pictures} & set(without)]


def baselines() -> list[Method]:
    """The methods that name a network's masks and have nothing to train."""
    return [m for m in METHODS.values() if m.network in NETWORKS and not (m.training_set or m.weights)]


def on_ground_truth() -> list[Method]:
    """The methods that name annotated masks: baselines, and those whose weights the rows of such masks have."""
    return baselines() + [METHODS[m.trained_as] for m in METHODS.values() if m.network == GROUND_TRUTH]


def check_stages(path: str | Path = "dvc.yaml") -> None:
    """Check that the pipeline runs every network and method, and no other; ValueError names the first fault.

    What is trained stands in a stage's matrix, and a method's stage depends on its network. A row with nothing to
    train stands in some stage's metrics: `baselines_<id>.json`, or `ground_truth_masks_<weights>.json`. One evaluated
    as published is of the profile `released`, which is no part of it. The tables of data sets and of the report's
    columns are checked as well.
    """
    _check_pictures()
    _check_columns()
    for table in TABLES:
        rows_of(table)
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
        if not method.network or method.as_published:
            continue
        stage = of[method.id] if method.training_set else next((text for text, _ in matrices if file in text), "")
        if not stage:
            raise ValueError(f"{path}: no stage has the metrics {file} of {method.id!r}")
        if method.network in NETWORKS and not re.search(rf"[/']{method.network}'", stage):
            raise ValueError(
                f"{path}: the stage of {method.id!r} lacks the folder of {method.network} among its deps; move it to "
                "the stage that has it"
            )


def _check_pictures() -> None:
    entries = [find_entry(name) for name in DATASETS]
    tests = [entry.pictures or entry.name for entry in entries if entry.task]
    for what, names, known in (
        ("TEST_PICTURES", TEST_PICTURES, tests),
        ("TRAINING_PICTURES", TRAINING_PICTURES, [entry.name for entry in entries if entry.training]),
    ):
        if lost := [name for name in names if name not in known]:
            there = ", ".join(dict.fromkeys(known))
            raise ValueError(f"{what} of study/methods.py has {lost[0]!r}; maskclip/data/datasets.py has {there}")


def _check_columns() -> None:
    known = [[entry.in_tables, metric] for entry in DATASETS.values() for metric in METRICS.get(entry.task, ())]
    known += [["efficiency", metric] for metric in COSTS]
    for number, table in YAML(typ="safe").load(Path(__file__).parent / "report/tables.yaml").items():
        for label, column in table["columns"].items():
            if column not in known:
                there = [metric for name, metric in known if [name] == column[:1]] or [name for name, _ in known]
                raise ValueError(
                    f"study/report/tables.yaml: column {label!r} of Table {number} is {column}; it must be a data set "
                    f"and a metric of it, here one of {', '.join(dict.fromkeys(there))}"
                )
