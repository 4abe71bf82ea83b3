"""Augmented views: what they show, and that nothing but the seed, the path and the number decides it."""

import math
import random

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from cliad.cache import views
from cliad.cache.views import FLIPPED, ViewError, ViewSet, parse_draws, parse_scale


def shares(views, size=(64, 48), n=400):
    boxes = [views.show(size, f"{i}.jpg", 0)[0] for i in range(n)]
    return np.array([w * h / (size[0] * size[1]) for _, _, w, h in boxes]), boxes


def test_a_view_depends_on_seed_path_and_number_alone():
    one, other_seed = ViewSet(3, (0.5, 1)), ViewSet(3, (0.5, 1), seed=2)
    assert one.show((64, 48), "a.jpg", 1) == ViewSet(9, (0.5, 1)).show((64, 48), "a.jpg", 1)
    assert one.show((64, 48), "a.jpg", 1) == (
        (1, 2, 40, 42),
        False,
    )  # a change here would change users' views
    shown = {one.show((64, 48), path, v) for path in ("a.jpg", "b.jpg") for v in range(3)} | {
        other_seed.show((64, 48), "a.jpg", 1)
    }
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
    assert [views.name for views in (ViewSet(1, (0.5, 1.0)), ViewSet(1, (0.08, 1)), FLIPPED)] == [
        "crop-0.5-1",
        "crop-0.08-1",
        "flip",
    ]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ViewSet(0, (0.5, 1)), "from 1 to 10,000; got 0"),
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
    assert parse_draws("coop:1,16:1,2,3") == ("coop", [1, 16], [1, 2, 3]) and parse_scale(
        "0.08:1"
    ) == (0.08, 1.0)


# --------------------------------------------------------------------------- boxes, in numbers


def shown_by_the_formula(size, path, view, scale, flip=0.5, seed=1):
    """Box and mirroring as RandomResizedCrop draws them, written anew."""
    generator = random.Random(f"{seed}:{view}:{path}")
    width, height = size
    for _ in range(10):
        area = generator.uniform(scale[0], scale[1]) * width * height
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width = round((area * ratio) ** 0.5)
        crop_height = round((area / ratio) ** 0.5)
        if crop_width <= width and crop_height <= height:
            left = generator.randint(0, width - crop_width)
            top = generator.randint(0, height - crop_height)
            return (left, top, crop_width, crop_height), generator.random() < flip
    return None, generator.random() < flip


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (0.7, 0.75)])
@pytest.mark.parametrize("size", [(64, 48), (500, 333), (40, 60), (224, 224)])
def test_boxes_are_those_of_the_formula(size, scale):
    made = ViewSet(3, scale, flip=0.3, seed=7)
    fitting = 0
    for number in range(60):
        expected = shown_by_the_formula(size, f"{number}.jpg", number % 3, scale, flip=0.3, seed=7)
        found = made.show(size, f"{number}.jpg", number % 3)
        assert found[1] == expected[1]
        if expected[0] is not None:
            assert found[0] == expected[0]
            fitting += 1
    assert fitting > 30


def test_some_boxes_as_literals():
    made = ViewSet(4, (0.08, 1.0))
    assert [made.show((64, 48), f"{number}.jpg", number) for number in range(4)] == [
        ((3, 0, 61, 48), False),
        ((16, 13, 25, 32), False),
        ((7, 5, 43, 36), False),
        ((18, 3, 33, 27), False),
    ]


@pytest.mark.parametrize("size", [(2000, 10), (10, 2000), (1000, 100), (100, 1000)])
def test_where_no_box_fits_the_middle_is_torchvisions(size):
    width, height = size
    picture = torch.zeros(3, height, width)
    theirs = RandomResizedCrop.get_params(picture, [1.0, 1.0], [3 / 4, 4 / 3])
    top, left, crop_height, crop_width = theirs
    box, _ = ViewSet(1, (1.0, 1.0)).show(size, "a", 0)
    assert box == (left, top, crop_width, crop_height)


def test_an_image_of_ordinary_shape_is_shown_whole_where_no_box_fits():
    boxes = [ViewSet(1, (1.0, 1.0)).show((100, 100), str(number), 0)[0] for number in range(50)]
    assert boxes.count((0, 0, 100, 100)) > 20


def test_boxes_are_as_large_and_as_wide_as_torchvisions_on_average():
    size = (60, 48)
    picture = torch.zeros(3, size[1], size[0])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draw = RandomResizedCrop.get_params
        drawn = np.array([draw(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)])
    theirs = drawn[:, [1, 0, 3, 2]]  # theirs say top before left
    made = ViewSet(1, (0.08, 1.0))
    ours = np.array([made.show(size, str(number), 0)[0] for number in range(2000)])
    spread = theirs.std(0) / math.sqrt(1000)
    assert (abs(ours.mean(0) - theirs.mean(0)) < 4 * spread).all()


def test_the_share_of_mirrored_views_is_the_one_asked_for():
    for flip in (0.0, 0.2, 1.0):
        made = ViewSet(1, flip=flip)
        mirrored = [made.show((9, 9), str(number), 0)[1] for number in range(1000)]
        assert abs(sum(mirrored) / 1000 - flip) < 0.05


def test_what_is_stored_beside_views_says_all_that_made_them():
    crops = ViewSet(10, (0.5, 1.0), seed=3)
    assert crops.how == {"n_view": 10, "flip": 0.5, "seed": 3, "scale_low": 0.5, "scale_high": 1.0}
    assert FLIPPED.how == {"n_view": 1, "flip": 1.0, "seed": 1}
    found = views.recipe({"flip": FLIPPED, "crop-0.5-1": crops}, "all")
    assert list(found) == ["crop-0.5-1", "flip"]
    assert found["crop-0.5-1"] == crops.how | {"rows": "all"}
    assert found["flip"] == FLIPPED.how | {"rows": "all"}


@pytest.mark.parametrize("scale", [(0.0, 1.0), (-0.5, 1.0), (0.5, 1.01)])
def test_a_scale_is_a_share_of_the_image(scale):
    with pytest.raises(ViewError, match="LOW:HIGH"):
        ViewSet(1, scale)
    assert ViewSet(1, (0.5, 0.5)).scale == (0.5, 0.5)
