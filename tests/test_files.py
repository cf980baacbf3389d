"""A file is whole or absent, and a checkpoint runs no code."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from maskclip.files import load_checkpoint, save_checkpoint, settings_hash, write_atomically
from maskclip.model.clip import load_clip


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"weight": torch.arange(3), "step": 5})
    state = load_checkpoint(tmp_path / "a.pt")
    assert state["step"] == 5 and state["weight"].tolist() == [0, 1, 2]


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save_checkpoint(tmp_path / name, {"weight": torch.arange(3.0)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_failed_write_keeps_the_former_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("whole")

    def fail(temporary: Path) -> None:
        temporary.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*table\.csv.*No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_whoever_writes(tmp_path: Path) -> None:
    """torch and safetensors have errors of their own for it; what is none of the disk's stays as it is."""
    state, before = {"weight": torch.zeros(100_000)}, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*a\.pt: File too large; make room"):
            save_checkpoint(tmp_path / "a.pt", state)
        with pytest.raises(OSError, match=r"cannot write .*a\.safetensors: File too large; make room"):
            write_atomically(tmp_path / "a.safetensors", save(state))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def fail(temporary: Path) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        write_atomically(tmp_path / "a.pt", fail)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/below\.pt"):
        save_checkpoint(tmp_path / "file" / "below.pt", {})


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"cannot write .*, which is a folder; give a file in it"):
        write_atomically(tmp_path, "text")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"e", b"text\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"])
def test_what_is_no_checkpoint_at_all_is_told_in_plain_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.pt is not a readable checkpoint \(damaged, or of another kind\); give or"):
        load_checkpoint(tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"cannot load CLIP ViT-B-32.*: the weights are not readable \(damaged, or of another kind"
    ):
        load_clip("ViT-B-32-quickgelu", str(tmp_path / "a.pt"))


def test_a_cut_off_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"weight": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"a\.pt is not a readable checkpoint"):
        load_checkpoint(path)


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"weight": Payload()}, protocol=2))  # torch's
    with pytest.raises(ValueError, match=r"not a readable checkpoint \(it holds code\)"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*a\.pt"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_hash_of_settings_minds_values_and_not_their_order() -> None:
    assert settings_hash({"a": 1, "b": [2.0]}) == settings_hash({"b": [2.0], "a": 1})
    hashes = [settings_hash(settings) for settings in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]})]
    assert len(set(hashes)) == 5 and {len(one) for one in hashes} == {16}
