"""What the notebooks share: the models and data sets of one seed, and where their files lie.

runs/<profile>/<seed>/<network or method>/   weights, checkpoints, stored proposals
results/<profile>/<seed>/<stage>.csv, .json  tidy rows for the report; the main ones for `dvc metrics show`
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import maskclip
from maskclip.data import DATASETS, Dataset, open_dataset, same_pictures
from maskclip.data.check import check_weights
from maskclip.data.datasets import scored_on
from maskclip.device import find_device
from maskclip.evaluation.judgements import Judgements
from maskclip.evaluation.tasks import Task, add_up, judge, tasks_of
from maskclip.files import file_digests, settings_hash, write_atomically
from maskclip.model.clip import Clip, check_texts, load_clip
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.pipeline import MaskCLIP
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder
from maskclip.proposals import Proposals, ground_truth_proposals, load_source
from maskclip.proposals.backbone import check_fit
from maskclip.proposals.load import converted_from, network_of
from maskclip.proposals.store import (
    StoredProposals,
    holds,
    join_parts,
    part_of,
    proposal_key,
    remove_parts,
    store_proposals,
)
from maskclip.segmenter.encoder import load_encoder
from maskclip.settings import Evaluation, scale_layers
from maskclip.training.mask_tokens import load_trained_weights, train_maskclip, trained_weights
from maskclip.training.proposal_networks import train_proposals
from maskclip.visualize import Shown
from study.methods import GROUND_TRUTH, METHODS, NETWORKS, SCORE_COLUMNS, data_sets
from study.params import load_params

Kept = TypeVar("Kept", pd.DataFrame, dict[str, np.ndarray])
RETRAIN = os.environ.get("STUDY_RETRAIN") == "1"  # said by `python -m study.pipeline --retrain STAGE`
MAIN_METRICS = ("PQ", "mIoU", "AP", "AP50_generalized_base", "AP50_generalized_target")  # for `dvc metrics show`


@dataclass
class GroundTruth(dict[int | str, Proposals]):
    """The annotated segments of a data set as its proposals (Table 7), read when asked for."""

    dataset: Dataset

    def __missing__(self, image_id: int | str) -> Proposals:
        return ground_truth_proposals(self.dataset.annotation(image_id))


class Run:
    """One seed of the study: its parameters, data, models and files.

    This seed's `folder` has what is kept, `results` what is measured, `shared` results that no seed changes.

    Raises:
        FileNotFoundError, ValueError: as `load_params`; the device is cuda, but there is no GPU.
    """

    def __init__(self, seed: int = 0, params: str | Path = "params.yaml") -> None:
        self.seed, self.params_path = seed, params
        self.params, self.study = load_params(params)
        self.shared = Path("results") / self.params["profile"]
        self.folder, self.results = Path("runs") / self.params["profile"] / str(seed), self.shared / str(seed)
        self.device = self.params["device"]
        if self.device == "auto":
            self.device = find_device(None)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{params} says device: cuda, but PyTorch finds no GPU; write auto or cpu")
        if self.device == "cuda" and "LOCAL_RANK" in os.environ:  # it means this process's GPU, not the first one
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    @cached_property
    def clip(self) -> Clip:
        """The profile's CLIP, frozen; what it makes of words is kept, for all stages."""
        clip = load_clip(self.study.clip.model, self.study.clip.pretrained, device=self.device)
        return replace(clip, words_folder=self.folder.parent / "words")

    @cached_property
    def clip_files(self) -> dict[str, str]:
        """The SHA-256 of CLIP's files, where it is local: they may change and keep their names."""
        folder, weights = Path(self.study.clip.model), Path(self.study.clip.pretrained or "")
        inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return file_digests(folder, inside) | file_digests(weights.parent, [weights.name])

    def evaluation(self, method: str) -> Evaluation:
        """The profile's, with the released code's errors where the method is evaluated as published."""
        profiles = self.study.evaluation
        return replace(profiles, as_published=True) if METHODS[method].as_published else profiles

    @property
    def thresholds(self) -> dict[str, float]:
        """What `NamedMasks.panoptic` takes."""
        settings = self.study.evaluation
        return {"score_threshold": settings.object_mask_threshold, "overlap_threshold": settings.overlap_threshold}

    def faults_ahead(self, names: Iterable[str]) -> list[str]:
        """What stages to come would stop at, a sentence each: weights that cannot be had, names of these data sets
        that are longer than CLIP reads, methods that are one and the same training in this CLIP."""
        found: list[str] = []
        for settings in vars(self.study.proposals).values():
            found += check_weights("", None, settings.backbone.weights).values()
        found = [said for said in dict.fromkeys(found) if said not in ("here", "to be fetched")]
        for name in names:
            try:
                check_texts(self.clip, self.dataset(name).names, self.study.clip.templates)
            except (ValueError, OSError) as error:
                found.append(f"{name}: {error}")
                if "clip" not in vars(self):
                    return found  # there is none to ask for the others
        return found + self._trained_twice()

    def _trained_twice(self) -> list[str]:
        """A sentence for each method whose training is another's, since few layers make their RMA layers the same."""
        found, trained = list[str](), dict[tuple[Any, ...], str]()
        for name, method in METHODS.items():
            if method.training_set and self.study.maskclip.steps:
                layers = self.rma_layers(name)
                same = method.network, method.training_set, method.refine_masks, layers
                if (other := trained.setdefault(same, name)) != name:
                    found.append(
                        f"methods {other!r} and {name!r} are one training: this CLIP's {self.depth} layers scale both "
                        f"to RMA in {layers}; give one other rma_layers, or run it with a deeper CLIP"
                    )
        return found

    @property
    def depth(self) -> int:
        """How many layers this ViT has."""
        return len(self.clip.model.visual.transformer.resblocks)

    def rma_layers(self, method: str) -> tuple[int, ...]:
        """A method's layers with RMA, scaled to this ViT's depth."""
        own = METHODS[method].rma_layers
        return scale_layers(list(self.study.maskclip.rma_layers if own is None else own), self.depth)

    @cache  # noqa: B019 - a notebook has one run
    def dataset(self, name: str) -> Dataset:
        """A data set by its short name, opened once; test sets are cut to `evaluation.limit` pictures, training sets
        to `data.training_limit`."""
        training = name in DATASETS and DATASETS[name].training
        limit = self.study.data.training_limit if training else self.study.evaluation.limit
        return open_dataset(name, self.study.data.root, limit=limit)

    def there(self, names: Iterable[str]) -> list[str]:
        """Those of these data sets that the profile is not without."""
        return [name for name in names if name in data_sets(self.study.data.without)]

    def proposals(self, network: str, dataset: Dataset) -> Mapping[int | str, Proposals]:
        """The stored proposals of a network for a data set's pictures; `ground_truth` takes the annotation itself."""
        return GroundTruth(dataset) if network == GROUND_TRUTH else StoredProposals(*self._store(network, dataset))

    def _store(self, network: str, dataset: Dataset) -> tuple[Path, str]:
        folder = self.folder / network
        return folder / "stored" / f"{dataset.name}.proposals", proposal_key(folder, dataset)

    def train_proposals(self, network: str) -> Path:
        """Train a network of NETWORKS in `params.processes` processes, into its folder, which is returned."""
        launch(_train_proposals, (self.seed, self.params_path, network), self.params["processes"])
        return self.folder / network

    def store_proposals(self, network: str, dataset: Dataset) -> Path:
        """Run a trained network over a data set's pictures, in `params.processes` processes, and keep its proposals;
        the file is returned."""
        (path, key), processes = self._store(network, dataset), self.params["processes"]
        if processes == 1:
            return self.propose(network, dataset, dataset, path)
        if not holds(path, key, dataset):
            launch(_store_part, (self.seed, self.params_path, network, dataset.name), processes)
            join_parts(dataset, path, key, processes)
        remove_parts(path)
        return path

    def propose(self, network: str, dataset: Dataset, share: Dataset, path: Path, progress: bool = True) -> Path:
        """Store a trained network's proposals for a `share` of a data set in `path`: of test pictures in whole
        precision, seen at the data set's own size."""
        source = load_source(self.folder / network, self.device, pictures=dataset.name)
        training = dataset.name in DATASETS and DATASETS[dataset.name].training
        key = self._store(network, dataset)[1]
        return store_proposals(source, share, path, key, progress=progress, whole=not training)

    def starts(self) -> dict[str, str]:
        """The weights files that the main row begins with: of both settings the file, what it was converted from, and
        the beginning of its SHA-256."""
        study, said = self.study, {}
        for setting, start in (
            ("proposals.mask2former.start", study.proposals.mask2former.start),
            ("maskclip.start", study.maskclip.start),
        ):
            if start and Path(start).is_file():
                with Path(start).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
                origin = converted_from(start)
                said[setting] = f"{start}{f', converted from {origin}' if origin else ''}, sha256 {digest}"
        return said

    def new_encoder(self, method: str) -> MaskCLIPVisualEncoder:
        """The untrained visual encoder of a method of METHODS, its RMA layers scaled to this ViT's depth; of a method
        with RMA, with the weights of `maskclip.start`, if the profile has one."""
        training = self.study.maskclip
        encoder = MaskCLIPVisualEncoder.from_open_clip(
            self.clip.model,
            rma_layers=self.rma_layers(method),
            refine_masks=METHODS[method].refine_masks,
            query_form="linear" if training.linear_query else "layernorm",
            refinement_form="attention" if training.two_layer_refinement else "product",
            zero_init_refinement=training.zero_init_refinement,
            generator=torch.Generator().manual_seed(self.seed),
        )
        if training.start and encoder.rma_layers:
            begun = trained_weights(load_encoder(training.start, self.clip))
            check_fit(begun, trained_weights(encoder), training.start, of=f"another MaskCLIP than method {method!r}")
            encoder.load_state_dict(begun, strict=False)
        return encoder

    def train(self, method: str) -> pd.DataFrame:
        """Train a method of METHODS in `params.processes` processes, into its folder; the training's curve."""
        launch(_train, (self.seed, self.params_path, method), self.params["processes"])
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
        """One method on collections of TEST_PICTURES, with a network's proposals: tidy rows for `write_rows`.

        `tasks` are the results' data set names; None: all there are. The same pictures are run once.
        """
        scores: dict[str, dict[str, float]] = {}
        for group in same_pictures(map(self.dataset, self.there(pictures))):
            asked = method, network, [dataset.name for dataset in group], tasks
            found, judgements = self.tasks(*asked[2:]), self.judgements(*asked)
            if judgements.scores is None:
                if self.params["processes"] == 1:
                    self.judge(*asked)
                else:
                    launch(_judge, (self.seed, self.params_path, *asked), self.params["processes"])
                add_up(list(found.values()), judgements, len(group[0]))
                judgements.settle({name: task.compute() for name, task in found.items()})
            scores |= judgements.scores or {}
        same = {"method": method, "proposals": network, "seed": self.seed, "profile": self.params["profile"]}
        cells = [(name, metric, value) for name, values in scores.items() for metric, value in values.items()]
        return [same | {"dataset": name, "metric": metric, "value": value} for name, metric, value in cells]

    def tasks(self, pictures: Sequence[str], wanted: Sequence[str] | None = None) -> dict[str, Task]:
        """The tasks of collections of the same pictures, by their names in results; `wanted`: some of them."""
        without = self.study.data.without
        found = {name: task for one in pictures for name, task in tasks_of(one, self.dataset, without).items()}
        return {name: task for name, task in found.items() if wanted is None or name in wanted}

    def judgements(
        self, method: str, network: str, pictures: Sequence[str], wanted: Sequence[str] | None
    ) -> Judgements:
        """What was judged already, by a killed evaluation or a former one: of these settings, weights, pictures,
        annotations and this very code."""
        dataset, kind = self.dataset(pictures[0]), METHODS[method]
        key = dataset.fingerprint() if network == GROUND_TRUTH else self._store(network, dataset)[1]
        identity: dict[str, Any] = {"code": _digest_of_code(), "proposals": key, "pictures": pictures, "wanted": wanted}
        scored = [self.dataset(name) for name in self.there(entry.name for one in pictures for entry in scored_on(one))]
        identity |= {"annotations": [(one.name, one.fingerprint(), one.split) for one in scored]}
        identity |= {"weights": file_digests(self.folder / kind.trained_as, ["encoder.pt"]) if kind.trained_as else {}}
        identity |= {name: asdict(getattr(self.study, name)) for name in ("clip", "maskclip")}
        identity |= {"evaluation": asdict(self.evaluation(method)), "clip_files": self.clip_files}
        return Judgements(self.folder / "judged" / f"{method}-{network}-{pictures[0]}", identity)

    def judge(
        self, method: str, network: str, pictures: Sequence[str], wanted: Sequence[str] | None,
        share: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        """Judge a process's share of the pictures that are not judged yet; `Run.evaluate` adds all up."""
        dataset, found = self.dataset(pictures[0]), list(self.tasks(pictures, wanted).values())
        judgements, proposals = self.judgements(method, network, pictures, wanted), self.proposals(network, dataset)
        templates = tuple(self.study.clip.templates)
        judge(self.model(method), dataset, proposals, found, self.evaluation(method), templates, judgements, share)

    def kept(self, name: str, compute: Callable[[], Kept], **identity: Any) -> Kept:
        """What takes long, a table or arrays by name: computed once for these settings, this very code and what else
        `identity` names."""
        identity |= {"code": _digest_of_code("miniature"), "settings": asdict(self.study), "seed": self.seed}
        identity |= {"clip_files": self.clip_files}
        stem = self.folder / "kept" / f"{name}-{settings_hash(identity)}"
        table, arrays = stem.with_suffix(".csv"), stem.with_suffix(".npz")
        if RETRAIN or not (table.is_file() or arrays.is_file()):
            found: Any = compute()
            if isinstance(found, dict):
                write_atomically(arrays, lambda partial: _save_arrays(partial, found))
            else:
                write_atomically(table, lambda partial: found.to_csv(partial, index=False))
        kept: Any = pd.read_csv(table) if table.is_file() else dict(np.load(arrays))
        return kept

    def write_rows(self, stage: str, rows: list[dict]) -> pd.DataFrame:
        """Rows into <stage>.csv, the main ones, nested as dataset.metric, into <stage>.json (several methods:
        <stage>_<method>.json), so that `dvc metrics show` has one line a method."""
        frame = pd.DataFrame(rows, columns=SCORE_COLUMNS)
        for method, of_method in frame.groupby("method", sort=False):
            scores: dict[str, dict[str, float]] = {}
            for row in of_method[of_method.metric.isin(MAIN_METRICS)].to_dict("records"):
                scores.setdefault(row["dataset"], {})[row["metric"]] = round(row["value"], 3)
            self.write_json(f"{stage}.json" if frame.method.nunique() == 1 else f"{stage}_{method}.json", scores)
        self.write_table(f"{stage}.csv", frame)
        return frame

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """A table into this seed's results."""
        write_atomically(self.results / name, lambda path: frame.to_csv(path, index=False))

    def write_json(self, name: str, content: dict) -> None:
        """A JSON file into this seed's results; not-a-number becomes null."""
        write_atomically(self.results / name, json.dumps(_without_nan(content), indent=2) + "\n")

    def write_pictures(self, pictures: Mapping[str, tuple[Shown | np.ndarray, str, str]]) -> None:
        """Pictures for the report, in its order: file name -> (figure or uint8 [H, W, 3], caption, what one sees)."""
        for name, (picture, *_) in pictures.items():
            shown = picture._repr_png_() if isinstance(picture, Shown) else Image.fromarray(picture).save
            write_atomically(self.results / "figures" / name, shown)
        self.write_json("figures/captions.json", {name: said for name, (_, *said) in pictures.items()})


def _train(seed: int, params: str | Path, method: str) -> None:
    run, kind = Run(seed, params), METHODS[method]
    steps, out, encoder = run.study.maskclip.steps, run.folder / method, run.new_encoder(method)
    dataset = run.dataset(str(kind.training_set)) if steps else None  # with nothing to train it need not be there
    proposals = run.proposals(kind.network, dataset) if dataset else {}
    train_maskclip(encoder, run.clip, dataset, proposals, run.study.maskclip, out, seed, retrain=RETRAIN)


def _train_proposals(seed: int, params: str | Path, name: str) -> None:
    run, kind = Run(seed, params), NETWORKS[name]
    config = getattr(run.study.proposals, kind.settings)
    dataset = run.dataset(kind.training_set) if config.training.steps else None
    out, aware, device = run.folder / name, kind.class_aware, "cpu" if run.device == "cpu" else None
    train_proposals(network_of(config), dataset, config, out, seed, class_aware=aware, device=device, retrain=RETRAIN)


def _store_part(seed: int, params: str | Path, network: str, name: str) -> None:
    run, share = Run(seed, params), (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    dataset = run.dataset(name)
    part, place = part_of(dataset, run._store(network, dataset)[0], share)
    run.propose(network, dataset, part, place, progress=share[0] == 0)


def _judge(
    seed: int, params: str | Path, method: str, network: str, pictures: Sequence[str], wanted: Sequence[str] | None
) -> None:
    share = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    Run(seed, params).judge(method, network, pictures, wanted, share)


def _without_nan(content: Any) -> Any:
    """JSON's content with null for not-a-number."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # NumPy would add its suffix to a name
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _digest_of_code(*beside: str) -> str:
    """Of all of the library, and of folders `beside` the study's."""
    folders = [Path(maskclip.__file__).parent, *map(Path, beside)]
    sources = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def machine() -> str:
    """What this runs on: the system, its CPU cores, and the GPU if there is one."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, {gpu}"


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
