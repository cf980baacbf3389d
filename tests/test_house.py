"""The house keeps its order: imports go one way, the library stands alone, profiles do not meet."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

import maskclip
import study.run
from study.methods import GROUND_TRUTH
from study.run import Run

ROOT = Path(__file__).parent.parent
# Bottom up; a room of the library knows those below its floor, and none on it or above.
FLOORS = [
    {"settings", "files", "hub", "roofline", "device"},
    {"data"},
    {"proposals"},
    {"model"},
    {"visualize"},
    {"training", "evaluation", "released", "cost"},
    {"segmenter"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for package in ("maskclip", "study", "miniature") for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere, also within functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out in full"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    found = {tuple(module.split(".")[:2]) for module in imports(path)}
    assert not {name for name, *_ in found} & ({"study", "miniature"} - {package}), f"{package} knows maskclip alone"
    if package == "maskclip" and rest != ["__init__"]:
        rooms = {names[1] for names in found if names[0] == "maskclip" and len(names) > 1} - {rest[0]}
        assert rooms | {rest[0]} <= set(FLOOR), "a new room of the library needs its floor in FLOORS"
        assert all(FLOOR[room] < FLOOR[rest[0]] for room in rooms), f"{rest[0]} knows {rooms}: some are not below it"


def tracked(*places: str) -> list[str]:
    """The files that git knows there."""
    listed = subprocess.run(["git", "ls-files", "-z", *places], cwd=ROOT, capture_output=True, check=True).stdout
    return list(filter(None, listed.decode().split("\0")))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` installs."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked("maskclip", "models", "study", "miniature", "pyproject.toml", "README.md", "LICENSE"):
        # a copy, since building leaves folders behind
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=folder / "source", check=True, timeout=300)
    return next(folder.glob("*.whl"))


def test_pip_installs_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"maskclip"}
    assert set(tracked("maskclip")) - {"maskclip/models"} <= set(names), "and all of it"
    assert {f"maskclip/{name}" for name in tracked("models")} <= set(names), "with the miniature's weights"


def test_what_pip_installs_segments_in_any_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import numpy, maskclip
segmenter = maskclip.Segmenter.load()
answer = segmenter(numpy.full((60, 80, 3), 128, numpy.uint8), segmenter.known_words[:3])
print(maskclip.__file__, answer.panoptic.shape)
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert said.stdout.strip() == f"{tmp_path / 'site' / 'maskclip' / '__init__.py'} (60, 80)", said.stderr


def test_profiles_share_no_folder(tmp_path: Path) -> None:
    """A trial in the miniature touches nothing of the paper profile's weeks of training."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    places = {}
    for profile in ("mini", "paper"):
        params = tmp_path / "params.yaml"
        params.write_text((ROOT / "params.yaml").read_text().replace("profile: mini", f"profile: {profile}"))
        run = Run(3, params)
        places[profile] = [run.folder, run.results, run.shared, Path(run.study.data.root)]
        assert all(profile in place.parts for place in places[profile])
    assert not set(places["mini"]) & set(places["paper"])


def test_a_network_is_trained_as_its_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    trained: dict[str, tuple[str, str]] = {}
    monkeypatch.setattr(Run, "dataset", lambda self, name: name)
    monkeypatch.setattr(
        study.run, "train_proposals",
        lambda kind, dataset, config, out, *_, **__: trained.update({out.name: (kind, dataset)}),
    )  # fmt: skip
    for name in ("mask_rcnn", "mask2former_base", "class_aware"):
        study.run._train_proposals(0, "params.yaml", name)
    assert trained == {
        "mask_rcnn": ("mask_rcnn", "coco_train"),
        "mask2former_base": ("mask2former", "coco_split_train"),
        "class_aware": ("mask2former", "coco_train"),
    }


def test_a_table_that_takes_long_is_computed_once_for_each_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run, calls = Run(0), []
    run.folder = tmp_path

    def compute() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"word": ["cow"], "share": [0.1 + 0.2]})

    first = run.kept("asked", compute, scenes=8)
    assert run.kept("asked", compute, scenes=8).equals(first) and first.share[0] == 0.1 + 0.2 and len(calls) == 1
    run.kept("asked", compute, scenes=9)
    run.study = replace(run.study, maskclip=replace(run.study.maskclip, temperature=7.0))
    run.kept("asked", compute, scenes=8)
    assert len(calls) == 3 and len(list((tmp_path / "kept").iterdir())) == 3
    monkeypatch.setattr(study.run, "RETRAIN", True)
    run.kept("asked", compute, scenes=8)
    assert len(calls) == 4


def test_other_weights_under_the_same_name_are_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    pictures = {"fingerprint": lambda: "these", "split": None}
    monkeypatch.setattr(Run, "dataset", lambda self, name: SimpleNamespace(name=name, **pictures))
    clip = shutil.copytree("models/mini_clip", tmp_path / "clip")

    def places() -> list[str]:
        run = Run(0)
        run.folder, run.study = tmp_path / "run", replace(run.study, clip=replace(run.study.clip, model=str(clip)))
        run.kept("asked", lambda: pd.DataFrame({"word": ["cow"]}))
        judged = run.judgements("wo_rma", GROUND_TRUTH, ["a150"], None).folder
        return [str(judged), *sorted(path.name for path in (tmp_path / "run/kept").iterdir())]

    before = places()
    assert places() == before and len(before) == 2
    with (clip / "open_clip_model.safetensors").open("ab") as weights:
        weights.write(b"other")
    after = places()
    assert after[0] != before[0] and len(after) == 3


def test_not_a_number_is_null_and_a_caption_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = Run(0)
    run.results = tmp_path
    run.write_json("all.json", {"a150": {"PQ": float("nan")}, "said": ["NaN bread", 1.5]})
    assert json.loads((tmp_path / "all.json").read_text()) == {"a150": {"PQ": None}, "said": ["NaN bread", 1.5]}


def test_arrays_that_take_long_are_kept_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = Run(0)
    run.folder = tmp_path
    wanted = {"asked": np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "answered": np.full((2, 2), 0.1)}
    first = run.kept("drawn", lambda: wanted)
    again = run.kept("drawn", lambda: pytest.fail("it is kept"))
    assert [*first] == [*again] == [*wanted]
    for name, array in wanted.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_all_that_stages_write_but_the_report_is_a_profiles_own() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    written = [
        place for stage in stages.values() for kind in ("outs", "metrics", "plots") for place in stage.get(kind, [])
    ]
    names = [place if isinstance(place, str) else next(iter(place)) for place in written]
    assert len(names) > 40 and all("/${profile}/" in f"{name}/" for name in names)


def test_the_bare_package_is_light_and_its_names_come_when_asked_for() -> None:
    code = "import sys, maskclip; assert not {'torch', 'open_clip', 'numpy'} & set(sys.modules); maskclip.load_clip"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert all(hasattr(maskclip, name) for name in maskclip.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        maskclip.nothing  # noqa: B018


def test_the_conda_environment_has_all_that_pip_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for some in project["optional-dependencies"].values() for one in some)]
    conda = YAML(typ="safe").load(ROOT / "environment.yml")["dependencies"]
    listed = [one for item in conda for one in (item["pip"] if isinstance(item, dict) else [item])]
    there = {re.split(r"[=<>]", one)[0].replace("_", "-") for one in listed} | {"numpy"}  # pytorch brings it
    names = {re.split(r"[=<>;]", one)[0].replace("_", "-") for one in wanted}
    assert names - there == {"torch"} and "pytorch" in there


def test_make_keeps_bytecode_and_sends_no_analytics_wherever_it_runs() -> None:
    """Without bytecode each of a hundred processes compiles PyTorch anew: `make test` takes half as long again."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "DVC_NO_ANALYTICS": ""}
    command = ["make", "--no-print-directory", "--eval", "show: ; @env", "show"]
    seen = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "PATH=" in seen and "PYTHONDONTWRITEBYTECODE" not in seen and "DVC_NO_ANALYTICS=1" in seen


@pytest.mark.parametrize("uv", ["works", "fails"])
def test_where_uv_fails_pip_installs_all(uv: str, tmp_path: Path) -> None:
    """uv knows nothing of a mirror or a proxy that is pip's alone."""
    bin_, log = tmp_path / "venv" / "bin", tmp_path / "log"
    python, tool = tmp_path / "python", tmp_path / "uv"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n[ "$2" = venv ] && mkdir -p "{bin_}" && cp "{python}" "{tool}" "{bin_}"\n'
        f'echo "$@" >> "{log}"\n'
    )
    tool.write_text(f'#!/bin/sh\necho "uv $@" >> "{log}"\n[ {uv} = works ]\n')
    for file in (python, tool):
        file.chmod(0o755)
    subprocess.run(["make", "install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, check=True)
    done = log.read_text().splitlines()
    every = [line for line in done if ".[study,miniature,test]" in line and "-c constraints.txt" in line]
    assert [line.split()[0] for line in every] == ["uv"] + ["-m"] * (uv == "fails"), done
    assert (tmp_path / "venv" / ".installed").exists()
