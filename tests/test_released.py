"""The released encoder's numbers, and its checkpoints: golden/released_encoder.json says how they were made."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file

from maskclip.released.encoder import load_released_encoder, released_state_dict

GOLDEN = Path(__file__).parent / "golden"
TEXT = dict(context_length=4, vocab_size=10, width=8, heads=1, layers=1)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "released_encoder.safetensors")


@pytest.fixture
def state(golden):
    """The state dict as the whole released model has it, with a key of its proposal network."""
    state = {f"maskclip.{k.removeprefix('state.')}": v for k, v in golden.items() if k.startswith("state.")}
    return state | {"sem_seg_head.predictor.query_feat.weight": torch.zeros(2, 2)}


def small_clip() -> CLIP:
    config = json.loads((GOLDEN / "released_encoder.json").read_text())["config"]
    torch.manual_seed(9)  # other weights than the checkpoint's
    vision = dict(
        image_size=config["input_resolution"],
        patch_size=config["patch_size"],
        width=config["width"],
        head_width=config["width"] // config["heads"],
        layers=config["layers"],
    )
    return CLIP(embed_dim=config["output_dim"], quick_gelu=True, vision_cfg=vision, text_cfg=TEXT).eval()


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("split", [False, True])
def test_outputs_and_gradients_are_the_released_encoders(golden, state, split):
    encoder = load_released_encoder(state, small_clip())
    if split:
        result = encoder.encode(encoder.see(golden["images"]), golden["mask_logits"])
    else:
        result = encoder(golden["images"], golden["mask_logits"])
    assert relative_error(result.embeddings, golden["embeddings"]) < 1e-5
    assert relative_error(result.mask_logits[-1], golden["refined"]) < 1e-5

    # There, all four listed masks are one tensor, the last; the gradient asked for is that of the last masks.
    loss = (result.embeddings * golden["embedding_weights"]).sum() + (result.masks * golden["mask_weights"]).sum()
    loss.backward()
    gradients = {f"grad.{k}": p for k, p in released_gradients(encoder).items()}
    expected = {k: v for k, v in golden.items() if k.startswith("grad.")}
    assert set(gradients) == set(expected) and len(expected) == 4 * 8
    for key, gradient in expected.items():
        assert gradient.norm() > 0 and relative_error(gradients[key], gradient) < 1e-5, key


def released_gradients(encoder):
    gradients = {id(p): p.grad for p in encoder.parameters()}
    for rma in encoder.rma.values():
        for p in rma.parameters():
            p.data = p.grad  # so that the converter names gradients as it names weights
    assert all(g is None for p, g in gradients.items() if p in {id(q) for q in encoder.visual.parameters()})
    return {k: v for k, v in released_state_dict(encoder, "visual.").items() if "added_params" in k}


def test_there_and_back(state):
    encoder = load_released_encoder({"model": state, "iteration": 9999}, small_clip())
    back = released_state_dict(encoder)
    expected = {k: v for k, v in state.items() if ".visual." in k}
    assert set(back) == set(expected)
    assert all(torch.equal(back[k], v) for k, v in expected.items())


def test_from_a_file(tmp_path, state):
    path = tmp_path / "model_final.pth"
    torch.save({"model": state}, path)
    encoder = load_released_encoder(path, small_clip())
    key = "maskclip.visual.transformer.conv3_added_params.2.bias"
    assert torch.equal(encoder.rma["18"].residual.bias, state[key])


def test_trained_weights_alone_keep_the_given_clip(state):
    clip = small_clip()
    own = clip.visual.conv1.weight.clone()
    encoder = load_released_encoder({k: v for k, v in state.items() if "added_params" in k}, clip)
    assert torch.equal(encoder.visual.conv1.weight, own)


def test_what_does_not_fit_is_named_and_nothing_is_loaded(state):
    gone = "transformer.conv1_added_params.1.bias"
    bent = "transformer.resblocks.11.attn.q_prime_norm_added_params.weight"
    more = "transformer.conv1_added_params.4.bias"
    del state[f"maskclip.visual.{gone}"]
    state[f"maskclip.visual.{bent}"] = torch.zeros(7)
    state[f"maskclip.visual.{more}"] = torch.zeros(24)
    clip = small_clip()
    own = clip.visual.conv1.weight.clone()
    with pytest.raises(ValueError) as error:
        load_released_encoder(state, clip)
    for words in ("3 keys", f"missing: {gone}", f"surplus: {more}", f"misshapen: {bent} is (7,), not (24,)"):
        assert words in str(error.value)
    assert torch.equal(clip.visual.conv1.weight, own)


def test_another_architecture_is_refused(state):
    vision = dict(image_size=20, patch_size=4, width=16, head_width=8, layers=24)
    clip = CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT)
    with pytest.raises(ValueError, match=r"misshapen: conv1\.weight is"):
        load_released_encoder(state, clip)


def test_files_with_code_or_cut_off_are_refused(tmp_path, state):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "code.pth").write_bytes(pickle.dumps({"model": Code()}))
    torch.save({"model": state}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    for name in ("code.pth", "cut.pth"):
        with pytest.raises(ValueError, match=name):
            load_released_encoder(tmp_path / name, small_clip())
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_released_encoder(tmp_path / "none.pth", small_clip())


def test_what_the_released_code_has_no_place_for(state):
    encoder = load_released_encoder(state, small_clip())
    for options in (dict(refine_masks=False), dict(query_form="linear"), dict(refinement_form="attention")):
        other = type(encoder).from_open_clip(small_clip(), **options)
        with pytest.raises(ValueError, match="released code"):
            released_state_dict(other)
