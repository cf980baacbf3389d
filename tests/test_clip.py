"""Loading CLIPs, their text and image ends, and the contrastive training, against open_clip, PIL and torch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import InterpolationMode, resize

from maskclip.model.clip import Clip, classify, load_clip, preprocess, text_embeddings
from maskclip.model.clip_baseline import MaskedImages
from maskclip.model.pipeline import MaskCLIP, NamedMasks
from maskclip.model.visual_encoder import MaskCLIPVisualEncoder, MaskEncoding
from maskclip.proposals import Proposals
from miniature.__main__ import HERE
from miniature.clip_training import Muon
from miniature.mini_clip import encode_crop, encode_text, save_weights, write_model_folder
from miniature.schedule import read_schedule
from miniature.words import stuff, things

MINI = Path(__file__).parents[1] / "models" / "mini_clip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini CLIP of the same form with two layers and random weights."""
    path = tmp_path_factory.mktemp("clip") / "tiny_clip"
    schedule = read_schedule(HERE / "clip.yaml")
    write_model_folder(path, replace(schedule, image_size=64, layers=2, stages=schedule.stages[:1]))
    config = json.loads((path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["layers"] = 2
    (path / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_weights(open_clip.model.CLIP(**config["model_cfg"]).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(folder)


def test_folder_loads_as_open_clip_loads_it(clip, folder):
    theirs = open_clip.create_model(f"local-dir:{folder}")
    assert all(torch.equal(a, b) for a, b in zip(clip.model.parameters(), theirs.parameters(), strict=True))
    assert not clip.model.training and not any(p.requires_grad for p in clip.model.parameters())
    assert (clip.image_size, clip.name, clip.mean.shape) == (64, "tiny_clip", (3, 1, 1))


def test_masks_are_named_in_float32_whatever_they_were_seen_in():
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(50, 64, generator=generator).bfloat16()
    text = F.normalize(1 + 0.02 * torch.randn(200, 64, generator=generator), dim=-1)  # words that lie near one another
    logits = classify(seen, text, 0.01)
    wanted = F.normalize(seen.double(), dim=-1) @ text.double().T / 0.01
    torch.testing.assert_close(logits.double(), wanted, atol=1e-3, rtol=0)


def test_a_clip_of_another_build_is_told():
    """timm's towers have no first convolution where open_clip's have theirs."""
    tower = {"timm_model_name": "resnet10t", "image_size": 64}
    model = open_clip.model.CLIP(embed_dim=8, vision_cfg=tower, text_cfg={"width": 8, "heads": 1, "layers": 1})
    with pytest.raises(ValueError, match="with a plain ViT"):
        MaskCLIPVisualEncoder.from_open_clip(Clip.of(model).model, ())


def test_text_embeddings(clip):
    names = ["umbrella", "cow", "brick wall"]
    with torch.no_grad():
        one = F.normalize(clip.model.encode_text(clip.tokenizer(names)), dim=-1)
        two = F.normalize(clip.model.encode_text(clip.tokenizer([f"a {n}" for n in names])), dim=-1)
    torch.testing.assert_close(text_embeddings(clip, names), one)
    both = text_embeddings(clip, names, ("{}", "a {}"))
    torch.testing.assert_close(both, F.normalize(one + two, dim=-1))
    many = text_embeddings(clip, [*things(), *stuff(), *things()])  # more than one batch of texts
    torch.testing.assert_close(many[: len(things())], many[-len(things()) :])


def test_every_word_of_the_world_is_one_token_and_any_text_can_be_read(clip):
    for name in (*things(), *stuff()):
        assert len(clip.tokenizer.encode(name)) == len(name.split())
        assert clip.tokenizer.decode(clip.tokenizer.encode(name)).strip() == name
    strange = "Zwölf Boxkämpfer, ☃ & 42 cats?"
    assert clip.tokenizer.decode(clip.tokenizer.encode(strange)).replace(" ", "") == strange.lower().replace(" ", "")
    assert text_embeddings(clip, [strange]).isfinite().all()
    fits = clip.tokenizer.context_length - 2
    assert text_embeddings(clip, ["dog " * fits]).isfinite().all()
    with pytest.raises(ValueError, match=f"longer than the {fits + 2} tokens"):
        text_embeddings(clip, ["dog", "dog " * (fits + 1)])


def test_preprocess_squashes_and_normalizes(clip):
    image = np.random.default_rng(0).integers(0, 256, (100, 180, 3), np.uint8)
    ours = preprocess(clip, image)
    theirs = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)) / 255
    torch.testing.assert_close(
        ours * clip.std + clip.mean, torch.tensor(theirs).permute(2, 0, 1).float(), atol=6e-3, rtol=0
    )


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_preprocess_refuses_what_is_no_picture(clip, image):
    with pytest.raises(ValueError, match="must be an array"):
        preprocess(clip, "picture.jpg")
    with pytest.raises(ValueError, match="uint8"):
        preprocess(clip, image)


def test_a_word_is_no_list_of_its_letters(clip):
    model = MaskCLIP(clip, MaskedImages(clip))
    model.words(list("dog"))  # kept, as the last vocabulary asked for
    with pytest.raises(ValueError, match="must be a list of texts"):
        model.words("dog")
    with pytest.raises(ValueError, match="temperature is 0; it must be above 0"):
        MaskCLIP(clip, MaskedImages(clip), temperature=0)
    with pytest.raises(ValueError, match="must be an array"):
        model.embed("picture.jpg", Proposals(torch.zeros(1, 4, 4), torch.ones(1)))
    with pytest.raises(ValueError, match=r"mask logits are torch\.bool"):
        Proposals(torch.zeros(1, 4, 4, dtype=torch.bool), torch.ones(1))


@pytest.mark.parametrize("rma_layers", [None, (), (1, 2)], ids=["masked images", "w/o RMA", "RMA"])
def test_new_masks_and_new_words_reuse_clips_pass(clip, rma_layers, monkeypatch):
    """Step by step as in one go, and CLIP sees each image once; the baseline sees masked images."""
    generator = torch.Generator().manual_seed(0)
    encoder = (
        MaskedImages(clip)
        if rma_layers is None
        else MaskCLIPVisualEncoder.from_open_clip(clip.model, rma_layers, generator=generator)
    )
    model = MaskCLIP(clip, encoder)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    sets = [
        Proposals(torch.randn(n, 12, 17, generator=generator), torch.rand(n, generator=generator)) for n in (4, 0, 2)
    ]
    expected = [model(image, words, proposals) for proposals in sets for words in (["dog"], ["cow", "sky"])]
    seen = model.see(image)
    monkeypatch.setattr("maskclip.model.pipeline.preprocess", None)  # the picture is not looked at again
    encoded = [model.encode(seen, proposals) for proposals in sets]
    got = [model.name(masks, words) for masks in encoded for words in (["dog"], ["cow", "sky"])]
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours.class_probs, theirs.class_probs) and torch.equal(ours.mask_logits, theirs.mask_logits)
        assert ours.size == theirs.size == (50, 70)
    assert got[2].class_probs.shape == (0, 1) and (got[2].semantic() == -1).all()


def test_there_must_be_masks_and_words(clip):
    model = MaskCLIP(clip, MaskedImages(clip))
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="no masks to name: give MaskCLIP a proposal source"):
        model(image, ["dog"])
    one = Proposals(torch.ones(1, 4, 4), torch.ones(1))
    with pytest.raises(ValueError, match="names must be a list"):
        model(image, [], one)
    model.proposals = lambda images: [one for _ in images]
    assert model(image, ["dog", "sky"]).class_probs.shape == (1, 2)


def test_objectness_takes_part_only_when_asked(clip):
    model = MaskCLIP(clip, MaskedImages(clip))
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    masks = model.embed(image, Proposals(torch.randn(3, 8, 8), torch.tensor([1.0, 0.25, 0.0])))
    plain = model.name(masks, ["dog", "sky"]).class_probs
    torch.testing.assert_close(plain.sum(1), torch.ones(3))
    weighed = model.name(masks, ["dog", "sky"], objectness_power=0.5).class_probs
    torch.testing.assert_close(weighed, plain * torch.tensor([[1.0], [0.5], [0.0]]))


def test_wrong_names_and_templates_are_refused(clip):
    for names, templates in (([], ("{}",)), (["dog", " "], ("{}",)), (["dog"], ("a photo",)), (["dog"], ())):
        with pytest.raises(ValueError):
            text_embeddings(clip, names, templates)
    for names in ("dog", ["dog", None], [1]):
        with pytest.raises(ValueError, match="must be a list of texts"):
            text_embeddings(clip, names)
    torch.testing.assert_close(
        text_embeddings(clip, ["dog"], ["{} {}"]), text_embeddings(clip, ["dog dog"]), atol=0, rtol=0
    )


def test_loading_errors_say_what_is_wrong(folder, tmp_path):
    with pytest.raises(ValueError, match="ViT-XXL"):
        load_clip("ViT-XXL")
    with pytest.raises(ValueError, match=r"nonsense.*openai"):
        load_clip("ViT-B-32", pretrained="nonsense")
    with pytest.raises(FileNotFoundError, match=r"weights\.pt"):
        load_clip("ViT-B-32", pretrained=str(tmp_path / "weights.pt"))
    with pytest.raises(FileNotFoundError, match="models/none"):
        load_clip("models/none")
    with pytest.raises(ValueError, match="own weights"):
        load_clip(folder, pretrained="openai")
    for file in ("open_clip_config.json", "open_clip_model.safetensors", "merges.txt.gz"):
        broken = tmp_path / f"without {file}"
        shutil.copytree(folder, broken)
        (broken / file).unlink()
        with pytest.raises(FileNotFoundError, match=file):
            load_clip(broken)
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    weights = cut / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot load CLIP"):
        load_clip(cut)


def test_training_shortcuts_equal_open_clip(clip):
    tokens = clip.tokenizer(["a dog", "a red umbrella and a blue cat on grass"])
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encode_text(clip.model, tokens), clip.model.encode_text(tokens, normalize=True))
        whole = encode_crop(clip.model.visual, pictures, 0, 0)
        torch.testing.assert_close(whole, clip.model.encode_image((pictures - 0.5) / 0.25, normalize=True))


def test_muon_steps_as_torchs_does():
    torch.manual_seed(0)
    start = [torch.randn(24, 8), torch.randn(24, 8), torch.randn(8, 40)]
    ours, theirs = ([torch.nn.Parameter(m.clone()) for m in start] for _ in range(2))
    muon = Muon(ours, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        muon.step(0.01)
        reference.step()
    for i in range(len(start)):  # torch rounds the direction to bfloat16
        begin, p, q = start[i], ours[i], theirs[i]
        moved, expected = p.detach() - begin, q.detach() - begin
        assert F.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.999
        assert moved.norm().item() == pytest.approx(expected.norm().item(), rel=0.02)


@pytest.mark.parametrize(
    ("name", "right"), [("ViT-L-14-336", "ViT-L-14-336-quickgelu"), ("ViT-B-16", "ViT-B-16-quickgelu")]
)
def test_weights_of_the_other_gelu_are_refused(name: str, right: str) -> None:
    with pytest.raises(ValueError, match=f"'openai' were trained with QuickGELU.*take '{right}'"):
        load_clip(name, "openai")


def test_words_are_encoded_once_for_all(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    encode = clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_text", lambda tokens: asked.append(len(tokens)) or encode(tokens))
    plain = text_embeddings(clip, ["grass", "sky"])
    kept = replace(clip, words_folder=tmp_path / "words")
    first = text_embeddings(kept, ["grass", "sky"])
    again = text_embeddings(replace(clip, words_folder=tmp_path / "words"), ["grass", "sky"])
    assert asked == [2, 2] and torch.equal(first, plain) and torch.equal(again, plain)
    text_embeddings(kept, ["sky", "grass"])
    text_embeddings(kept, ["grass", "sky"], ("a {}",))
    assert asked == [2] * 4, "other words, templates and orders are others"
    for file in (tmp_path / "words").iterdir():
        file.write_bytes(b"damaged")
    assert torch.equal(text_embeddings(kept, ["grass", "sky"]), plain) and len(asked) == 5
    model = MaskCLIP(clip, MaskCLIPVisualEncoder.from_open_clip(clip.model, ()))
    for words in (["grass"], ["sky"], ["grass"], ["sky"]):
        model.words(words)
    assert len(asked) == 7, "vocabularies in turn are encoded once each"


def test_as_published_clip_sees_what_the_proposal_network_sees():
    """Padded with ImageNet's mean colour to multiples of 32, brought to CLIP's size without antialiasing."""
    given = {}

    def encoder(pixels: torch.Tensor, logits: torch.Tensor) -> MaskEncoding:
        given.update(pixels=pixels, logits=logits)
        return MaskEncoding(torch.zeros(1, logits.shape[1], 4), [logits], logits)

    clip = load_clip(MINI)
    side, random = clip.image_size, np.random.default_rng(0)
    image = random.integers(0, 256, (100, 72, 3), dtype=np.uint8)
    logits = torch.full((2, 25, 18), -6.0)  # of a network that saw 100 x 72, padded to 128 x 96
    logits[0, :, :9], logits[1, 12:] = 6.0, 6.0
    masks = MaskCLIP(clip, encoder).embed(image, Proposals(logits, torch.ones(2)), as_published=True)

    mean = np.array([123.675, 116.28, 103.53])
    padded = np.broadcast_to(mean, (128, 96, 3)).copy()
    padded[:100, :72] = image
    pixels = torch.from_numpy(padded).permute(2, 0, 1).float() / 255
    wanted = resize(pixels, [side, side], InterpolationMode.BICUBIC, antialias=False)
    torch.testing.assert_close(given["pixels"][0] * clip.std + clip.mean, wanted, rtol=0, atol=1e-4)
    assert given["logits"].shape == (1, 2, side, side)
    assert (given["logits"][0, :, :, side * 3 // 4 + 2 :] < 0).all(), "no mask on the padding"
    assert masks.mask_logits.shape == (2, 100, 72)
    semantic = NamedMasks(torch.eye(2), masks.mask_logits, (100, 72)).semantic()
    assert (semantic[:40, :30] == 0).all() and (semantic[60:, 45:] == 1).all(), "masks stay where they were"
