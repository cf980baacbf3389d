"""Files and folders of pictures through a `Segmenter`, one by one, as `maskclip segment` does."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from tqdm import tqdm

from maskclip.files import check_folder, file_digests, settings_hash, write_atomically
from maskclip.segmenter.answer import Segmentation, check_task
from maskclip.segmenter.segmenter import MINIATURE, Segmenter

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_pictures(places: Sequence[str]) -> list[Path]:
    """The files given, and the pictures directly in the folders given, by name.

    Raises:
        FileNotFoundError, ValueError: a place that is not there, a folder without pictures, no place, or two
            pictures whose results would have one name.
    """
    if not places:
        raise ValueError('give pictures or folders first, then the words: maskclip segment photo.jpg "dog, grass"')
    found = []
    for place in map(Path, places):
        if not os.path.exists(place):
            raise FileNotFoundError(f"there is no picture or folder {place}")
        inside = sorted(place.iterdir()) if place.is_dir() else [place]
        inside = [path for path in inside if path == place or _is_picture(path)]
        if not inside:
            raise ValueError(f"the folder {place} has no pictures ({', '.join(SUFFIXES)})")
        found += inside
    names = Counter(path.stem for path in found)
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise ValueError(f"more than one picture is called {', '.join(twice)}; segment them into folders of their own")
    return found


def _is_picture(path: Path) -> bool:
    """By its name; hidden ones are what macOS and killed programs leave."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def segment_files(
    pictures: Sequence[Path], out: Path, settings: Mapping[str, Any], device: str | None, tell: Callable[[str], object]
) -> int:
    """Write OUT/<stem>.png for each picture, JSON if wanted; what has been done with the same settings is kept.

    Returns:
        How many pictures could not be read; each is told.

    Raises:
        ValueError: there is no such task, `out` is a file, or a result would be written over one of the pictures, or
            over another's.
    """
    check_task(settings["task"])
    check_folder(out)
    endings = (".png", ".json", "_ids.png") if settings["json"] else (".png",)
    places, sources = set[Path](), {path.resolve() for path in pictures}
    for target in (out / f"{path.stem}{ending}" for path in pictures for ending in endings):
        if target.resolve() in sources or target in places:
            raise ValueError(f"{target} would be written over; give --out a folder without pictures, or rename one")
        places.add(target)
    todo = [path for path in pictures if not _is_done(path, out, settings)]
    if len(todo) < len(pictures):
        tell(f"{len(pictures) - len(todo)} of {len(pictures)} are done already in {out}")
    if not todo:
        return 0
    names = {key: settings[key] or None for key in ("pretrained", "proposals", "encoder")}
    segmenter = Segmenter.load(settings["model"] or MINIATURE, templates=settings["templates"], device=device, **names)
    asked: dict[str, Any] = {"things": settings["things"] or None, "none_of_these": not settings["all_named"]}
    failed = 0
    for path in tqdm(todo, "segmenting", disable=len(todo) == 1):
        try:
            answer = segmenter(path, settings["words"], **asked)
        except (ValueError, OSError) as error:
            if len(pictures) == 1:
                raise
            failed += 1
            tell(f"error: {error}")
        else:
            _write(answer, path, out, settings)
            tell(f"{out / f'{path.stem}.png'}: {_counted(answer, settings['task']) or 'none of these'}")
    return failed


def _counted(answer: Segmentation, task: str) -> str:
    names = Counter(one.name for one in (answer.instances if task == "instances" else answer.segments))
    return ", ".join(f"{number} {name}" for name, number in names.items())


def _mark(path: Path, out: Path, settings: Mapping[str, Any]) -> str:
    """Tells answers apart: by what the picture holds, the settings, the weights, and the JSON and ids beside it."""
    weights = [place for key in ("model", "pretrained", "proposals", "encoder") for place in _files(settings[key])]
    states = [[place.name, place.stat().st_size, place.stat().st_mtime_ns] for place in weights]
    beside = file_digests(out, _beside(path)) if settings["json"] else {}
    return settings_hash({**settings, "weights": states, **file_digests(path.parent, [path.name]), "beside": beside})


def _beside(path: Path) -> tuple[str, str]:
    return f"{path.stem}.json", f"{path.stem}_ids.png"


def _files(name: str) -> list[Path]:
    """The files of weights that are no name of open_clip's or the hub's; trained again, they answer otherwise."""
    place = Path(name or MINIATURE)
    return sorted(one for one in (place.iterdir() if place.is_dir() else [place]) if one.is_file())


def _write(answer: Segmentation, path: Path, out: Path, settings: Mapping[str, Any]) -> None:
    if settings["json"]:
        answer.save_coco(out, path.stem)
    else:
        _remove_former(path, out)
    note = PngImagePlugin.PngInfo()
    note.add_text("maskclip", _mark(path, out, settings))  # by which it is known again
    drawn = Image.fromarray(answer.draw(settings["task"]))
    write_atomically(out / f"{path.stem}.png", lambda partial: drawn.save(partial, pnginfo=note))


def _is_done(path: Path, out: Path, settings: Mapping[str, Any]) -> bool:
    try:
        with Image.open(out / f"{path.stem}.png") as image:
            image.load()
            return image.info.get("maskclip") == _mark(path, out, settings)
    except (OSError, SyntaxError):  # there is none, or half of one
        return False


def _remove_former(path: Path, out: Path) -> None:
    """Remove the JSON of an earlier answer, which says other words than the picture to come; no JSON of others."""
    former = out / _beside(path)[0]
    try:
        content = json.loads(former.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(content, dict) and content.keys() == {"images", "categories", "annotations", "instances"}:
        former.unlink()
