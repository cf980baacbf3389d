"""Pictures: right size, colours that belong to names, names inside the frame; looked at by eye besides."""

import numpy as np
import pytest

from maskclip import visualize
from maskclip.visualize import class_color, comparison, draw_masks, draw_panoptic, draw_semantic

NAMES = ["cat", "sky", "a thing with a very long name indeed"]


def scene(height=60, width=90):
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (height, width, 3), dtype=np.uint8)
    ids = np.zeros((height, width), np.int32)
    ids[: height // 2, 5:] = 4
    ids[height // 2 :, : width // 2] = 9
    ids[height // 2 : -4, width // 2 :] = 2
    segments = [
        {"id": 9, "category": 0, "isthing": True},
        {"id": 4, "category": 1, "isthing": False},
        {"id": 2, "category": 0, "isthing": True},
    ]
    return image, ids, segments


def mean_color(picture, where):
    return picture[where].reshape(-1, 3).mean(0)


def test_small_pictures_are_enlarged_and_large_ones_are_not(monkeypatch):
    assert draw_panoptic(*scene(), NAMES).shape == (480, 720, 3)
    assert draw_panoptic(*scene(400, 500), NAMES).shape == (400, 500, 3)
    monkeypatch.setattr(visualize, "SHORT_SIDE", 60)
    picture = draw_panoptic(*scene(), NAMES)
    assert picture.shape == (60, 90, 3) and picture.dtype == np.uint8


def test_segments_take_their_class_color_and_void_is_grey(monkeypatch):
    monkeypatch.setattr(visualize, "SHORT_SIDE", 1)
    image, ids, segments = scene(200, 300)
    picture = draw_panoptic(image, ids, segments, NAMES, text=0)
    void = picture[:98, :3].astype(int)
    assert (void.max(-1) - void.min(-1)).max() <= 1 and void.mean() < 0.6 * image.mean()
    for name, isthing, where in [("sky", False, np.s_[10:90, 20:280]), ("cat", True, np.s_[110:190, 10:140])]:
        got, want = mean_color(picture, where), class_color(name, isthing)
        assert np.corrcoef(got, want)[0, 1] > 0.98
    first, second = mean_color(picture, np.s_[110:190, 10:140]), mean_color(picture, np.s_[110:190, 160:290])
    assert np.abs(first - second).max() > 10  # two cats can be told apart
    edge = picture[100, 20:280].mean(), picture[99, 20:280].mean()
    assert max(edge) > picture[95, 20:280].mean() + 40  # a light border between segments


def test_colors_are_stable_and_differ():
    names = [f"name {i}" for i in range(200)]
    colors = np.array([class_color(name) for name in names])
    assert ((colors >= 0) & (colors <= 1)).all() and len(np.unique(colors.round(3), axis=0)) > 60
    np.testing.assert_allclose(255 * class_color("umbrella"), [227, 137, 239], atol=2)  # the same in every process
    muted, vivid = (np.ptp([class_color(n, thing) for n in names], axis=1).mean() for thing in (False, True))
    assert muted < 0.75 * vivid


@pytest.mark.parametrize("text", [1.0, 3.0])
@pytest.mark.parametrize("size", [(60, 90), (20, 150), (200, 40)])
def test_names_stay_inside_the_picture(size, text):
    """Every name drawn leaves a frame of one pixel free, even where its segment touches the corner."""
    image, ids = np.full((*size, 3), 128, np.uint8), np.zeros(size, np.int32)
    h, w = size
    ids[: h // 2, : w // 2], ids[: h // 2, w // 2 :], ids[h // 2 :] = 1, 2, 3
    segments = [{"id": i, "category": 2} for i in (1, 2, 3)]
    plain = draw_panoptic(image, ids, segments, NAMES, text=0)
    named = draw_panoptic(image, ids, segments, NAMES, text=text)
    changed = (plain != named).any(-1)
    assert changed.sum() > 50
    assert not (changed[0].any() or changed[-1].any() or changed[:, 0].any() or changed[:, -1].any())


def test_degenerate_pictures(monkeypatch):
    one = np.full((1, 1, 3), 9, np.uint8)
    assert draw_panoptic(one, np.ones((1, 1), int), [{"id": 1, "category": 2}], NAMES).shape == (480, 480, 3)
    image, ids, _ = scene()
    assert draw_panoptic(image, np.zeros_like(ids), [], NAMES).shape == (480, 720, 3)
    assert draw_semantic(image, np.full(ids.shape, -1), NAMES).shape == (480, 720, 3)
    monkeypatch.setattr(visualize, "SHORT_SIDE", 60)
    np.testing.assert_array_equal(draw_masks(image, np.zeros((0, 60, 90), bool)), image)


def test_semantic_maps_and_masks(monkeypatch):
    monkeypatch.setattr(visualize, "SHORT_SIDE", 1)
    image, ids, _ = scene(200, 300)
    semantic = np.where(ids == 4, 1, np.where(ids > 0, 0, -1))
    picture = draw_semantic(image, semantic, NAMES, text=0)
    assert np.corrcoef(mean_color(picture, np.s_[10:90, 20:280]), class_color("sky", False))[0, 1] > 0.98
    large, small = np.ones((200, 300), bool), np.zeros((200, 300), bool)
    small[80:120, 100:200] = True
    picture = draw_masks(image, np.stack([small, large]))
    inside, outside = mean_color(picture, np.s_[90:110, 110:190]), mean_color(picture, np.s_[10:60])
    assert np.abs(inside - outside).max() > 15  # the small mask is drawn over the large one
    assert (draw_masks(image, small[None], ["cat"]) != draw_masks(image, small[None])).any()


def test_comparison_needs_no_screen(tmp_path):
    pictures = [np.full((40, 60, 3), 90, np.uint8), np.full((80, 60, 3), 200, np.uint8)]
    figure = comparison([pictures, pictures], ["Image", "MaskCLIP"], width=6, row_labels=["1", "2"])
    assert len(figure.axes) == 4
    heights = [axes.get_position().height for axes in figure.axes]
    assert heights[0] == pytest.approx(heights[1])  # a row shares its height, whatever the pictures' sizes
    assert figure._repr_png_().startswith(b"\x89PNG")  # what notebooks show
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="every row needs 3 pictures"):
        comparison([pictures], ["a", "b", "c"])


def test_a_figure_is_drawn_again_after_a_change_only():
    figure = comparison([[np.full((20, 30, 3), 90, np.uint8)] * 2], ["a", "b"])
    first = figure._repr_png_()
    assert figure._repr_png_() is first
    figure.axes[1].set_title("another")
    assert figure._repr_png_() != first
