"""What the notebooks share: the models and data sets of one seed, and where their files lie.

runs/<profile>/<seed>/<network or method>/   weights, checkpoints, stored proposals
results/<profile>/<seed>/<stage>.csv, .json  tidy rows for the report; the main ones for `dvc metrics show`
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from maskclip.data import DATASETS, Dataset, open_dataset, same_pictures
from maskclip.evaluation.tasks import evaluate, tasks_of
from maskclip.files import write_atomically
from maskclip.model.clip import Clip, load_clip
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.pipeline import MaskCLIP
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
from study.methods import GROUND_TRUTH, METHODS, NETWORKS
from study.params import Study, load_params

RETRAIN = os.environ.get("STUDY_RETRAIN") == "1"  # said by `python -m study.pipeline --retrain STAGE`
MAIN_METRICS = ("PQ", "mIoU", "AP", "AP50_generalized_base", "AP50_generalized_target")  # for `dvc metrics show`


class GroundTruth(dict[int | str, Proposals]):
    """The annotated segments of a data set as its proposals (Table 7), read when asked for."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.dataset = dataset

    def __missing__(self, image_id: int | str) -> Proposals:
        return ground_truth_proposals(self.dataset.annotation(image_id))


class Run:
    """One seed of the study: its parameters, data, models and files.

    Args:
        seed: of everything random in this run.
        params: path of params.yaml; the repository's top folder is where it lies.

    Attributes:
        folder, results: this seed's folders of what is kept and of what is measured.
        shared: the profile's folder of results that no seed changes.

    Raises:
        FileNotFoundError, ValueError: as `load_params`; the device is cuda, but there is no GPU.
    """

    def __init__(self, seed: int = 0, params: str | Path = "params.yaml") -> None:
        self.seed, self.params_path = seed, str(params)
        self.params, study = load_params(params)
        self.study: Study = study
        self.shared = Path("results") / self.params["profile"]
        self.folder, self.results = Path("runs") / self.params["profile"] / str(seed), self.shared / str(seed)
        self._datasets: dict[str, Dataset] = {}
        self.device = self.params["device"]
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{params} says device: cuda, but PyTorch finds no GPU; write auto or cpu")

    @cached_property
    def clip(self) -> Clip:
        """The profile's CLIP, frozen."""
        return load_clip(self.study.clip.model, self.study.clip.pretrained, device=self.device)

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """How the profile merges masks into a panoptic map: what `NamedMasks.panoptic` takes."""
        settings = self.study.evaluation
        return {"score_threshold": settings.object_mask_threshold, "overlap_threshold": settings.overlap_threshold}

    def dataset(self, name: str) -> Dataset:
        """A data set by its short name, opened once; test sets are cut to `evaluation.limit` pictures."""
        if name not in self._datasets:
            limit = None if name in DATASETS and DATASETS[name].training else self.study.evaluation.limit
            self._datasets[name] = open_dataset(name, self.study.data.root, limit=limit)
        return self._datasets[name]

    def proposals(self, network: str, dataset: Dataset) -> Mapping[int | str, Proposals]:
        """The stored proposals of a network for a data set's pictures; `ground_truth` takes the annotation itself."""
        if network == GROUND_TRUTH:
            return GroundTruth(dataset)
        return StoredProposals(self._store(network, dataset), proposal_key(self.folder / network, dataset))

    def _store(self, network: str, dataset: Dataset) -> Path:
        return self.folder / network / "stored" / f"{dataset.name}.proposals"

    def train_proposals(self, network: str) -> Path:
        """Train a network of NETWORKS in `params.processes` processes, into its folder, which is returned."""
        launch(_train_proposals, (self.seed, network, self.params_path), self.params["processes"])
        return self.folder / network

    def store_proposals(self, network: str, dataset: Dataset) -> Path:
        """Run a trained network over a data set's pictures and keep its proposals; the file is returned."""
        source = load_source(self.folder / network, self.device)
        key = proposal_key(self.folder / network, dataset)
        return store_proposals(source, dataset, self._store(network, dataset), key)

    def new_encoder(self, method: str) -> MaskCLIPVisualEncoder:
        """The untrained visual encoder of a method of METHODS, its RMA layers scaled to this ViT's depth."""
        training, kind = self.study.maskclip, METHODS[method]
        layers = training.rma_layers if kind.rma_layers is None else kind.rma_layers
        return MaskCLIPVisualEncoder.from_open_clip(
            self.clip.model,
            rma_layers=scale_layers(list(layers), len(self.clip.model.visual.transformer.resblocks)),
            refine_masks=kind.refine_masks,
            query_form="linear" if training.linear_query else "layernorm",
            zero_init_refinement=training.zero_init_refinement,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train(self, method: str) -> pd.DataFrame:
        """Train a method of METHODS in `params.processes` processes, into its folder; the training's curve."""
        launch(_train, (self.seed, method, self.params_path), self.params["processes"])
        return pd.read_csv(self.folder / method / "curve.csv")

    def encoder(self, method: str) -> MaskCLIPVisualEncoder:
        """A method's visual encoder, with its trained weights where there is something to train."""
        encoder, kind = self.new_encoder(method), METHODS[method]
        if kind.training_set or kind.weights:
            load_trained_weights(encoder, self.folder / kind.trained_as / "encoder.pt")
        return encoder.to(self.device).eval()

    def model(self, method: str) -> MaskCLIP:
        """The whole of Fig. 1 for a method, without a proposal source: give it stored or own proposals."""
        encoder = self.encoder(method) if METHODS[method].mask_tokens else MaskedImages(self.clip)
        return MaskCLIP(self.clip, encoder, temperature=self.study.maskclip.temperature)

    def evaluate(
        self, method: str, pictures: Iterable[str], network: str, tasks: Sequence[str] | None = None
    ) -> list[dict]:
        """One method on collections of test pictures: tidy rows (method, proposals, dataset, metric, value, ...).

        Args:
            method: of METHODS.
            pictures: of TEST_PICTURES; those that are the same are run once.
            network: of NETWORKS, or "ground_truth".
            tasks: the results' data set names; None: all that the pictures are annotated for.
        """
        scores: dict[str, dict[str, float]] = {}
        templates = tuple(self.study.clip.templates)
        for group in same_pictures(map(self.dataset, pictures)):
            found = {name: task for one in group for name, task in tasks_of(one.name, self.dataset).items()}
            found = {name: task for name, task in found.items() if tasks is None or name in tasks}
            proposals = self.proposals(network, group[0])
            evaluate(self.model(method), group[0], proposals, list(found.values()), self.study.evaluation, templates)
            scores |= {name: task.compute() for name, task in found.items()}
        same = {"method": method, "proposals": network, "seed": self.seed, "profile": self.params["profile"]}
        return [
            same | {"dataset": name, "metric": metric, "value": value}
            for name, values in scores.items()
            for metric, value in values.items()
        ]  # fmt: skip

    def write_rows(self, stage: str, rows: list[dict]) -> pd.DataFrame:
        """Write tidy rows to <stage>.csv, and the main ones, nested as dataset.metric, to <stage>.json;
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
        """A table into this seed's results, atomically."""
        write_atomically(self.results / name, lambda path: frame.to_csv(path, index=False))

    def write_json(self, name: str, content: dict) -> None:
        """A JSON file into this seed's results, atomically; not-a-number becomes null."""
        text = json.dumps(content, indent=2).replace("NaN", "null")
        write_atomically(self.results / name, lambda path: path.write_text(text + "\n"))


def _start(seed: int, params: str) -> Run:
    run = Run(seed, params)
    if run.device == "cuda":  # let it mean this process's GPU, before anything is loaded onto the first one
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return run


def _train(seed: int, method: str, params: str) -> None:
    run, kind = _start(seed, params), METHODS[method]
    dataset = run.dataset(str(kind.training_set))
    proposals = run.proposals(kind.network, dataset)
    encoder, out = run.new_encoder(method), run.folder / method
    train_maskclip(encoder, run.clip, dataset, proposals, run.study.maskclip, out, seed, retrain=RETRAIN)


def _train_proposals(seed: int, name: str, params: str) -> None:
    run, kind = _start(seed, params), NETWORKS[name]
    config = getattr(run.study.proposals, kind.settings)
    network = "mask_rcnn" if kind.settings == "mask_rcnn" else "mask2former"
    device = "cpu" if run.device == "cpu" else None
    dataset = run.dataset(kind.training_set)
    train_proposals(
        network, dataset, config, run.folder / name, seed, class_aware=kind.class_aware, device=device, retrain=RETRAIN
    )


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
