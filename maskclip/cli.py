"""The command line: `maskclip --help`. A command is a function here; what is slow to import is imported inside it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of `app` whose errors are one sentence and exit code 1."""

    @functools.wraps(function)
    def told(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except (ValueError, OSError, ImportError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None

    return app.command()(told)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Say the version and end.")] = False) -> None:
    """Open-vocabulary segmentation with mask class tokens in a frozen CLIP.

    Begin with: maskclip segment my.png "umbrella, cow, grass, sky"
    """
    if version:
        typer.echo(f"maskclip {metadata.version('maskclip-study')}")


Downloads = Annotated[Path, typer.Option("--from", help="Folder of the archives, packed as they are")]


@command
def prepare(
    name: Annotated[str, typer.Argument(metavar="SET", help="coco, ade20k, ade20k-full, pascal-context or lvis")],
    source: Downloads,
    target: Annotated[Path, typer.Option("--to", help="The data folder")] = Path("data/paper"),
    workers: Annotated[int, typer.Option(help="Processes at once", min=1)] = os.cpu_count() or 1,
) -> None:
    """Prepare a real data set.

    Lays it out from the archives as their owners publish them; a second run makes only what is missing.
    """
    from maskclip.data.check import PUBLISHED, check_data
    from maskclip.data.manifest import update_manifests
    from maskclip.data.prepare import PREPARATIONS

    if name not in PREPARATIONS:
        raise ValueError(f"there is no data set {name!r} to prepare; there are {', '.join(PREPARATIONS)}")
    counts = PREPARATIONS[name](source, target, workers=workers)
    typer.echo(", ".join(f"{what}: {count:,}" for what, count in counts.items()))
    made = [one for one, published in PUBLISHED.items() if published.prepare == name]
    update_manifests(target, check_data(target, made, published=False, workers=workers))


@command
def check(
    root: Annotated[Path, typer.Argument(help="The data folder, laid out as docs/data.md says")] = Path("data/paper"),
    sets: Annotated[str, typer.Option(help="Of them, separated by commas  [default: all]")] = "",
    thorough: Annotated[bool, typer.Option("--thorough", help="Read every picture and annotation")] = False,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="As --thorough, and go on without the pictures that are damaged")
    ] = False,
    own: Annotated[bool, typer.Option("--own", help="Sets of your own: do not compare published counts")] = False,
    workers: Annotated[int, typer.Option(help="Threads that read", min=1)] = os.cpu_count() or 1,
) -> None:
    """Find every fault of the data at once.

    Exit code 1 if there is any. Sets without faults get a manifest, on which the study's stages depend: after a
    repair, run it again.
    """
    from maskclip.data.check import check_data
    from maskclip.data.datasets import DATASETS, LEFT_OUT, read_left_out
    from maskclip.data.manifest import update_manifests

    if root.is_file():
        raise ValueError(f"{root} is a file; give the data folder, laid out as docs/data.md says")
    options: dict[str, Any] = dict(thorough=thorough or skip_damaged, skip_damaged=skip_damaged, workers=workers)
    findings = check_data(root, _list(sets) or DATASETS, published=not own, **options)
    for one in findings:
        counts = "-" if one.pictures is None else f"{one.pictures:,} pictures, {one.categories:,} categories"
        typer.echo(f"{one.name:17} {counts:36} {f'{len(one.faults)} faults' if one.faults else 'right'}")
    faults = [f"{one.name}: {fault}" for one in findings for fault in one.faults]
    for number, fault in enumerate(faults, 1):
        typer.echo(f"{number}. {fault}")
    update_manifests(root, findings)
    if left_out := read_left_out(root):
        typer.echo(f"left out of all sets, as {root / LEFT_OUT} says: {len(left_out):,} pictures")
        for place, why in left_out.items():
            typer.echo(f"  {place}: {why}")
    if faults:
        raise ValueError(f"{len(faults)} faults in {root}, listed above")


@command
def fetch(
    to: Annotated[Path | None, typer.Option("--to", help="A cache folder  [default: the hub's, see HF_HOME]")] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Say which files, how large, from where; fetch nothing")
    ] = False,
) -> None:
    """Fetch weights for use offline.

    All that the paper profile and own photographs want, for machines without network.
    """
    from maskclip import hub

    if listed:
        for what, (repo, files, size) in hub.FETCHED.items():
            typer.echo(f"{what}: {', '.join(files)} ({size}) from https://huggingface.co/{repo}")
        return
    for line in hub.fetch(to):
        typer.echo(line)
    if to:
        typer.echo(f"where there is no network: export HF_HUB_CACHE={to.resolve()}")


@command
def convert(
    released: Annotated[Path, typer.Argument(help="A checkpoint of the authors or of Mask2Former: .pth or .pkl")],
    out: Annotated[Path, typer.Argument(help="A safetensors file to write")],
    keep_class_head: Annotated[bool, typer.Option(help="Keep the class head, for objectness only")] = False,
) -> None:
    """Convert released weights.

    The file goes where proposals and encoders are asked for: segment's --proposals and --encoder, a profile's settings.
    """
    from maskclip.released import mask2former

    converted = mask2former.convert(released, out, keep_class_head)
    for title, keys in (("dropped", converted.dropped), ("unmapped", converted.unmapped)):
        if keys:
            typer.echo(f"{title}: {', '.join(keys)}")
    encoder = any(key.startswith(mask2former.ENCODER) for key in converted.state)
    typer.echo(f"{out}: {len(converted.state)} tensors, proposal network{' and encoder' if encoder else ''}")


@command
def segment(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE... WORDS", help="Files or folders, then the words")],
    things: Annotated[str, typer.Option(help="Words to count one by one  [default: all but stuff]")] = "",
    task: Annotated[str, typer.Option(help="panoptic, semantic or instances")] = "panoptic",
    out: Annotated[Path, typer.Option(help="Folder for <picture>.png")] = Path("segmented"),
    json: Annotated[bool, typer.Option("--json", help="Write COCO's JSON and ids beside them, too")] = False,
    model: Annotated[str, typer.Option(help="An open_clip name or a folder  [default: the drawn miniature's]")] = "",
    pretrained: Annotated[str, typer.Option(help="open_clip's tag or a weights file  [default: the first tag]")] = "",
    proposals: Annotated[
        str, typer.Option(help="A file, folder, hub name (Mask2Former, SAM) or own source's name")
    ] = "",
    encoder: Annotated[str, typer.Option(help="Trained or converted MaskCLIP weights  [default: training-free]")] = "",
    templates: Annotated[str, typer.Option(help="none, 14 or 80")] = "none",
    all_named: Annotated[bool, typer.Option("--all-named", help="Name every mask, fitting or not")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda  [default: cuda where there is a GPU]")] = "",
) -> None:
    """Segment pictures with words of your own.

    Words are one text, "dog, lawn | grass, sky", in which | joins names of one thing. For photographs take --model
    ViT-L-14-336; without it, the miniature knows a drawn world only. What is done already for the same words and
    settings is not done again. Exit code 1 if a picture could not be read.
    """
    from maskclip.segmenter import batch

    if os.path.isfile(pictures[-1]):  # a Path would raise where many words are longer than a name may be
        raise ValueError(f'{pictures[-1]} is a file; the words come last: maskclip segment photo.jpg "dog, grass"')
    words = _list(pictures[-1])
    options = dict(model=model, pretrained=pretrained, proposals=proposals, encoder=encoder, templates=templates)
    settings = dict(words=words, things=_list(things), task=task, json=json, all_named=all_named, **options)
    failed = batch.segment_files(batch.find_pictures(pictures[:-1]), out, settings, device or None, typer.echo)
    if failed:
        raise ValueError(f"{failed} could not be segmented; see above")


Model = Annotated[str, typer.Option(help="An open_clip name (random weights) or a folder")]
Masks = Annotated[int, typer.Option(help="Masks of the picture")]
Resolution = Annotated[int | None, typer.Option(help="Pixels a side  [default: the model's own]")]
Rows = Annotated[str, typer.Option(help="Of the table, separated by commas  [default: all]")]
Csv = Annotated[Path | None, typer.Option(help="Also write the rows to this file")]


@command
def score(
    truth: Annotated[Path, typer.Argument(help="COCO panoptic JSON, its PNGs in a folder of its name beside it")],
    predictions: Annotated[Path, typer.Argument(help="The same of the predictions")],
    workers: Annotated[int, typer.Option(help="Processes at once", min=1)] = os.cpu_count() or 1,
) -> None:
    """Score panoptic predictions, whoever made them (PQ, SQ, RQ).

    Counts as panopticapi does, to the last digit.
    """
    from maskclip.evaluation.panoptic_files import score_panoptic_files

    scores = score_panoptic_files(truth, predictions, workers)
    typer.echo("\n".join(f"{metric:5} {value:7.3f}" for metric, value in scores.items()))


@command
def cost(
    model: Model = "ViT-L-14-336",
    masks: Masks = 100,
    resolution: Resolution = None,
    rows: Rows = "",
    csv: Csv = None,
    gpu: Annotated[str, typer.Option(help="Predict its seconds: A5000, H100 ..., or here  [default: none]")] = "",
) -> None:
    """Count one picture's TFLOPs (Table 6).

    The model is not run at its size. Hours, memory and disk of the whole study: python -m study.cost.
    """
    from maskclip import cost as costs
    from maskclip.roofline import find_gpu

    options: dict[str, Any] = dict(metrics=["tflops"], gpu=find_gpu(gpu) if gpu else None)
    frame = costs.benchmark(model, masks, resolution, rows=_list(rows) or list(costs.ROWS), **options)
    _tell(frame, csv)


@command
def benchmark(
    model: Model = "ViT-L-14-336",
    masks: Masks = 100,
    resolution: Resolution = None,
    device: Annotated[str, typer.Option(help="cpu or cuda  [default: cuda where there is a GPU]")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    rows: Rows = "",
    metrics: Annotated[str, typer.Option(help="Of them, separated by commas")] = "time_s,tflops,peak_gb",
    repeats: Annotated[int, typer.Option(help="Rounds, of which the median counts")] = 3,
    matched: Annotated[int, typer.Option(help="Masks in the training step's loss")] = 15,
    threads: Annotated[int | None, typer.Option(help="CPU threads  [default: torch's]", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, image and masks")] = 0,
    csv: Csv = None,
) -> None:
    """Measure time and memory (Table 6).

    Of one picture, on this machine: seconds, TFLOPs, peak memory.
    """
    import torch

    from maskclip import cost
    from maskclip.device import find_device

    if threads:
        torch.set_num_threads(threads)
    picture: dict[str, Any] = dict(model=model, masks=masks, resolution=resolution, matched=matched, seed=seed)
    way: dict[str, Any] = dict(device=find_device(device), dtype=dtype, repeats=repeats)
    frame = cost.benchmark(rows=_list(rows) or list(cost.ROWS), metrics=_list(metrics), **picture, **way)
    _tell(frame, csv)


def _tell(frame: Any, csv: Path | None) -> None:
    """A table of costs, as text and as a file."""
    from maskclip.cost import as_table
    from maskclip.files import write_atomically

    typer.echo(as_table(frame))
    if csv:
        write_atomically(csv, lambda temporary: frame.to_csv(temporary, index=False))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    app()
