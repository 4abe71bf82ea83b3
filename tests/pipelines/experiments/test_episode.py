"""A cache becomes episodes: every tensor beside what plain numpy indexing of the file gives."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import toy_cache

from cliad.cache.file.layout import (
    DONE,
    UNREADABLE,
    CacheError,
    Header,
    SplitLayout,
    TextSet,
    Views,
)
from cliad.cache.file.read import open_cache
from cliad.cache.file.write import Writer, create
from cliad.pipelines.experiments.episode import draw_of, make_episodes, pick_device, score_rows
from cliad.pipelines.experiments.train import train
from cliad.pipelines.fewshot.draw import DrawRequest, draw

CPU = pick_device("cpu")
N_CLASS, DIM, DIM_PRE, N_VIEW = 4, 6, 9, 3
ASKED = [DrawRequest(2, 1, "coop"), DrawRequest(3, 2, "lp++"), DrawRequest(2, 3, "clip-lora")]


class World:
    """What a cache file holds, as plain arrays: nothing here is read back from it."""

    def __init__(self, path, *, val=True, views=True, pre_projection=True, unreadable=(), bare=()):
        rng = np.random.default_rng(5)
        self.y = {"train": rng.permutation(np.arange(40) % N_CLASS)}
        self.y["test"] = np.arange(12) % N_CLASS
        if val:  # uneven: 1, 2, 3 and 8 images of a class
            self.y["val"] = rng.permutation(np.repeat(np.arange(N_CLASS), (3, 1, 8, 2)))
        self.x, self.pre, self.paths, self.status, splits = {}, {}, {}, {}, {}
        columns = {"features": (DIM,)}
        if pre_projection:
            columns["pre_projection"] = (DIM_PRE,)
        self.covered = np.array([row for row in range(40) if row not in bare])
        self.views = rng.normal(size=(N_VIEW, len(self.covered), DIM)).astype(np.float32)
        for name, labels in self.y.items():
            self.x[name] = rng.normal(size=(len(labels), DIM)).astype(np.float32)
            self.pre[name] = rng.normal(size=(len(labels), DIM_PRE)).astype(np.float32)
            self.paths[name] = [f"{name}/{row}.jpg" for row in range(len(labels))]
            self.status[name] = np.full(len(labels), DONE)
            sets = {}
            if views and name == "train":
                sets["crops"] = Views(N_VIEW, self.covered)
            splits[name] = SplitLayout(self.paths[name], labels, columns, sets)
        for name, row in unreadable:
            self.status[name][row] = UNREADABLE
        self.text = rng.normal(size=(2, N_CLASS, DIM)).astype(np.float32)
        names = [f"class {c}" for c in range(N_CLASS)]
        templates = ["a {}.", "the {}."]
        recipe = {"classnames": names, "templates": templates}
        text = TextSet("default", self.text, templates, names, recipe, "toy", 37.0)
        header = Header("toy", "toy", "toy", {"v": 1}, batch=8, dtype="float32")
        create(path, header, splits, [text])
        with Writer(path) as writer:
            for name, start, stop in writer.todo():
                arrays = {"features": self.x[name][start:stop]}
                if pre_projection:
                    arrays["pre_projection"] = self.pre[name][start:stop]
                if views and name == "train":
                    inside = (self.covered >= start) & (self.covered < stop)
                    arrays["views/crops"] = self.views[:, inside]
                writer.write(name, start, arrays, self.status[name][start:stop])
            writer.finish()
        self.cache = open_cache(path)


def test_every_tensor_is_what_indexing_the_arrays_gives(tmp_path):
    world = World(tmp_path / "c.h5")
    made = make_episodes(world.cache, ASKED, CPU, needs={"views", "pre_projection"})
    assert len(made) == 3
    for one, request in zip(made, ASKED, strict=True):
        shots, seed, protocol = request.shots, request.seed, request.protocol
        train, val = world.y["train"].tolist(), world.y["val"].tolist()
        drawn = draw(train, val, shots=shots, seed=seed, protocol=protocol)
        episode = one.episode
        found = episode.features[episode.index]
        np.testing.assert_array_equal(found, world.x["train"][drawn.train])
        np.testing.assert_array_equal(episode.y, world.y["train"][drawn.train])
        np.testing.assert_array_equal(episode.val[0], world.x["val"][drawn.val])
        np.testing.assert_array_equal(episode.val_y, world.y["val"][drawn.val])
        np.testing.assert_array_equal(episode.text, world.text)
        found = episode.pre_projection
        np.testing.assert_array_equal(found[episode.index], world.pre["train"][drawn.train])
        np.testing.assert_array_equal(found[episode.val_index], world.pre["val"][drawn.val])
        np.testing.assert_array_equal(episode.views[:, episode.index], world.views[:, drawn.train])
        assert (episode.logit_scale, episode.seed, episode.n_class) == (37.0, seed, N_CLASS)
        assert len(episode.val_index) == len(drawn.val) == len(episode.val_y)


def test_episodes_share_one_matrix_of_just_the_rows_in_use(tmp_path):
    world = World(tmp_path / "c.h5")
    made = make_episodes(world.cache, ASKED, CPU)
    assert len({id(one.episode.features) for one in made}) == 1
    rows = {"train": set(), "val": set()}
    for request in ASKED:
        shots, seed, protocol = request.shots, request.seed, request.protocol
        train, val = world.y["train"].tolist(), world.y["val"].tolist()
        drawn = draw(train, val, shots=shots, seed=seed, protocol=protocol)
        rows["train"] |= set(drawn.train)
        rows["val"] |= set(drawn.val)
    assert len(rows["train"]) < 40
    expected = [world.x[name][sorted(members)] for name, members in rows.items()]
    np.testing.assert_array_equal(made[0].episode.features, np.concatenate(expected))


def test_without_a_validation_split_its_rows_are_training_rows(tmp_path):
    world = World(tmp_path / "c.h5", val=False)
    made = make_episodes(world.cache, ASKED, CPU, needs={"views", "pre_projection"})
    for one, request in zip(made, ASKED, strict=True):
        shots, seed, protocol = request.shots, request.seed, request.protocol
        drawn = draw(world.y["train"].tolist(), None, shots=shots, seed=seed, protocol=protocol)
        episode = one.episode
        np.testing.assert_array_equal(episode.val[0], world.x["train"][drawn.val])
        np.testing.assert_array_equal(episode.val_y, world.y["train"][drawn.val])
        found = episode.views[:, episode.val_index]
        np.testing.assert_array_equal(found, world.views[:, drawn.val])
        found = episode.pre_projection[episode.val_index]
        np.testing.assert_array_equal(found, world.pre["train"][drawn.val])
        assert not set(episode.index.tolist()) & set(episode.val_index.tolist())


def test_val_per_class_is_that_of_the_smallest_class(tmp_path):
    world = World(tmp_path / "c.h5")
    made = make_episodes(
        world.cache,
        [DrawRequest(2, 1, "coop"), DrawRequest(8, 1, "lp++"), DrawRequest(1, 1, "tip")],
        CPU,
    )
    assert [one.val_per_class for one in made] == [1, 1, 1]
    assert [len(one.episode.val_index) for one in made] == [
        2 + 1 + 2 + 2,
        3 + 1 + 8 + 2,
        3 + 1 + 8 + 2,
    ]


def test_optional_arrays_are_loaded_where_they_are_needed_and_there(tmp_path):
    with_all = World(tmp_path / "all.h5").cache
    with_none = World(tmp_path / "none.h5", views=False, pre_projection=False).cache
    for cache, needs, there in (
        (with_all, {"views"}, (True, False)),
        (with_all, {"pre_projection"}, (False, True)),
        (with_all, set(), (False, False)),
        (with_none, {"views", "pre_projection"}, (False, False)),
    ):
        (one,) = make_episodes(cache, ASKED[:1], CPU, needs=needs)
        found = one.episode.views is not None, one.episode.pre_projection is not None
        assert found == there


def test_views_of_some_rows_serve_the_draws_that_they_cover(tmp_path):
    train = World(tmp_path / "c.h5").y["train"].tolist()
    drawn = draw(train, None, shots=2, seed=1).train
    bare = [row for row in range(40) if row not in drawn][::2]
    world = World(tmp_path / "some.h5", bare=bare)
    (one,) = make_episodes(world.cache, [DrawRequest(2, 1, "coop")], CPU, needs={"views"})
    at = [world.covered.tolist().index(row) for row in drawn]
    np.testing.assert_array_equal(one.episode.views[:, one.episode.index], world.views[:, at])


@pytest.mark.parametrize("which", [0, -1])
def test_views_that_lack_a_drawn_row_are_refused(tmp_path, which):
    train = World(tmp_path / "c.h5").y["train"].tolist()
    missing = sorted(draw(train, None, shots=2, seed=1).train)[which]
    world = World(tmp_path / "some.h5", bare=[missing])
    with pytest.raises(CacheError, match=r"views/crops of some\.h5 do not cover all drawn images"):
        make_episodes(world.cache, [DrawRequest(2, 1, "coop")], CPU, needs={"views"})
    (one,) = make_episodes(
        world.cache, [DrawRequest(2, 1, "coop")], CPU
    )  # no head that asks for them
    assert one.episode.views is None


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_drawn_row_that_could_not_be_read_is_named(tmp_path, split):
    whole = World(tmp_path / "c.h5")
    drawn = draw(whole.y["train"].tolist(), whole.y["val"].tolist(), shots=2, seed=1)
    row = getattr(drawn, split)[1]
    world = World(tmp_path / "bad.h5", unreadable=[(split, row)])
    said = f"{split} image {split}/{row}.jpg was selected for this run but could not be read"
    with pytest.raises(CacheError, match=said) as caught:
        make_episodes(world.cache, [DrawRequest(2, 1, "coop")], CPU)
    assert "\n" not in str(caught.value)


def test_unreadable_rows_that_are_not_drawn_do_not_matter(tmp_path):
    whole = World(tmp_path / "c.h5")
    drawn = draw(whole.y["train"].tolist(), whole.y["val"].tolist(), shots=2, seed=1)
    others = [row for row in range(40) if row not in drawn.train]
    world = World(tmp_path / "bad.h5", unreadable=[("train", row) for row in others])
    (one,) = make_episodes(world.cache, [DrawRequest(2, 1, "coop")], CPU)
    found = one.episode.features[one.episode.index]
    np.testing.assert_array_equal(found, world.x["train"][drawn.train])


def test_scoring_leaves_out_rows_that_could_not_be_read(tmp_path):
    world = World(tmp_path / "c.h5", unreadable=[("test", 0), ("test", 7)])
    keep = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    x, y = score_rows(world.cache, "test", CPU)
    np.testing.assert_array_equal(x, world.x["test"][keep])
    np.testing.assert_array_equal(y, world.y["test"][keep])
    assert y.dtype == torch.int64
    wide, _ = score_rows(world.cache, "test", CPU, columns=("pre_projection",))
    both = wide.gather(torch.arange(len(wide)))
    expected = np.concatenate([world.x["test"][keep], world.pre["test"][keep]], axis=1)
    np.testing.assert_array_equal(both, expected)


def sha256_of_lines(lines):
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("val", [True, False], ids=["val", "no-val"])
def test_the_index_hash_is_that_of_the_rows_drawn(tmp_path, val):
    world = World(tmp_path / "c.h5", val=val)
    made = make_episodes(world.cache, ASKED, CPU)
    for one, request in zip(made, ASKED, strict=True):
        shots, seed, protocol = request.shots, request.seed, request.protocol
        drawn, digest = draw_of(world.cache, DrawRequest(shots, seed, protocol))
        lines = [f"train:{world.y['train'][row]}:train/{row}.jpg" for row in drawn.train]
        split = "val" if val else "train"
        lines += [f"val:{world.y[split][row]}:{split}/{row}.jpg" for row in drawn.val]
        assert one.index_hash == digest == sha256_of_lines(lines)


def test_the_index_hash_of_the_toy_cache_is_this_literal(tmp_path):
    cache = open_cache(toy_cache(tmp_path))
    _, digest = draw_of(cache, DrawRequest(1, 1, "coop"))
    assert digest == "ecb3f2ec4849079b"
    assert train(folder=tmp_path, head="zero-shot", shots=1)[0].row()["index_hash"] == digest


def test_a_class_of_too_few_images_is_named_as_the_cache_names_it(tmp_path):
    names = ["ant", "bee", "cat", "dog", "emu"]
    cache = open_cache(toy_cache(tmp_path, n=(3, 8, 12), classnames=names))
    with pytest.raises(ValueError, match="class 'ant' has 3 training images"):
        draw_of(cache, DrawRequest(4, 1, "coop"))
