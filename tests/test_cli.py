"""The command line: what it does, and that what is wrong is one sentence and exit code 1."""

import resource
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from maskclip.cli import app, command
from maskclip.cost import COLUMNS
from maskclip.proposals import load_source

TOP = Path(__file__).parents[1]
MINI_CLIP = TOP / "models" / "mini_clip"
GOLDEN = TOP / "tests" / "golden" / "mask2former.safetensors"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failure(*arguments: object) -> str:
    """What the command says on standard error, where it must fail."""
    result = run(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def released(tmp_path):
    state = {key[6:]: value for key, value in load_file(GOLDEN).items() if key.startswith("model.")}
    torch.save({"model": state | {"something.else": torch.ones(1)}}, tmp_path / "m.pth")
    return tmp_path / "m.pth"


@pytest.mark.parametrize("keep", [False, True])
def test_convert(released, keep, tmp_path):
    out = tmp_path / "out.safetensors"
    result = run("convert", released, out, *["--keep-class-head"] * keep)
    assert result.exit_code == 0 and "unmapped: something.else" in result.stdout
    assert ("class_embed" in result.stdout) == (not keep)
    assert result.stdout.endswith("tensors, proposal network\n")
    assert load_source(out).class_head == keep


def test_what_is_wrong_with_a_conversion_is_one_sentence(released, tmp_path):
    out = tmp_path / "out.safetensors"
    assert "no checkpoint at" in failure("convert", tmp_path / "none.pth", out)
    torch.save({"model": {"backbone.patch_embed.proj.weight": torch.ones(2)}}, tmp_path / "swin.pth")
    assert "of another architecture" in failure("convert", tmp_path / "swin.pth", out)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        assert "out.safetensors: File too large; make room" in failure("convert", released, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not out.exists()


def test_benchmark(tmp_path):
    options = ["--model", MINI_CLIP, "--masks", 5, "--repeats", 1, "--device", "cpu", "--rows", "clip, wo_rma"]
    result = run("benchmark", *options, "--csv", tmp_path / "results" / "efficiency.csv")
    assert result.exit_code == 0 and "plain CLIP" in result.stdout and "x CLIP" in result.stdout
    frame = pd.read_csv(tmp_path / "results" / "efficiency.csv")
    assert list(frame.columns) == COLUMNS and set(frame.method) == {"clip", "wo_rma"}
    assert set(frame.model) == {"mini_clip"} and set(frame.metric) == {"time_s", "tflops", "peak_gb"}
    assert "rows has ['nonsense']" in failure("benchmark", "--rows", "nonsense")
    assert "metrics is empty; give some of time_s" in failure("benchmark", "--metrics", ",")
    assert "device is 'foo', which PyTorch does not find here" in failure("benchmark", "--device", "foo")
    (tmp_path / "file").touch()
    assert "cannot write" in failure(
        "benchmark", *options, "--metrics", "tflops", "--csv", tmp_path / "file" / "out.csv"
    )
    assert run("benchmark", "--threads", 0).exit_code == 2


def test_cost_counts_alone():
    result = run("cost", "--model", MINI_CLIP, "--masks", 7, "--rows", "clip,maskclip")
    assert result.exit_code == 0 and "MaskCLIP, 7 masks" in result.stdout and "tflops" in result.stdout
    assert "time_s" not in result.stdout and "peak_gb" not in result.stdout
    assert "with a plain ViT" in failure("cost", "--model", "RN50", "--rows", "maskclip", "--masks", 4)
    assert "masks is 0" in failure("cost", "--model", MINI_CLIP, "--masks", 0)


def test_a_new_command_is_one_function():
    @command
    def sing(song: str) -> None:
        """Sing."""
        raise ValueError(f"there is no song {song}")

    try:
        assert failure("sing", "la") == "error: there is no song la\n"
        assert "Sing." in run("--help").stdout
    finally:
        app.registered_commands.pop()


def test_help_and_version_do_not_wait_for_torch():
    program = "import sys, maskclip.cli\ntry: maskclip.cli.app()\nfinally: assert 'torch' not in sys.modules"
    for argument, said in (("--help", "convert"), ("--version", version("maskclip-study"))):
        command = [sys.executable, "-c", program, argument]
        done = subprocess.run(command, capture_output=True, text=True, cwd=TOP)
        assert done.returncode == 0 and said in done.stdout, done.stderr


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "maskclip", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TOP)
    assert done.returncode == 0 and done.stdout.split()[:2] == ["Usage:", "maskclip"], done.stderr


def test_an_installation_brings_the_command():
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"maskclip": "maskclip.cli:app"} and "typer" in project["dependencies"]
