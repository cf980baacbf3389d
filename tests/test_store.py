"""Stores of proposals: what comes back, what a kill, a damage or another process does to them."""

import json
import os
import pickle
import resource
import signal
import sqlite3
import threading
from contextlib import closing
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_proposals import ToyScenes
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from maskclip.proposals import Proposals, StoredProposals, proposal_key, store_proposals
from maskclip.proposals.store import (
    LEVELS,
    PAGE_SIZE,
    SCHEMA,
    dequantize,
    encode,
    join_parts,
    part_of,
    quantize,
    room_for,
)
from study import run


@given(
    st.lists(st.floats(-50, 50, width=32, allow_subnormal=False), min_size=1, max_size=50),
    st.sampled_from(LEVELS),
)
@settings(max_examples=50, deadline=None)
def test_quantization_keeps_the_mask_and_is_near(values, levels):
    logits = np.array(values, dtype=np.float32)
    back = dequantize(quantize(logits, levels), levels)
    assert ((back > 0) == (logits > 0)).all()
    assert (np.abs(np.tanh(back / 4) - np.tanh(logits / 4)) <= 0.5 / levels + 1e-6).all()


def test_the_least_positive_logit_stays_positive():
    torch.set_flush_denormal(True)  # as training does, for the whole process
    try:
        least = np.array([np.finfo(np.float32).tiny], dtype=np.float32)
        assert dequantize(quantize(least)) > 0 > dequantize(quantize(-least))
    finally:
        torch.set_flush_denormal(False)


def _hundred_masks(roughness: float, steepness: float = 1.2) -> Proposals:
    """Masks as a network at a short side of 800 gives them; roughness is the noise of every single pixel's logit,
    steepness what a logit changes by from pixel to pixel at a border."""
    rng, (height, width) = np.random.default_rng(0), (200, 300)
    rows, columns = np.mgrid[:height, :width]
    logits = []
    for _ in range(100):
        y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(10, 90)
        distance = radius - np.hypot(rows - y, (columns - x) * rng.uniform(0.5, 2))  # to an ellipse's border
        noise = functional.interpolate(
            torch.from_numpy(rng.normal(size=(1, 1, height // 8, width // 8))), (height, width)
        )
        logits.append(steepness * distance + 0.5 * noise[0, 0].numpy() + roughness * rng.normal(size=(height, width)))
    return Proposals(torch.from_numpy(np.stack(logits)).float(), torch.rand(100))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("roughness", "steepness", "levels"), [(0.0, 1.2, 16), (2.0, 1.2, 16), (1.0, 0.3, 8), (0.3, 0.1, 4)]
)
def test_a_photographs_hundred_masks_fit_their_room(roughness, steepness, levels, whole, tmp_path):
    """Undecided masks cost precision, never the mask; where all of it is wanted, room."""
    proposals = _hundred_masks(roughness, steepness)
    scenes, options = ToyScenes(count=3), {"progress": False, "whole": whole}
    path = store_proposals(lambda images: [proposals] * len(images), scenes, tmp_path / "s", "key", **options)
    fits, levels = path.stat().st_size < 1.02 * 3 * 100 * room_for(200, 300), 16 if whole else levels
    assert fits or (whole and steepness < 1)
    logits, back = proposals.mask_logits, StoredProposals(path, "key")[101].mask_logits
    assert len(back.unique()) == 2 * levels
    assert (back > 0).equal(logits > 0)
    torch.testing.assert_close((back / 4).tanh(), (logits / 4).tanh(), atol=0.5 / levels + 1e-6, rtol=0)


@pytest.mark.parametrize("payload", [198_000, 198_400])
def test_what_the_file_adds_to_the_largest_masks_is_little(payload, tmp_path):
    """100 masks of `SMALLEST_ROOM` and their scores, 50 times: still under 200 kB an image."""
    with closing(sqlite3.connect(tmp_path / "store")) as connection, connection:
        connection.executescript(f"PRAGMA page_size = {PAGE_SIZE}; {SCHEMA}")
        for place in range(50):
            row = (place, 2**32 - 1, place, 16, 200, 300, bytes(400), bytes(payload - 400))
            connection.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    assert (tmp_path / "store").stat().st_size < 50 * 200_000


class Fixed:
    """A source with a fixed answer per image, which counts what it is asked."""

    def __init__(self, limit: int = 10**9) -> None:
        self.asked, self.limit = 0, limit

    def __call__(self, images):
        self.asked += len(images)
        if self.asked > self.limit:
            raise KeyboardInterrupt
        return [Proposals(_logits(image), torch.linspace(0, 1, len(_logits(image)))) for image in images]


def _logits(image: np.ndarray) -> torch.Tensor:
    count = int(image[0, 0, 0]) % 4  # none for some images
    return torch.from_numpy(image[:16, :20].astype(np.float32)).permute(2, 0, 1).repeat(2, 1, 1)[:count] / 32 - 4


def test_store_gives_back_what_the_source_gave(tmp_path):
    scenes, source = ToyScenes(count=11), Fixed()
    key = proposal_key("fixed", scenes)
    path = store_proposals(source, scenes, tmp_path / "toy.masks", key, progress=False)
    store = StoredProposals(path, key)
    assert list(store) == scenes.image_ids and len(store) == 11
    for index, image_id in enumerate(scenes.image_ids):
        logits = _logits(scenes[index].image)
        assert (store[image_id].mask_logits > 0).equal(logits > 0)
        near = (store[image_id].mask_logits / 4).tanh(), (logits / 4).tanh()
        torch.testing.assert_close(*near, atol=1 / 32 + 1e-6, rtol=0)
        torch.testing.assert_close(store[image_id].scores, torch.linspace(0, 1, len(logits)))
    store_proposals(source, scenes, path, key, progress=False)
    assert source.asked == 11  # computed once


def test_a_store_says_how_many_images_are_coarser(tmp_path, capsys):
    scenes = ToyScenes(count=4)
    rough = torch.randn(3, 200, 200, generator=torch.Generator().manual_seed(0))

    def source(images):
        return [Proposals(rough if image is images[0] else torch.zeros(3, 9, 9), torch.ones(3)) for image in images]

    path = store_proposals(source, scenes, tmp_path / "toy.masks", "key", batch=4, progress=False)
    levels = StoredProposals(path, "key").levels()
    assert list(levels) == scenes.image_ids and list(levels.values()) == [1, 16, 16, 16]
    assert "the masks of 1 of 4 images were too rough" in capsys.readouterr().out


def test_a_stale_or_cut_off_store_is_never_used(tmp_path):
    scenes, source = ToyScenes(count=5), Fixed()
    key = proposal_key("fixed", scenes)
    path = store_proposals(source, scenes, tmp_path / "toy.masks", key, progress=False)
    other = proposal_key("fixed", ToyScenes(count=5, seed=1))
    assert other != key
    with pytest.raises(ValueError, match="another network or other pictures"):
        StoredProposals(path, other)
    content = path.read_bytes()
    for cut in (b"", b"MCPROP03", content[:-30], content[:3000], bytes(len(content))):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=r"toy\.masks is (cut off|damaged).*delete it and run the proposals stage"):
            list(StoredProposals(path, key).values())
    store_proposals(source, ToyScenes(count=5, seed=1), path, other, progress=False)
    assert len(StoredProposals(path, other)) == 5 and source.asked == 10
    with pytest.raises(FileNotFoundError, match="run the proposals stage"):
        StoredProposals(tmp_path / "none", key)


def test_any_flipped_byte_changes_nothing_or_is_one_sentence_and_healed(tmp_path):
    generator = torch.Generator().manual_seed(0)
    scenes = ToyScenes(count=4)
    rough = Proposals(torch.randn(3, 60, 60, generator=generator), torch.ones(3))
    options = dict(key="key", progress=False)
    path = store_proposals(lambda images: [rough] * len(images), scenes, tmp_path / "toy.masks", **options)
    whole, told = path.read_bytes(), 0
    wanted = {image_id: proposals.mask_logits for image_id, proposals in StoredProposals(path, "key").items()}
    for place in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 0x55
        path.write_bytes(flipped)
        try:
            found = dict(StoredProposals(path, "key").items())
        except (ValueError, KeyError) as error:
            assert "toy.masks" in str(error) and "run the proposals stage again" in str(error)
            told += 1
        else:  # what nobody reads: the rest of a page, counters
            assert all(
                found[image_id].mask_logits.equal(logits) for image_id, logits in wanted.items() if image_id in found
            )
    assert told > 0.95 * 4 * sum(map(len, encode(0, rough)[-2:])) / 97
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    path.write_bytes(flipped)
    (tmp_path / "toy.masks.partial").write_bytes(bytes(50))  # what a power cut may leave
    store_proposals(lambda images: [rough] * len(images), scenes, path, **options)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ("DELETE FROM images", KeyError, "toy.masks has no proposals of image 100"),
        ("UPDATE images SET id = 201 - id", ValueError, "toy.masks is damaged at image 100"),
        ("UPDATE images SET levels = 8", ValueError, "toy.masks is damaged at image 100"),
        ("UPDATE images SET scores = NULL", ValueError, "toy.masks is damaged at image 100"),
        ("ALTER TABLE images ADD more", ValueError, "toy.masks is damaged at image 100"),
        ("DELETE FROM meta", ValueError, "toy.masks is cut off"),
        ("DROP TABLE images", ValueError, "toy.masks is cut off"),
    ],
)
def test_a_store_changed_by_hand_is_one_sentence(change, error, said, tmp_path):
    path = store_proposals(Fixed(), ToyScenes(count=2), tmp_path / "toy.masks", "key", progress=False)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    with pytest.raises(error, match=said):
        StoredProposals(path, "key")[100]


@pytest.mark.parametrize("name", ["toy.masks", "50 % # ? of Zoë's/toy & more.masks"])
def test_several_processes_read_a_store_at_once_wherever_it_lies(name, tmp_path):
    scenes = ToyScenes(count=6)
    path = store_proposals(Fixed(), scenes, tmp_path / name, "key", progress=False)
    store = StoredProposals(path, "key")
    before = [store[image_id].scores for image_id in store]  # read here first, then in forked processes
    for copy in (store, pickle.loads(pickle.dumps(store))):  # as it is, and as a spawned process gets it
        loader = DataLoader(_Scores(copy), batch_size=None, num_workers=2, multiprocessing_context="fork")
        for mine, theirs in zip(before, loader, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert list(path.parent.iterdir()) == [path]


class _Scores(Dataset):
    def __init__(self, store):
        self.store, self.ids = store, list(store)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return self.store[self.ids[index]].scores


def test_of_two_at_once_the_second_waits_and_finds_the_store(tmp_path):
    scenes, path, second = ToyScenes(count=4), tmp_path / "toy.masks", Fixed()
    other = threading.Thread(target=lambda: store_proposals(second, scenes, path, "key", progress=False), daemon=True)

    def source(images):
        if not other.is_alive():
            other.start()  # another process meanwhile
            other.join(0.3)
        return Fixed()(images)

    store_proposals(source, scenes, path, "key", batch=4, progress=False)
    other.join(30)
    assert not other.is_alive() and second.asked == 0
    assert len(StoredProposals(path, "key").levels()) == 4 and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_store_goes_on(tmp_path):
    scenes, source = ToyScenes(count=10), Fixed(limit=7)
    key = proposal_key("fixed", scenes)
    with pytest.raises(KeyboardInterrupt):
        store_proposals(source, scenes, tmp_path / "toy.masks", key, batch=2, progress=False)
    assert not (tmp_path / "toy.masks").exists()
    fresh = Fixed()
    path = store_proposals(fresh, scenes, tmp_path / "toy.masks", key, batch=2, progress=False)
    assert fresh.asked == 10 - 6 and list(tmp_path.iterdir()) == [path]
    store_proposals(Fixed(), scenes, tmp_path / "undisturbed.masks", key, batch=2, progress=False)
    assert path.read_bytes() == (tmp_path / "undisturbed.masks").read_bytes()
    other = Fixed(limit=7)  # interrupted, then of another key
    with pytest.raises(KeyboardInterrupt):
        store_proposals(other, scenes, tmp_path / "other.masks", "old key", batch=2, progress=False)
    fresh = Fixed()
    store_proposals(fresh, scenes, tmp_path / "other.masks", key, batch=2, progress=False)
    assert fresh.asked == 10
    assert (tmp_path / "other.masks").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_store_killed_in_the_middle_of_a_batch_goes_on(batches, tmp_path, monkeypatch):
    """SIGKILL between two rows: the journal that it leaves is rolled back, and the bytes are the undisturbed run's."""
    path, count = tmp_path / "killed.masks", iter(range(1, 99))

    def dies(*arguments):
        if next(count) > 2 * batches + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(*arguments)

    monkeypatch.setattr("maskclip.proposals.store.encode", dies)
    options = dict(batch=2, progress=False)
    child = get_context("fork").Process(
        target=store_proposals, args=(Fixed(), ToyScenes(), path, "key"), kwargs=options
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    fresh = Fixed()
    killed = store_proposals(fresh, ToyScenes(), path, "key", **options)
    assert fresh.asked == 8 - 2 * batches
    whole = store_proposals(Fixed(), ToyScenes(), tmp_path / "whole.masks", "key", **options)
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [killed, whole]


def test_a_full_disk_is_one_sentence_and_the_store_goes_on(tmp_path):
    scenes, path = ToyScenes(), tmp_path / "toy.masks"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot store proposals in .*toy\.masks: .*; make room"):
            store_proposals(Fixed(), scenes, path, "key", batch=2, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    store_proposals(Fixed(), scenes, path, "key", batch=2, progress=False)
    assert StoredProposals(path, "key").levels().keys() == set(scenes.image_ids)


def test_a_reader_s_sentence_comes_through_a_store(tmp_path):
    class Missing(ToyScenes):
        def __getitem__(self, index):
            raise FileNotFoundError("1.jpg does not exist")

    with pytest.raises(FileNotFoundError, match=r"^1\.jpg does not exist$"):
        store_proposals(Fixed(), Missing(), tmp_path / "toy.masks", "key", progress=False)


def test_the_key_changes_with_weights_and_data(tmp_path):
    folder = tmp_path / "network"
    folder.mkdir()
    (folder / "record.json").write_text("{}")
    (folder / "network.safetensors").write_bytes(b"one")
    keys = {
        proposal_key(folder, ToyScenes()),
        proposal_key(folder, ToyScenes(seed=1)),
        proposal_key("another", ToyScenes()),
    }
    (folder / "network.safetensors").write_bytes(b"two")
    keys.add(proposal_key(folder, ToyScenes()))
    assert len(keys) == 4


def test_the_key_changes_with_how_a_network_proposes_and_not_with_how_it_was_trained(tmp_path):
    def key(**settings) -> str:
        config = {"training": {"workers": 4}, "short_side": 800, "long_side": 1333, "detections": 100} | settings
        (tmp_path / "record.json").write_text(json.dumps({"network": "mask_rcnn", "config": config, "versions": {}}))
        return proposal_key(tmp_path, ToyScenes())

    same = {key(), key(training={"workers": 0}), key(test_sizes={"lvis": [640, 2560], ToyScenes.name: [800, 1333]})}
    assert len(same) == 1
    others = {key(short_side=640), key(detections=50), key(test_sizes={ToyScenes.name: [640, 2560]})}
    assert len(others | same) == 4


def test_a_run_stores_test_pictures_whole_and_at_their_own_size(tmp_path, monkeypatch):
    asked: list[tuple] = []
    monkeypatch.setattr(run, "load_source", lambda folder, device, pictures: asked.append((folder.name, pictures)))
    monkeypatch.setattr(run, "store_proposals", lambda *given, **options: asked.append((given[2], options["whole"])))
    own = object.__new__(run.Run)
    own.folder, own.device, own.params = tmp_path, "cpu", {"processes": 1}
    for name in ("coco_train", "a150"):
        scenes = ToyScenes()
        scenes.name = name
        own.store_proposals("mask2former", scenes)
    stored = tmp_path / "mask2former" / "stored"
    assert asked[:2] == [("mask2former", "coco_train"), (stored / "coco_train.proposals", False)]
    assert asked[2:] == [("mask2former", "a150"), (stored / "a150.proposals", True)]


def test_a_source_may_leave_its_graph_on_its_masks(tmp_path):
    def careless(images):
        return [Proposals(torch.ones(2, 3, 4, requires_grad=True), torch.ones(2, requires_grad=True)) for _ in images]

    path = store_proposals(careless, ToyScenes(count=1), tmp_path / "store", "key", progress=False)
    (proposals,) = StoredProposals(path, "key").values()
    assert proposals.mask_logits.shape == (2, 3, 4) and (proposals.mask_logits > 0).all()


def test_parts_of_several_processes_are_joined_to_what_one_writes(tmp_path):
    scenes = ToyScenes(count=7)
    scenes.subset = lambda ids: [scene for scene in scenes if scene.image_id in ids]  # type: ignore[attr-defined]
    whole = store_proposals(Fixed(), scenes, tmp_path / "whole", "key", progress=False)

    class Part(list):
        name = "part"

        @property
        def image_ids(self):
            return [scene.image_id for scene in self]

    path = tmp_path / "joined"
    for number in range(3):
        part, place = part_of(scenes, path, (number, 3))
        store_proposals(Fixed(), Part(part), place, "key", progress=False)
    (tmp_path / "joined.part1of2.partial").write_bytes(b"of a run in two processes, killed")
    join_parts(scenes, path, "key", 3)
    joined, alone = (list(sqlite3.connect(file).iterdump()) for file in (path, whole))
    assert joined == alone and len(joined) > 7 and not list(tmp_path.glob("*.part*"))
    with pytest.raises(FileNotFoundError, match="no stored proposals"):
        join_parts(scenes, path, "key", 3)
