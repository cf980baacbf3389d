"""Merging: equal to the released functions' recorded output, and to plain forms that hold everything at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from maskclip.model import merge
from maskclip.model.merge import instances, panoptic_map, row_bands, semantic_map
from maskclip.model.pipeline import NamedMasks

GOLDEN = np.load(Path(__file__).parent / "golden" / "merge" / "released.npz")
THINGS = [i in GOLDEN["things"] for i in range(GOLDEN["class_logits"].shape[1])]


def golden(suffix=""):
    logits = torch.from_numpy(GOLDEN["class_logits" + suffix])
    masks = torch.from_numpy(GOLDEN["mask_logits"])
    return logits.softmax(-1), masks, tuple(masks.shape[-2:])


def random_masks(seed, M=7, K=5, h=9, w=11):
    generator = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(M, K, generator=generator, dtype=torch.float64)).softmax(-1)
    coarse = 8 * torch.randn(M, 3, 3, generator=generator, dtype=torch.float64)
    return probs, interpolate(coarse[None], (h, w), mode="bicubic")[0]


def test_released_semantic_inference():
    probs, masks, size = golden()
    as_released = semantic_map(probs, masks, size, no_object=True)  # drops the last class, though it is a real one
    np.testing.assert_array_equal(as_released, GOLDEN["semantic"])
    ours = semantic_map(probs, masks, size)
    assert (as_released < 6).all() and (ours == 6).any()
    probs, masks, size = golden("_no_object")
    np.testing.assert_array_equal(semantic_map(probs, masks, size, no_object=True), GOLDEN["semantic_no_object"])


@pytest.mark.parametrize("suffix", ["", "_no_object"])
def test_released_panoptic_inference(suffix):
    probs, masks, size = golden(suffix)
    ids, segments = panoptic_map(probs, masks, size, THINGS, no_object=bool(suffix))
    np.testing.assert_array_equal(ids, GOLDEN["panoptic" + suffix])
    got = [[s["id"], s["category"], s["isthing"]] for s in segments]
    np.testing.assert_array_equal(got, GOLDEN["panoptic_info" + suffix])


@pytest.mark.parametrize("suffix", ["", "_no_object"])
def test_released_instance_inference(suffix):
    probs, masks, size = golden(suffix)
    got = instances(
        probs, masks, size, THINGS, top_k=20, things_first=False, no_object=bool(suffix), released_labels=not suffix
    )
    filled = GOLDEN["instance_masks" + suffix].any((1, 2))  # ours leaves out pairs without a pixel
    scores = GOLDEN["instance_scores" + suffix][filled]
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(got[2], scores[order], rtol=1e-5)
    want = {
        (round(float(s), 4), int(c), m.tobytes())
        for s, c, m in zip(
            scores, GOLDEN["instance_classes" + suffix][filled], GOLDEN["instance_masks" + suffix][filled], strict=True
        )
    }
    assert {(round(float(s), 4), int(c), m.tobytes()) for m, c, s in zip(*got, strict=True)} == want


def test_named_masks_can_be_merged_as_published():
    """`as_published` is both recorded behaviours; without it both errors are mended."""
    probs, masks, size = golden()
    named = NamedMasks(probs, masks, size)
    np.testing.assert_array_equal(named.semantic(as_published=True), GOLDEN["semantic"])
    released = instances(probs, masks, size, THINGS, top_k=20, things_first=False, released_labels=True)
    mended = instances(probs, masks, size, THINGS, top_k=20)
    for as_published, wanted in ((True, released), (False, mended)):
        for got, want in zip(named.instances(THINGS, 20, as_published), wanted, strict=True):
            np.testing.assert_array_equal(got, want)
    assert not np.array_equal(released[1], mended[1])


def test_instances_of_things_are_chosen_before_the_cut():
    probs, masks, size = golden()
    _, classes, scores = instances(probs, masks, size, THINGS, top_k=20)
    late = instances(probs, masks, size, THINGS, top_k=20, things_first=False)
    assert set(classes.tolist()) <= set(GOLDEN["things"].tolist())
    assert len(classes) > len(late[1]) and (np.diff(scores) <= 0).all()


def in_bands(band, function, *arguments, **options):
    """The function's answer when `band` numbers may be held at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "BAND", band)
        return function(*arguments, **options)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), sizes, sizes, st.integers(1, 500))
def test_bands_are_torch_bilinear_upsampling(seed, source, size, band):
    _, masks = random_masks(seed, h=source[0], w=source[1])
    pieces = in_bands(band, lambda: list(row_bands(masks, size, len(masks))))
    assert [p for rows, _ in pieces for p in range(rows.start, rows.stop)] == list(range(size[0]))
    whole = interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat([p for _, p in pieces], 1), whole, rtol=1e-9, atol=1e-9)


def plain_panoptic(probs, masks, size, isthing, score_threshold=0.3, overlap_threshold=0.5):
    """Everything at full size, one mask after the other."""
    masks = interpolate(masks[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    scores, classes = probs.max(-1)
    chosen = [m for m in range(len(masks)) if scores[m] > score_threshold]
    ids, info = np.zeros(size, int), []
    if not chosen:
        return ids, info
    owner = torch.stack([scores[m] * masks[m] for m in chosen]).argmax(0)
    for k, m in enumerate(chosen):
        c = int(classes[m])
        mine, whole = owner == k, masks[m] >= 0.5
        if not (mine & whole).any() or mine.sum() / whole.sum() < overlap_threshold:
            continue
        same = [n for n, known in info if known == c and not isthing[c]]
        ids[(mine & whole).numpy()] = same[0] if same else len(info) + 1
        if not same:
            info.append((len(info) + 1, c))
    return ids, info


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), sizes, st.integers(1, 300), st.sampled_from([0.0, 0.3, 0.6, 0.99]))
def test_pieces_equal_the_plain_forms(seed, size, band, threshold):
    probs, masks = random_masks(seed)
    full = interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
    semantic = torch.einsum("mk,mhw->khw", probs, full.sigmoid()).argmax(0)
    np.testing.assert_array_equal(in_bands(band, semantic_map, probs, masks, size), semantic)
    isthing = [True, False, True, False, False]
    ids, segments = in_bands(band, panoptic_map, probs, masks, size, isthing, score_threshold=threshold)
    plain, info = plain_panoptic(probs, masks, size, isthing, threshold)
    np.testing.assert_array_equal(ids, plain)
    assert [(s["id"], s["category"]) for s in segments] == info
    assert set(np.unique(ids)) - {0} == {s["id"] for s in segments}
    got_masks, classes, scores = in_bands(band, instances, probs, masks, size, isthing, top_k=9)
    pairs = sorted(((float(probs[m, c]), m, c) for m in range(7) for c in (0, 2)), reverse=True)[:9]
    want = [(p * float(full[m].sigmoid()[full[m] > 0].mean()), c) for p, m, c in pairs if (full[m] > 0).any()]
    assert [c for _, c in sorted(want, reverse=True)] == classes.tolist()
    np.testing.assert_allclose(scores, sorted((s for s, _ in want), reverse=True), rtol=1e-4)
    assert got_masks.shape == (len(want), *size)


def test_no_masks_and_no_classes_left():
    nothing = torch.zeros(0, 4), torch.zeros(0, 5, 5), (6, 7)
    assert (semantic_map(*nothing) == -1).all()
    ids, segments = panoptic_map(*nothing, [True] * 4)
    assert ids.shape == (6, 7) and not ids.any() and segments == []
    masks, classes, scores = instances(*nothing, [True] * 4)
    assert masks.shape == (0, 6, 7) and len(classes) == len(scores) == 0
    empty = torch.full((2, 4), 0.25), torch.full((2, 5, 5), -9.0), (6, 7)  # masks without a pixel
    assert panoptic_map(*empty, [True] * 4, score_threshold=0.1)[1] == [] and len(instances(*empty, [True] * 4)[1]) == 0
    assert len(instances(torch.full((2, 4), 0.25), torch.ones(2, 5, 5), (6, 7), [False] * 4)[1]) == 0


def test_a_large_vocabulary_never_stands_at_full_size():
    """4,000 classes on 160 x 200 pixels would be 512 MB at once; pieces keep to bands of 4 MB."""
    resource = pytest.importorskip("resource")
    probs, masks = torch.rand(6, 4000).softmax(-1), torch.randn(6, 24, 32)
    semantic_map(probs, masks, (16, 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    semantic_map(probs, masks, (160, 200))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_bad_input():
    probs, masks = random_masks(0)
    with pytest.raises(ValueError, match="for the same M masks"):
        semantic_map(probs[:3], masks, (5, 5))
    with pytest.raises(ValueError, match="5 columns but must have 4"):
        panoptic_map(probs, masks, (5, 5), [True] * 4)
    with pytest.raises(ValueError, match="logits in floating point"):
        panoptic_map(probs, masks > 0, (5, 5), [True] * 5)
    with pytest.raises(ValueError, match="not finite"):
        semantic_map(probs, masks * float("nan"), (5, 5))
    with pytest.raises(ValueError, match="at least 1 each"):
        semantic_map(probs, masks, (0, 5))
