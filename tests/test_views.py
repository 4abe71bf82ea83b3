"""Augmented views: what they show, and that nothing but the seed, the path and the number decides it."""

import numpy as np
import pytest

from cliad.cache.views import FLIPPED, ViewError, ViewSet, parse_draws, parse_scale


def shares(views, size=(64, 48), n=400):
    boxes = [views.show(size, f"{i}.jpg", 0)[0] for i in range(n)]
    return np.array([w * h / (size[0] * size[1]) for _, _, w, h in boxes]), boxes


def test_a_view_depends_on_seed_path_and_number_alone():
    one, other_seed = ViewSet(3, (0.5, 1)), ViewSet(3, (0.5, 1), seed=2)
    assert one.show((64, 48), "a.jpg", 1) == ViewSet(9, (0.5, 1)).show((64, 48), "a.jpg", 1)
    assert one.show((64, 48), "a.jpg", 1) == ((1, 2, 40, 42), False)  # a change here would change users' views
    shown = {one.show((64, 48), path, v) for path in ("a.jpg", "b.jpg") for v in range(3)} | {other_seed.show((64, 48), "a.jpg", 1)}
    assert len(shown) == 7


@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.08, 1.0)])
def test_crops_keep_to_their_scale_and_to_the_image(scale):
    found, boxes = shares(ViewSet(1, scale))
    assert scale[0] - 0.02 < found.min() < scale[0] + 0.1 and 0.9 < found.max() <= 1
    assert all(min(x, y) >= 0 and x + w <= 64 and y + h <= 48 for x, y, w, h in boxes)


def test_about_half_are_mirrored_and_the_flipped_view_always_is():
    mirrored = [ViewSet(1, (0.5, 1)).show((64, 48), str(i), 0)[1] for i in range(400)]
    assert 150 < sum(mirrored) < 250
    assert all(FLIPPED.show((64, 48), str(i), 0) == (None, True) for i in range(20))


def test_very_long_images_have_views_too():
    assert ViewSet(1, (0.9, 1)).show((2000, 10), "a", 0)[0] == (993, 0, 13, 10)


def test_names_say_the_scale():
    assert [views.name for views in (ViewSet(1, (0.5, 1.0)), ViewSet(1, (0.08, 1)), FLIPPED)] == ["crop-0.5-1", "crop-0.08-1", "flip"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ViewSet(0, (0.5, 1)), "at least 1; got 0"),
        (lambda: ViewSet(1, (0.5, 1.5)), "got 0.5:1.5"),
        (lambda: ViewSet(1, (0.9, 0.5)), "got 0.9:0.5"),
        (lambda: parse_scale("half"), "LOW:HIGH"),
        (lambda: parse_draws("coop:16"), "PROTOCOL:SHOTS:SEEDS"),
        (lambda: parse_draws("coop:a:1"), "PROTOCOL:SHOTS:SEEDS"),
    ],
)
def test_wrong_views_are_one_line(make, message):
    with pytest.raises(ViewError, match=message):
        make()


def test_draws_as_they_are_written():
    assert parse_draws("coop:1,16:1,2,3") == ("coop", [1, 16], [1, 2, 3]) and parse_scale("0.08:1") == (0.08, 1.0)
