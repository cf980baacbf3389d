"""The fast encoder against Eq. 1 to 5 written out literally, against open_clip, and against its own promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP, resize_pos_embed
from torch.utils._python_dispatch import TorchDispatchMode

import maskclip.model.relative_mask_attention as rma_module
from maskclip.model.relative_mask_attention import patchify, visible_tokens
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder

TEXT = dict(context_length=4, vocab_size=10, width=8, heads=1, layers=1)


def tiny_clip(seed=0, grid=4, patch=4, width=16, head_width=8, layers=4, dtype=torch.float32, **vision) -> CLIP:
    torch.manual_seed(seed)
    config = dict(image_size=grid * patch, patch_size=patch, width=width, head_width=head_width, layers=layers)
    clip = CLIP(embed_dim=12, vision_cfg=config | vision, text_cfg=TEXT)
    for parameter in clip.parameters():  # biases and gains that are all 0 or 1 would hide mistakes
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return clip.to(dtype).eval()


def tiny_input(clip: CLIP, images=2, masks=5, seed=1, size=None):
    generator = torch.Generator().manual_seed(seed)
    size, dtype = size or clip.visual.image_size[0], clip.visual.proj.dtype
    pictures = torch.randn(images, 3, size, size, generator=generator, dtype=torch.float64)
    blobs = F.interpolate(torch.randn(images, masks, 3, 3, generator=generator, dtype=torch.float64), (size, size))
    noise = torch.randn(images, masks, size, size, generator=generator, dtype=torch.float64)
    logits = 2 * blobs + 0.3 * noise - 3 * torch.rand(images, masks, 1, 1, generator=generator, dtype=torch.float64)
    return pictures.to(dtype), logits.to(dtype)


def tiny_encoder(clip: CLIP, rma_layers=(2, 4), **options) -> MaskCLIPVisualEncoder:
    generator = torch.Generator().manual_seed(2)
    encoder = MaskCLIPVisualEncoder.from_open_clip(clip, rma_layers, generator=generator, **options)
    for rma in encoder.rma.values():
        for parameter in rma.mask_query.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return encoder


def loss_of(embeddings, mask_logits):
    """Every output weighs in, each number differently."""
    outputs = [embeddings, *mask_logits]
    return sum((x * torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x).cos()).sum() for x in outputs)


def gradients(encoder):
    return {name: p.grad for name, p in encoder.rma.named_parameters()}


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)).item()


# --------------------------------------------------------------------------------------------------------------------
# The equations, literally: one image, one token sequence of N image tokens, the class token and M mask tokens.
# --------------------------------------------------------------------------------------------------------------------


def literal_encoder(visual, rma, image, masks):
    """Eq. 1 to 5 as they stand. image [3, S, S], masks [M, S, S] -> embeddings [M, C], masks after each RMA layer."""
    p, heads, outputs = visual.patch_size[0], visual.transformer.resblocks[0].attn.num_heads, []
    patches = F.conv2d(image[None], visual.conv1.weight, stride=p)[0]
    (width, rows, columns), m = patches.shape, len(masks)
    n, channels = rows * columns, width // heads
    class_token = visual.ln_pre(visual.class_embedding + visual.positional_embedding[0])
    image_tokens = visual.ln_pre(patches.reshape(width, n).T + visual.positional_embedding[1:])
    x = torch.cat([image_tokens, class_token[None], class_token.repeat(m, 1)])
    for number, block in enumerate(visual.transformer.resblocks, 1):
        # Eq. 2
        blocked = torch.ones(m, n, dtype=torch.bool)
        for j in range(n):
            y, z = p * (j // columns), p * (j % columns)
            blocked[:, j] = ~(torch.sigmoid(masks[:, y : y + p, z : z + p]) >= 0.5).flatten(1).any(1)
        # Eq. 1
        true, false = torch.ones, torch.zeros
        mask = torch.cat(
            [
                torch.cat([false(n + 1, n + 1), true(n + 1, m)], dim=1),
                torch.cat([blocked.float(), false(m, 1), true(m, m)], dim=1),
            ]
        ).bool()
        normed = block.ln_1(x)
        w_q, w_k, w_v = block.attn.in_proj_weight.chunk(3)
        b_q, b_k, b_v = block.attn.in_proj_bias.chunk(3)
        q, k, v = normed @ w_q.T + b_q, normed @ w_k.T + b_k, normed @ w_v.T + b_v
        q = q / math.sqrt(channels)
        layer = rma[str(number)] if str(number) in rma else None
        if layer is not None:
            f2 = layer.mask_embedding
            t_mp = F.conv2d(torch.tanh(masks)[:, None], f2.weight, f2.bias, stride=p)
            t_mp = t_mp.reshape(m, width, n).transpose(1, 2)  # M x N x D
            product = layer.mask_query(t_mp) * layer.image_key(normed[:n])[None]
        attended = []
        for head in range(heads):
            c = slice(head * channels, (head + 1) * channels)
            attention = q[:, c] @ k[:, c].T
            if layer is not None:
                a_prime = product[:, :, c].sum(-1) / math.sqrt(channels)  # Eq. 3
                a = (attention[n + 1 :, :n] + a_prime) / 2  # Eq. 4
                attention = torch.cat([attention[: n + 1], torch.cat([a, attention[n + 1 :, n:]], dim=1)])
            attended.append(attention.masked_fill(mask, -math.inf).softmax(-1) @ v[:, c])
        x = x + torch.cat(attended, dim=1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        x = x + block.mlp(block.ln_2(x))
        if layer is not None:
            if layer.residual is not None:  # Eq. 5
                channelwise = q[n + 1 :, None] * k[None, :n]
                if isinstance(layer.residual, torch.nn.Conv2d):  # as released
                    channelwise = channelwise * torch.sigmoid(1.702 * channelwise)
                    channelwise = channelwise.transpose(1, 2).reshape(m, width, rows, columns)
                    residual = F.conv2d(channelwise, layer.residual.weight, layer.residual.bias)
                else:  # in the paper's words: two layers, from attention
                    first, second = layer.residual[0], layer.residual[2]
                    channelwise = [channelwise, (product / math.sqrt(channels)).masked_fill(blocked[..., None], 0)]
                    by_head = [c.unflatten(-1, (heads, channels)).sum(-1).transpose(1, 2) for c in channelwise]
                    by_head = torch.cat(by_head, dim=1).reshape(m, 2 * heads, rows, columns)
                    hidden = F.gelu(F.conv2d(by_head, first.weight, first.bias, padding=1))
                    residual = F.conv2d(hidden, second.weight, second.bias, padding=1)
                masks = masks + F.pixel_shuffle(residual, p)[:, 0]
            outputs.append(masks)
    return visual.ln_post(x[n + 1 :]) @ visual.proj, outputs


def literal_batch(encoder, images, mask_logits):
    results = [literal_encoder(encoder.visual, encoder.rma, i, m) for i, m in zip(images, mask_logits)]
    return torch.stack([e for e, _ in results]), [torch.stack(level) for level in zip(*(m for _, m in results))]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_outputs_and_gradients_equal_the_equations(dtype, tolerance, data):
    layers = data.draw(st.integers(1, 4), "layers")
    clip = tiny_clip(
        seed=data.draw(st.integers(0, 99), "seed"),
        grid=data.draw(st.integers(1, 4), "grid"),
        patch=data.draw(st.integers(1, 5), "patch"),
        head_width=8,
        width=8 * data.draw(st.integers(1, 3), "heads"),
        layers=layers,
        dtype=dtype,
    )
    encoder = tiny_encoder(
        clip,
        data.draw(st.lists(st.integers(1, layers), unique=True), "rma_layers"),
        query_form=data.draw(st.sampled_from(["layernorm", "linear"]), "query_form"),
        refine_masks=data.draw(st.booleans(), "refine_masks"),
        refinement_form=data.draw(st.sampled_from(["product", "attention"]), "refinement_form"),
    )
    images, logits = tiny_input(clip, data.draw(st.integers(1, 3), "B"), data.draw(st.integers(1, 5), "M"))
    logits.requires_grad_()

    expected, expected_masks = literal_batch(encoder, images, logits)
    loss = loss_of(expected, expected_masks)
    theirs, their_logits = {}, None
    if loss.requires_grad:
        loss.backward()
        theirs, their_logits = gradients(encoder), logits.grad
        encoder.zero_grad()
        logits.grad = None

    result = encoder(images, logits)
    assert relative_error(result.embeddings, expected) < tolerance
    assert len(result.mask_logits) == len(encoder.rma_layers)
    for ours, theirs_masks in zip(result.mask_logits, expected_masks):
        assert relative_error(ours, theirs_masks) < tolerance
    if loss.requires_grad:
        loss_of(result.embeddings, result.mask_logits).backward()
        whole = torch.cat([g.flatten() for g in theirs.values() if g is not None]).norm() if theirs else 0
        for name, ours in gradients(encoder).items():
            if theirs[name] is None:
                assert ours is None or not ours.any()
            else:  # against the parameter's own gradient, or, where that is next to nothing, against the whole gradient
                assert (ours - theirs[name]).norm() <= tolerance * max(theirs[name].norm(), 1e-2 * whole), name
        if their_logits is not None:
            assert relative_error(logits.grad, their_logits) < tolerance


# --------------------------------------------------------------------------------------------------------------------
# CLIP itself
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_image_and_class_tokens_are_open_clips(quick):
    torch.manual_seed(0)
    vision = dict(image_size=16, patch_size=4, width=32, head_width=8, layers=3, ls_init_value=0.5)
    clip = CLIP(embed_dim=12, quick_gelu=quick, vision_cfg=vision, text_cfg=TEXT).eval()
    encoder = tiny_encoder(clip, (1, 2, 3))
    images, _ = tiny_input(clip)
    features = encoder.see(images)
    with torch.no_grad():
        first = clip.visual._embeds(images)
        entering = [first, *clip.visual.transformer.forward_intermediates(first)[1]]
        for block, theirs, ours in zip(clip.visual.transformer.resblocks, entering, features.layers):
            torch.testing.assert_close(ours.class_token, theirs[:, :1], rtol=0, atol=1e-6)
            torch.testing.assert_close(ours.image_tokens, block.ln_1(theirs)[:, 1:], rtol=0, atol=1e-6)
        torch.testing.assert_close(features.image_embedding, clip.encode_image(images), rtol=1e-6, atol=1e-6)
        assert torch.equal(encoder.embed_image(images), features.image_embedding)


def test_an_all_covering_mask_gives_clips_own_embedding():
    clip = tiny_clip(dtype=torch.float64)
    images, _ = tiny_input(clip)
    result = tiny_encoder(clip, ())(images, torch.ones(2, 1, 16, 16, dtype=torch.float64))
    assert result.mask_logits == []
    torch.testing.assert_close(result.embeddings[:, 0], clip.encode_image(images), rtol=0, atol=1e-13)


def test_other_image_sizes_interpolate_positions_as_open_clip_does():
    clip, larger = tiny_clip(), tiny_clip(grid=6)
    state = clip.state_dict()
    resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    images, logits = tiny_input(larger)
    encoder = tiny_encoder(clip, ())
    expected = larger.encode_image(images)
    torch.testing.assert_close(encoder.see(images).image_embedding, expected, rtol=1e-5, atol=1e-6)
    assert encoder(images, logits).embeddings.shape == (2, 5, 12)


def test_no_gradient_reaches_clip_and_it_stays_in_eval_mode():
    clip = tiny_clip(patch_dropout=0.5)
    encoder = tiny_encoder(clip).train()
    images, logits = tiny_input(clip)
    images.requires_grad_()
    result = encoder(images, logits)
    loss_of(result.embeddings, result.mask_logits).backward()
    assert images.grad is None
    assert all(p.grad is None and not p.requires_grad for p in encoder.visual.parameters())
    assert encoder.training and not any(module.training for module in encoder.visual.modules())
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {f"rma.{name}" for name in encoder.rma.state_dict()}


def test_trained_parameters_of_the_paper_size():
    """5.8 M parameters train in ViT-L/14@336 with four layers (counted on one layer of that width)."""
    rma = rma_module.RelativeMaskAttention(1024, 16, 14)
    assert 4 * sum(p.numel() for p in rma.parameters()) == pytest.approx(5.8e6, rel=0.01)


# --------------------------------------------------------------------------------------------------------------------
# Eq. 2, patches
# --------------------------------------------------------------------------------------------------------------------


def test_patches_in_reading_order():
    x = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    patches = patchify(x, 4)
    assert torch.equal(patches[1, 2, 1], x[1, 2, :4, 4:].flatten())
    assert torch.equal(patches[0, 1, 2], x[0, 1, 4:, :4].flatten())


def test_a_patch_is_visible_if_one_pixel_is():
    logits = torch.full((1, 3, 8, 8), -1.0)
    logits[0, 1, 5, 2] = 0.0  # probability exactly one half counts
    logits[0, 2, 0, 7] = -1e-9  # in float32 its sigmoid is one half as well, as the released code has it
    assert visible_tokens(logits, 4).tolist() == [
        [[True, False, False, False, False], [True, False, False, True, False], [True, False, True, False, False]]
    ]


def test_a_mask_without_a_pixel_sees_the_class_token_only():
    clip = tiny_clip()
    encoder = tiny_encoder(clip, ())
    images, _ = tiny_input(clip, images=1)
    empty = torch.full((1, 1, 16, 16), -3.0)
    features = encoder.see(images)
    before = encoder.encode(features, empty).embeddings
    for layer in features.layers:  # whatever the image tokens hold
        layer.keys[:, :, 1:], layer.values[:, :, 1:] = 100.0, -100.0
    assert torch.equal(encoder.encode(features, empty).embeddings, before)
    assert not torch.equal(encoder.encode(features, -empty).embeddings, before)


# --------------------------------------------------------------------------------------------------------------------
# Economy
# --------------------------------------------------------------------------------------------------------------------


def test_features_are_reused_and_inputs_untouched():
    clip = tiny_clip()
    encoder = tiny_encoder(clip)
    images, logits = tiny_input(clip)
    given_logits = logits.clone()
    features = encoder.see(images)
    whole, split = encoder(images, logits), encoder.encode(features, logits)
    assert torch.equal(logits, given_logits)
    torch.testing.assert_close(split.embeddings, whole.embeddings)
    torch.testing.assert_close(split.mask_logits, whole.mask_logits)
    assert whole.masks is whole.mask_logits[-1]
    assert (whole.mask_logits[0] - whole.mask_logits[1]).abs().max() > 1e-3  # each layer's own, not one listed twice
    subset = encoder.encode(features, logits[:, [3, 1]])
    torch.testing.assert_close(subset.embeddings, whole.embeddings[:, [3, 1]])


def test_without_refinement_masks_stay():
    clip = tiny_clip()
    encoder = tiny_encoder(clip, refine_masks=False)
    images, logits = tiny_input(clip)
    result = encoder(images, logits)
    assert len(result.mask_logits) == 2 and all(torch.equal(m, logits) for m in [*result.mask_logits, result.masks])


def test_zero_initialized_refinement_starts_from_the_proposals():
    clip = tiny_clip()
    images, logits = tiny_input(clip)
    for form in ("product", "attention"):
        begun = tiny_encoder(clip, refinement_form=form, zero_init_refinement=True)(images, logits)
        assert torch.equal(begun.masks, logits)
        assert not torch.equal(tiny_encoder(clip, refinement_form=form)(images, logits).masks, logits)
        loss_of(begun.embeddings, begun.mask_logits).backward()
        assert begun.masks.grad_fn is not None  # and can leave them


def test_the_papers_f_r_sees_a_patchs_neighbours_and_the_released_one_does_not():
    clip = tiny_clip()
    images, logits = tiny_input(clip, images=1, masks=1)
    other = logits.clone()
    other[..., :4, :4] = -logits[..., :4, :4]  # another mask in the first patch
    for form, reach in (("product", 0), ("attention", 12)):  # two 3 x 3 convolutions: two patches each way
        encoder = tiny_encoder(clip, (1,), refinement_form=form)  # in the first layer, no token has met a mask
        moved = (encoder(images, logits).masks - logits) - (encoder(images, other).masks - other)
        assert (moved[0, 0].abs().amax(0) > 1e-6).sum() == reach, form


def test_a_graph_for_matched_masks_alone_gives_the_gradients_of_the_full_graph():
    clip = tiny_clip(dtype=torch.float64)
    encoder = tiny_encoder(clip)
    images, logits = tiny_input(clip, masks=6)
    matched = [[4, 0, 3], [2]]  # ragged
    full = encoder(images, logits)
    losses = [
        loss_of(full.embeddings[i, m], [level[i, m] for level in full.mask_logits]) for i, m in enumerate(matched)
    ]
    sum(losses).backward()
    expected = gradients(encoder)
    encoder.zero_grad()

    features = encoder.see(images)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    padded = torch.full((2, 3, 16, 16), math.nan, dtype=torch.float64)  # what lies in the padding must not matter
    for i, m in enumerate(matched):
        padded[i, : len(m)] = logits[i, m]
    part = encoder.encode(features, padded, valid)
    assert not part.embeddings[~valid].any() and all(not level[~valid].any() for level in part.mask_logits)
    losses = [loss_of(part.embeddings[i, v], [level[i, v] for level in part.mask_logits]) for i, v in enumerate(valid)]
    sum(losses).backward()
    for name, gradient in gradients(encoder).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_of_masks_x_patches_x_channels(monkeypatch):
    clip = tiny_clip(grid=8, patch=2, width=64, head_width=32, layers=2)
    images, logits = tiny_input(clip, images=1, masks=40)
    encoder = tiny_encoder(clip, (2,))
    whole = encoder(images, logits)
    loss_of(whole.embeddings, whole.mask_logits).backward()
    expected = gradients(encoder)
    encoder.zero_grad()

    monkeypatch.setitem(rma_module.CACHE_BYTES, "cpu", 4 * 3 * 64 * 64)  # three masks at a time; 40 is no multiple
    with Largest() as largest:
        features = encoder.see(images)
        streamed = encoder.encode(features, logits)
        loss_of(streamed.embeddings, streamed.mask_logits).backward()
    assert largest.numel < 40 * 64 * 64 / 5
    torch.testing.assert_close(streamed.masks, whole.masks)
    for name, gradient in gradients(encoder).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_pieces_of_several_images_and_of_one(monkeypatch):
    queries, keys = torch.randn(5, 4, 8), torch.randn(5, 6, 8)
    one = keys[0].numel() * 4
    for budget in (1, one, one * 3, one * 9, one * 1000):
        monkeypatch.setitem(rma_module.CACHE_BYTES, "cpu", budget)
        seen = torch.zeros(5, 4, 6, 8)
        for i, m, product in rma_module._products(queries, keys):
            assert product.numel() * 4 <= max(budget, one)
            seen[i, m] += product
        torch.testing.assert_close(seen, queries[:, :, None] * keys[:, None])


def test_checkpointing_keeps_less_and_changes_nothing():
    clip = tiny_clip(layers=6)
    encoder = tiny_encoder(clip, (1, 4))
    images, logits = tiny_input(clip)
    features, kept, results = encoder.see(images), {}, {}
    for encoder.checkpointing in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            result = encoder.encode(features, logits)
        loss_of(result.embeddings, result.mask_logits).backward()
        kept[encoder.checkpointing], results[encoder.checkpointing] = sum(sizes), gradients(encoder)
        encoder.zero_grad()
    assert kept[True] < kept[False] / 2
    for name, gradient in results[True].items():
        torch.testing.assert_close(gradient, results[False][name])


# --------------------------------------------------------------------------------------------------------------------
# Shapes, types, devices, mistakes
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, masks", [(0, 3), (2, 0), (0, 0), (1, 1), (3, 2)])
@pytest.mark.parametrize("form", ["product", "attention"])
def test_any_batch_and_any_number_of_masks(batch, masks, form):
    clip = tiny_clip()
    images, logits = tiny_input(clip, images=3, masks=3)
    images, logits = images[:batch], logits[:batch, :masks]
    encoder = tiny_encoder(clip, refinement_form=form)
    for result in (encoder(images, logits), encoder.encode(encoder.see(images), logits)):
        assert result.embeddings.shape == (batch, masks, 12)
        assert [m.shape for m in result.mask_logits] == [logits.shape] * 2 and result.masks.shape == logits.shape


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("how", ["model", "autocast"])
@pytest.mark.parametrize("form", ["product", "attention"])
def test_half_precision(dtype, tolerance, how, form):
    reference = tiny_clip()
    images, logits = tiny_input(reference)
    expected = tiny_encoder(reference, refinement_form=form)(images, logits)
    if how == "model":
        encoder = tiny_encoder(tiny_clip(dtype=dtype), refinement_form=form)
        result = encoder(images.to(dtype), logits)
        assert result.embeddings.dtype == dtype
    else:
        encoder = tiny_encoder(reference, refinement_form=form)
        with torch.autocast("cpu", dtype):
            result = encoder(images, logits)
    assert all(p.dtype == torch.float32 for p in encoder.rma.parameters())  # what trains keeps its precision
    assert result.masks.dtype == torch.float32  # as the masks given
    assert relative_error(result.embeddings.float(), expected.embeddings) < tolerance
    assert relative_error(result.masks, expected.masks) < tolerance
    loss_of(result.embeddings.float(), result.mask_logits).backward()
    for name, gradient in gradients(encoder).items():
        assert gradient is None or gradient.isfinite().all(), name


def test_where_the_attention_mask_has_a_gradient_queries_have_one(monkeypatch):
    """CUDA's fused attention fails in backward else (pytorch/pytorch#148476)."""
    clip, attention, trained = tiny_clip(), F.scaled_dot_product_attention, []

    def spy(queries, keys, values, attn_mask=None):
        if attn_mask is not None and attn_mask.requires_grad:
            trained.append(queries.requires_grad)
        return attention(queries, keys, values, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    tiny_encoder(clip)(*tiny_input(clip))
    assert len(trained) > 1 and all(trained)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["product", "attention"])
def test_a_training_step_on_cuda(dtype, form):
    clip = tiny_clip()
    images, logits = tiny_input(clip)
    encoder = tiny_encoder(clip, refinement_form=form)
    expected = encoder(images, logits)
    loss_of(expected.embeddings, expected.mask_logits).backward()
    wanted = {name: gradient for name, gradient in gradients(encoder).items() if gradient is not None}
    encoder.zero_grad()
    encoder.cuda()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        result = encoder(images.cuda(), logits.cuda())
    loss_of(result.embeddings.float().cpu(), [logits.cpu() for logits in result.mask_logits]).backward()
    for name, gradient in wanted.items():
        found = gradients(encoder)[name].cpu()
        assert relative_error(found, gradient) < (1e-3 if dtype == torch.float32 else 0.1), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_cpu():
    clip = tiny_clip()
    images, logits = tiny_input(clip)
    encoder = tiny_encoder(clip)
    expected = encoder(images, logits)
    result = encoder.cuda()(images.cuda(), logits.cuda())
    assert relative_error(result.embeddings.cpu(), expected.embeddings) < 1e-4
    assert relative_error(result.masks.cpu(), expected.masks) < 1e-4


@pytest.mark.parametrize(
    "layers, names",
    [((0,), "0"), ((5,), "1 to 4"), ((-1,), "-1"), ((2, 2), "twice"), ((1.5,), "1.5"), ((True,), "T"), (("2",), "'2'")],
)
def test_layers_the_vit_lacks(layers, names):
    with pytest.raises(ValueError, match=f"rma_layers.*{names}"):
        MaskCLIPVisualEncoder.from_open_clip(tiny_clip(), layers)


def test_clip_models_that_cannot_serve():
    resnet = dict(image_size=32, layers=[1, 1, 1, 1], width=8, patch_size=None)
    for clip, names in [
        (CLIP(embed_dim=8, vision_cfg=resnet, text_cfg=TEXT), "ModifiedResNet.*ViT"),
        (tiny_clip(pool_type="avg"), "class token"),
        (tiny_clip(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2), "class token"),
        (tiny_clip(qk_norm=True), "attention"),
        (torch.nn.Linear(2, 2), "Linear"),
    ]:
        with pytest.raises(ValueError, match=f"clip_model.*{names}"):
            MaskCLIPVisualEncoder.from_open_clip(clip, ())
    with pytest.raises(ValueError, match=r"query_form.*'cosine'"):
        MaskCLIPVisualEncoder.from_open_clip(tiny_clip(), (), query_form="cosine")
    with pytest.raises(ValueError, match=r"refinement_form.*'none'.*'product'"):
        MaskCLIPVisualEncoder.from_open_clip(tiny_clip(), (), refinement_form="none")


@pytest.mark.parametrize(
    "change, names",
    [
        (dict(images=torch.zeros(2, 4, 16, 16)), r"images is torch.float32 \(2, 4, 16, 16\).*\[B, 3, S, S\]"),
        (dict(images=torch.zeros(2, 3, 16, 20)), r"images is torch.float32 \(2, 3, 16, 20\)"),
        (dict(images=torch.zeros(2, 3, 18, 18)), "multiple of the patch, 4"),
        (dict(images=torch.zeros(3, 16, 16)), r"images is torch.float32 \(3, 16, 16\)"),
        (dict(images=torch.zeros(2, 3, 16, 16, dtype=torch.uint8)), "images is torch.uint8"),
        (
            dict(mask_logits=torch.zeros(2, 5, 16, 12)),
            r"mask_logits is torch.float32 \(2, 5, 16, 12\).*\(2, M, 16, 16\)",
        ),
        (
            dict(mask_logits=torch.zeros(1, 5, 16, 16)),
            r"mask_logits is torch.float32 \(1, 5, 16, 16\).*\(2, M, 16, 16\)",
        ),
        (dict(mask_logits=torch.zeros(2, 16, 16)), r"mask_logits is torch.float32 \(2, 16, 16\)"),
        (dict(mask_logits=torch.zeros(2, 5, 16, 16, dtype=torch.bool)), "mask_logits is torch.bool"),
        (dict(mask_logits=torch.full((2, 5, 16, 16), math.nan)), "mask_logits.*not finite"),
        (dict(mask_logits=torch.full((2, 5, 16, 16), math.inf)), "mask_logits.*not finite"),
        (dict(valid=torch.ones(2, 4, dtype=torch.bool)), r"valid is torch.bool \(2, 4\).*\(2, 5\)"),
        (dict(valid=torch.ones(2, 5)), "valid is torch.float32"),
    ],
)
def test_bad_input_is_named(change, names):
    clip = tiny_clip()
    images, logits = tiny_input(clip)
    with pytest.raises(ValueError, match=names):
        tiny_encoder(clip)(**(dict(images=images, mask_logits=logits) | change))
