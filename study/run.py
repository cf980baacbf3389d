"""What the notebooks share: which methods the study compares, on which data, and where their files lie.

runs/<seed>/<network or method>/   weights, checkpoints, stored proposals
results/<seed>/<stage>.csv, .json  tidy rows for the report; the main ones for `dvc metrics show`
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from maskclip.data import Dataset, open_dataset, read_split
from maskclip.evaluation.metrics import split_average_precision
from maskclip.evaluation.tasks import InstanceTask, PanopticTask, SemanticTask, Task, evaluate
from maskclip.files import write_atomically
from maskclip.model.clip import Clip, load_clip
from maskclip.model.pipeline import MaskCLIP, MaskEncoder, encode_masked_images, encode_with_mask_tokens
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import (
    Proposals,
    StoredProposals,
    ground_truth_proposals,
    load_source,
    proposal_key,
    store_proposals,
)
from maskclip.settings import scale_layers
from maskclip.training.mask_tokens import load_trained_weights, train_maskclip
from maskclip.training.proposal_networks import train_proposals
from study.params import Study, load_params

# The collections of test pictures; `Run.tasks` knows the tasks of Tables 2 to 5 that each is annotated for.
TEST_PICTURES = ("a150", "a847", "p59", "lvis", "coco_val")
MAIN_METRICS = ("PQ", "mIoU", "AP", "AP50_generalized_base", "AP50_generalized_target")  # for `dvc metrics show`


@dataclass(frozen=True)
class Method:
    """One trained row of the paper's tables. `rma_layers` None: those of the profile (6, 12, 18, 24)."""

    proposals: str = "mask2former"
    training_set: str = "coco_train"
    tests: tuple[str, ...] = ("a150",)
    rma_layers: tuple[int, ...] | None = None
    refine_masks: bool = True


class _Named(dict[str, Any]):
    """A table whose unknown names say what there is."""

    def __missing__(self, name: str) -> None:
        raise ValueError(f"the study has no {name!r}; it has {', '.join(self)}")


METHODS: dict[str, Method] = _Named(
    {
        "maskclip": Method(tests=("a150", "a847", "p59", "lvis")),
        "maskclip_maskrcnn": Method(proposals="mask_rcnn", tests=("a150", "a847", "p59", "lvis")),
        "wo_refinement": Method(refine_masks=False),
        "layers_1_7_13_19": Method(rma_layers=(1, 7, 13, 19)),
        "layers_3_9_15_21": Method(rma_layers=(3, 9, 15, 21)),
        "layers_21_22_23_24": Method(rma_layers=(21, 22, 23, 24)),
        "maskclip_split": Method(proposals="mask2former_base", training_set="coco_split_train", tests=("coco_val",)),
    }
)


@dataclass(frozen=True)
class ProposalNetwork:
    """One network of stage one: its settings, by their name in the profile, its training, and whom it proposes for."""

    settings: str = "mask2former"
    training_set: str = "coco_train"
    pictures: tuple[str, ...] = ("coco_train", "coco_val", "a150", "a847", "p59", "lvis")
    class_aware: bool = False


# The base network serves the COCO split; the last two, alike but for class supervision, the comparison of proposals.
PROPOSAL_NETWORKS: dict[str, ProposalNetwork] = _Named(
    {
        "mask2former": ProposalNetwork(),
        "mask_rcnn": ProposalNetwork(settings="mask_rcnn"),
        "mask2former_base": ProposalNetwork(training_set="coco_split_train", pictures=("coco_split_train", "coco_val")),
        "class_agnostic": ProposalNetwork(settings="twins", pictures=("coco_val", "a150")),
        "class_aware": ProposalNetwork(settings="twins", pictures=("coco_val", "a150"), class_aware=True),
    }
)


class GroundTruth(Mapping[int | str, Proposals]):
    """The annotated segments of a data set as its proposals (Table 7), read when asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, image_id: int | str) -> Proposals:
        return ground_truth_proposals(self.dataset.read(image_id))

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.dataset.image_ids)

    def __len__(self) -> int:
        return len(self.dataset)


class Run:
    """One seed of the study: its parameters, data, models and files.

    Args:
        seed: of everything random in this run.
        params: path of params.yaml; the repository's top folder is where it lies.

    Raises:
        FileNotFoundError, ValueError: as `load_params`; the device is cuda, but there is no GPU.
    """

    def __init__(self, seed: int = 0, params: str | Path = "params.yaml") -> None:
        self.seed, self.params_path = seed, str(params)
        self.params, study = load_params(params)
        self.study: Study = study
        self.folder, self.results = Path("runs") / str(seed), Path("results") / str(seed)
        self.device = self.params["device"]
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{params} says device: cuda, but PyTorch finds no GPU; write auto or cpu")

    @cached_property
    def clip(self) -> Clip:
        """The profile's CLIP, frozen."""
        return load_clip(self.study.clip.model, self.study.clip.pretrained, device=self.device)

    def dataset(self, name: str) -> Dataset:
        """A data set by its short name; test sets are cut to `evaluation.limit` pictures."""
        limit = None if "train" in name else self.study.evaluation.limit
        return open_dataset(name, self.study.data.root, limit=limit)

    def proposals(self, network: str, dataset: Dataset) -> Mapping[int | str, Proposals]:
        """The stored proposals of a network for a data set's pictures; `ground_truth` takes the annotation itself."""
        if network == "ground_truth":
            return GroundTruth(dataset)
        return StoredProposals(self._store(network, dataset), proposal_key(self.folder / network, dataset))

    def _store(self, network: str, dataset: Dataset) -> Path:
        return self.folder / network / "stored" / f"{dataset.name}.proposals"

    def train_proposals(self, name: str) -> Path:
        """Train a network of PROPOSAL_NETWORKS in `params.processes` processes, into runs/<seed>/<name>/ (returned)."""
        launch(_train_proposals, (self.seed, name, self.params_path), self.params["processes"])
        return self.folder / name

    def store_proposals(self, name: str, dataset: Dataset) -> Path:
        """Run a trained network over a data set's pictures and keep its proposals; the file is returned."""
        source = load_source(self.folder / name, self.device)
        key = proposal_key(self.folder / name, dataset)
        return store_proposals(source, dataset, self._store(name, dataset), key)

    def new_encoder(self, method: str) -> MaskCLIPVisualEncoder:
        """The untrained visual encoder of a method of METHODS, its RMA layers scaled to this ViT's depth."""
        training, kind = self.study.maskclip, METHODS[method]
        depth = len(self.clip.model.visual.transformer.resblocks)
        return MaskCLIPVisualEncoder.from_open_clip(
            self.clip.model,
            rma_layers=scale_layers(list(kind.rma_layers or training.rma_layers), depth),
            refine_masks=kind.refine_masks,
            query_form="linear" if training.linear_query else "layernorm",
            zero_init_refinement=training.zero_init_refinement,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train(self, method: str) -> pd.DataFrame:
        """Train a method of METHODS in `params.processes` processes; its curve. Weights go to runs/<seed>/<method>/."""
        launch(_train, (self.seed, method, self.params_path), self.params["processes"])
        return pd.read_csv(self.folder / method / "curve.csv")

    def encoder(self, method: str) -> MaskCLIPVisualEncoder:
        """A method's visual encoder: w/o RMA as it is, others with their trained weights."""
        if method == "wo_rma":
            return MaskCLIPVisualEncoder.from_open_clip(self.clip.model, rma_layers=())
        encoder = load_trained_weights(self.new_encoder(method), self.folder / method / "encoder.pt")
        return encoder.to(self.device).eval()

    def encode(self, method: str) -> MaskEncoder:
        """A method's mask encoder, trained where there is something to train."""
        if method == "clip_baseline":
            return encode_masked_images(self.clip)
        return encode_with_mask_tokens(self.encoder(method))

    def model(self, method: str) -> MaskCLIP:
        """The whole of Fig. 1 for a method, without a proposal source: give it stored or own proposals."""
        return MaskCLIP(self.clip, self.encode(method), temperature=self.study.maskclip.temperature)

    def tasks(self, pictures: str) -> dict[str, Task]:
        """The tasks (by the results' data set name) that a collection of test pictures is annotated for."""
        match pictures:
            case "a150":
                panoptic = self.dataset("a150")
                return {
                    "a150": PanopticTask(panoptic),
                    "a150_semantic": SemanticTask(self.dataset("a150_semantic"), panoptic.categories),
                    "a150_instances": InstanceTask(self.dataset("a150_instances"), categories=panoptic.categories),
                }
            case "p59":
                return {"p59": SemanticTask(self.dataset("p59")), "p459": SemanticTask(self.dataset("p459"))}
            case "a847":
                return {"a847": SemanticTask(self.dataset("a847"))}
            case "lvis":
                return {"lvis": InstanceTask(self.dataset("lvis"))}
            case "coco_val":
                dataset, split = self.split_val, self.split
                words = {"base_only": split["base"], "target_only": split["target"]}
                words["generalized"] = split["base"] + split["target"]
                return {name: InstanceTask(dataset, names) for name, names in words.items()}
        raise ValueError(f"there are no test pictures {pictures!r}; there are {', '.join(TEST_PICTURES)}")

    @cached_property
    def split_val(self) -> Dataset:
        """The COCO split's test pictures, of those of `coco_val`: a limit cuts both alike."""
        pictures = set(self.dataset("coco_val").image_ids)
        dataset = open_dataset("coco_split_val", self.study.data.root)
        return dataset.subset([image_id for image_id in dataset.image_ids if image_id in pictures])

    @cached_property
    def split(self) -> dict[str, list[str]]:
        """COCO's base and target category names."""
        return read_split(self.study.data.root)

    def same_pictures(self, names: Iterable[str]) -> list[list[str]]:
        """Data sets by name, those together whose pictures are the same files, by name and length: the A-847 mirror
        annotates the A-150 mirror's (ADE20K's own A-847 has its scenes in another size). What is made of pictures is
        made of each group's first."""
        groups: dict[tuple, list[str]] = {}
        for name in names:
            dataset = self.dataset(name)
            files = [dataset.files(image_id)[0] for image_id in dataset.image_ids]
            groups.setdefault(tuple((file.name, file.is_file() and file.stat().st_size) for file in files), []).append(
                name
            )
        return list(groups.values())

    def evaluate(
        self, method: str, pictures: Iterable[str], network: str, tasks: Iterable[str] | None = None
    ) -> list[dict]:
        """One method on collections of test pictures: tidy rows (method, proposals, dataset, metric, value, ...).

        Args:
            method: of METHODS, or "clip_baseline" or "wo_rma".
            pictures: of TEST_PICTURES; those that are the same are run once.
            network: of PROPOSAL_NETWORKS, or "ground_truth".
            tasks: the results' data set names; None: all that the pictures are annotated for.
        """
        scores: dict[str, dict[str, float]] = {}
        wanted, templates = None if tasks is None else set(tasks), tuple(self.study.clip.templates)
        for group in self.same_pictures(pictures):
            found = {name: task for collection in group for name, task in self.tasks(collection).items()}
            chosen = {name: task for name, task in found.items() if wanted is None or name in wanted}
            dataset = self.dataset(group[0])
            proposals = self.proposals(network, dataset)
            evaluate(self.model(method), dataset, proposals, list(chosen.values()), self.study.evaluation, templates)
            if group == ["coco_val"]:
                results = {name: task.results for name, task in chosen.items() if isinstance(task, InstanceTask)}
                split = split_average_precision(self.split_val, self.split, **results)
                scores["coco_split"] = split
            else:
                scores |= {name: task.compute() for name, task in chosen.items()}
        same = {"method": method, "proposals": network, "seed": self.seed, "profile": self.params["profile"]}
        return [
            same | {"dataset": name, "metric": metric, "value": value}
            for name, values in scores.items()
            for metric, value in values.items()
        ]  # fmt: skip

    def write_rows(self, stage: str, rows: list[dict]) -> pd.DataFrame:
        """Write tidy rows to results/<seed>/<stage>.csv, and the main ones, nested as dataset.metric, to <stage>.json;
        of several methods each to <stage>_<method>.json, so that `dvc metrics show` has one line a method."""
        columns = ["method", "proposals", "dataset", "metric", "value", "seed", "profile"]
        frame = pd.DataFrame(rows, columns=columns)
        methods: dict[str, dict[str, dict[str, float]]] = {row["method"]: {} for row in rows}
        for row in rows:
            if row["metric"] in MAIN_METRICS:
                of_set = methods[row["method"]].setdefault(row["dataset"], {})
                of_set[row["metric"]] = round(row["value"], 3)
        for method, scores in methods.items():
            self.write_json(f"{stage}.json" if len(methods) == 1 else f"{stage}_{method}.json", scores)
        self.write_table(f"{stage}.csv", frame)
        return frame

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """A table into results/<seed>/, atomically."""
        write_atomically(self.results / name, lambda path: frame.to_csv(path, index=False))

    def write_json(self, name: str, content: dict) -> None:
        """A JSON file into results/<seed>/, atomically; not-a-number becomes null."""
        text = json.dumps(content, indent=2).replace("NaN", "null")
        write_atomically(self.results / name, lambda path: path.write_text(text + "\n"))


def _own_gpu(run: Run) -> None:
    """Let "cuda" mean this process's GPU, before anything is loaded onto the first one."""
    if run.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def _train(seed: int, method: str, params: str) -> None:
    run, kind = Run(seed, params), METHODS[method]
    _own_gpu(run)
    dataset = run.dataset(kind.training_set)
    proposals = run.proposals(kind.proposals, dataset)
    train_maskclip(run.new_encoder(method), run.clip, dataset, proposals, run.study.maskclip, run.folder / method, seed)


def _train_proposals(seed: int, name: str, params: str) -> None:
    run, kind = Run(seed, params), PROPOSAL_NETWORKS[name]
    _own_gpu(run)
    config = getattr(run.study.proposals, kind.settings)
    network = "mask_rcnn" if kind.settings == "mask_rcnn" else "mask2former"
    device = "cpu" if run.device == "cpu" else None
    dataset = run.dataset(kind.training_set)
    train_proposals(network, dataset, config, run.folder / name, seed, class_aware=kind.class_aware, device=device)


def launch(function: Callable[..., None], arguments: tuple, processes: int) -> None:
    """Call `function(*arguments)` here, or in several fresh processes (as `torchrun` does), one per GPU, or on the CPU.

    Raises:
        RuntimeError: a process failed; the sentence is the first one's own.
    """
    if processes == 1:
        function(*arguments)
        return
    config = LaunchConfig(
        1, 1, processes, run_id="maskclip", rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="spawn",
        max_restarts=0, monitor_interval=1,
    )  # fmt: skip
    try:
        elastic_launch(config, function)(*arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        raise RuntimeError(f"process {rank} of {processes}: {message}") from None
