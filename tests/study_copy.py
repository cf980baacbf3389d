"""A copy of the study in a folder of its own, and commands in it, as users give them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent


def start(folder: Path, module: str, *arguments: str) -> subprocess.Popen:
    """`python -m module` of this very environment, found first, in a copy of the study."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "SHELL": "/bin/sh"}  # as where none is set
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(folder: Path, module: str, *arguments: str) -> str:
    process = start(folder, module, *arguments)
    output = process.communicate(timeout=1500)[0]
    assert process.returncode == 0, output
    return output


def update(settings: dict, small: dict) -> None:
    for name, value in small.items():
        if isinstance(value, dict):
            update(settings[name], value)
        else:
            settings[name] = value


def copy_study(folder: Path, params: dict, **profiles: dict) -> Path:
    """What git tracks here, reports aside, as a repository without results; changes laid over params.yaml and profiles.

    A name in `profiles` is a file of configs/.
    """
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        whole = (ROOT / name).is_file() or (ROOT / name).is_symlink()
        if whole and (not name.startswith("reports/") or name.endswith("reasons.yaml")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    (folder / "dvc.lock").unlink(missing_ok=True)
    yaml = YAML()
    for name, changes in {
        "params.yaml": params,
        **{f"configs/{name}.yaml": of for name, of in profiles.items()},
    }.items():
        settings = yaml.load(folder / name)
        update(settings, changes)
        yaml.dump(settings, folder / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder
