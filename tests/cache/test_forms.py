"""What a file that others made may hold: arrays packed in other ways, and everything else."""

import struct
import time
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
from written import header, layout, text_set, write

from cliad.cache.file.check import verify
from cliad.cache.file.layout import CacheError, SplitLayout
from cliad.cache.file.read import open_cache
from cliad.cache.file.rows import gather
from cliad.cache.file.write import Writer, add_text, create

FEATURES = "splits/train/features"
LABELS = "splits/train/labels"


def change(path, name, make):
    """Put what `make(file, name, content)` makes in the place of an array of the file."""
    with h5py.File(path, "r+") as file:
        content = file[name][()]
        attributes = dict(file[name].attrs)
        del file[name]
        make(file, name, content)
        for key, value in attributes.items():
            file[name].attrs[key] = value


def refused(path, message):
    """The file is not opened, and all commands say the same in one line."""
    with pytest.raises(CacheError, match=message) as error:
        open_cache(path)
    assert str(error.value).isprintable() and path.name in str(error.value)
    assert verify(path) == [str(error.value)]


# ----------------------------------------------------------------------------------------- packed

PACKED = {
    "chunks": {"chunks": True},
    "gzip": {"compression": "gzip"},
    "shuffle and gzip": {"shuffle": True, "compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "fletcher32": {"fletcher32": True, "shuffle": True, "compression": "gzip"},
}


def packed_by(options):
    def make(file, name, content):
        file.create_dataset(name, data=content, **options)

    return make


@pytest.mark.parametrize("options", PACKED.values(), ids=PACKED)
def test_packed_arrays_equal_the_original(tmp_path, options):
    path = write(tmp_path / "a.h5")
    plain = open_cache(path)
    original = {name: np.array(plain.read(name)) for name in plain.arrays}
    for name in original:
        change(path, name, packed_by(options))
    cache = open_cache(path)
    for name, content in original.items():
        np.testing.assert_array_equal(cache.read(name), content)
    assert verify(path) == []
    np.testing.assert_array_equal(cache.split("train").rows([7]), plain.split("train").rows([7]))
    add_text(path, text_set("mine"))
    assert verify(path) == []


def test_compact_arrays_equal_the_original(tmp_path):
    path = write(tmp_path / "a.h5")
    original = open_cache(path).split("train").rows()

    def in_the_header(file, name, content):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        file.create_dataset(name, data=content, dcpl=properties)

    change(path, FEATURES, in_the_header)
    np.testing.assert_array_equal(open_cache(path).split("train").rows(), original)
    assert verify(path) == []


def scale_and_offset(file, name, content):
    file.create_dataset(name, data=content, chunks=True, scaleoffset=0)


def terabytes(file, name, content):
    file.create_dataset(name, (2**40, 6), content.dtype, chunks=(1024, 6), compression="gzip")


def without_chunks(file, name, content):
    file.create_dataset(name, content.shape, content.dtype, chunks=True)


def bomb(file, name, content):
    made = file.create_dataset(
        name, content.shape, content.dtype, chunks=content.shape, compression="gzip"
    )
    made.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**20)), 0)


def virtual(file, name, content):
    layout = h5py.VirtualLayout(content.shape, content.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "x", content.shape)
    file.create_virtual_dataset(name, layout)


def external(file, name, content):
    file.create_dataset(name, content.shape, content.dtype, external=[("other", 0, 999)])


def never_written(file, name, content):
    file.create_dataset(name, content.shape, content.dtype)


def soft_link(file, name, content):
    file[name] = h5py.SoftLink("/" + LABELS)


def external_link(file, name, content):
    file[name] = h5py.ExternalLink("other.h5", "/x")


def committed_type(file, name, content):
    file[name] = np.dtype("f4")


@pytest.mark.parametrize(
    "name, make, message",
    [
        (LABELS, scale_and_offset, "filters .* that are not known; unpack it with `h5repack"),
        (FEATURES, terabytes, "unpacks to .* MB.*`h5repack -l CONTI"),
        (FEATURES, without_chunks, "has lost chunks"),
        (FEATURES, bomb, "inflates to more than its 120 bytes"),
        (FEATURES, virtual, "lies in another file"),
        (FEATURES, external, "lies in another file"),
        (FEATURES, never_written, r"lost \['splits/train/features'\]"),
        (FEATURES, external_link, "is a link to another place"),
        (FEATURES, soft_link, "is a link to another place"),
        (FEATURES, committed_type, "neither an array nor a group"),
    ],
)
def test_what_cannot_be_unpacked_within_limits_is_refused(tmp_path, name, make, message):
    path = write(tmp_path / "a.h5")
    change(path, name, make)
    refused(path, message)


# -------------------------------------------------------------------------------- types and sizes

ADDRESSES = {
    "text of variable length": h5py.string_dtype(),
    "sequences": h5py.vlen_dtype(np.int32),
    "references": h5py.ref_dtype,
    "region references": h5py.regionref_dtype,
    "records with text": np.dtype([("a", h5py.string_dtype()), ("b", "i4")]),
}


@pytest.mark.parametrize("dtype", ADDRESSES.values(), ids=ADDRESSES)
def test_bytes_of_no_array_are_used_as_addresses(tmp_path, dtype):
    whole = write(tmp_path / "whole.h5")
    for name in open_cache(whole).arrays:
        path = tmp_path / "a.h5"
        path.write_bytes(whole.read_bytes())

        def of_addresses(file, name, content):
            file.create_dataset(name, content.shape, dtype)

        change(path, name, of_addresses)
        refused(path, f"{name} holds")


def data(content):
    def make(file, name, _):
        file.create_dataset(name, data=content)

    return make


@pytest.mark.parametrize(
    "name, content, message",
    [
        (FEATURES, np.ones((10, 6), ">f2"), "big-endian floating-point numbers of 2 bytes"),
        (FEATURES, np.ones((10, 6)), "floating-point numbers of 8 bytes"),
        (FEATURES, np.ones((10, 6), "i4"), "integers of 4 bytes"),
        (FEATURES, np.ones((10, 6, 1), "f2"), "has 3 axes, expected 2: n dim"),
        (FEATURES, np.ones((10, 0), "f2"), "has no dim to it"),
        (FEATURES, np.ones((9, 6), "f2"), r"is \(9, 6\), expected \(10, 6\)"),
        (FEATURES, np.ones((10, 7), "f2"), r"is \(4, 2, 6\)|is \(2, 4, 6\), expected \(2, 4, 7\)"),
        (FEATURES, np.ones((10, 6), "f4"), "of two types"),
        (LABELS, np.arange(10) % 3, "integers of 8 bytes, expected type <i4"),
        (LABELS, np.full(10, -1, "i4"), "label -1 is below 0"),
        (LABELS, np.full(10, 999_999, "i4"), "label 999999 has no class name"),
        (LABELS, np.full(10, 2**31 - 1, "i4"), "label 2147483647 has no class name"),
        ("splits/train/status", np.full(10, 3, "u1"), "status 3 is none of"),
        ("splits/train/checksums", np.ones(2, "u4"), r"is \(2,\), expected \(3,\)"),
        ("splits/train/views/aug", np.ones((2, 3, 6), "f2"), r"expected \(3,\)|\(2, 4, 6\)"),
        ("splits/train/views/aug_rows", np.array([1, 4, 5, 10]), "ascending row numbers below 10"),
        ("splits/train/views/aug_rows", np.array([-1, 4, 5, 9]), "ascending row numbers"),
        ("splits/train/views/aug_rows", np.array([1, 1, 5, 9]), "ascending row numbers"),
        ("text/default/features", np.ones((2, 3, 5), "f2"), r"expected \(2, 3, 6\)"),
        ("text/default/features", np.ones((2, 4, 6), "f2"), r"expected \(2, 3, 6\)"),
        ("text/default/text_recipe", np.frombuffer(b"[1]", "u1"), "no JSON object"),
        ("image_recipe", np.frombuffer(b"{", "u1"), "not valid JSON"),
        ("image_recipe", np.frombuffer(b"[" * 100_000, "u1"), "nested too deeply"),
        ("versions", np.frombuffer(b"null", "u1"), "no JSON object"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(tmp_path, name, content, message):
    path = write(tmp_path / "a.h5")
    change(path, name, data(content))
    refused(path, message)


def test_text_that_is_not_finite_is_refused_where_it_is_used(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["text/default/features"][1, 1, 1] = np.nan
    with pytest.raises(CacheError, match="not all text features are finite"):
        _ = open_cache(path).text


@pytest.mark.parametrize(
    "name, message",
    [
        ("splits/../labels", "no name for a split"),
        ("splits/\x1b[31m/labels", "no name for a split"),
        ("splits/train/more", "which no cache file has"),
        ("more", "which no cache file has"),
        ("text/default/more/deep", "a group 'text/default/more', which no cache file has"),
    ],
)
def test_names_that_no_cache_has_are_refused(tmp_path, name, message):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file[name] = np.zeros(3, np.int32)
    refused(path, message)


def test_a_group_that_holds_itself_is_refused(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["splits/loop"] = file["splits"]
    refused(path, "which no cache file has")


# ------------------------------------------------------------------------------------- attributes


@pytest.mark.parametrize(
    "node, key, value, message",
    [
        ("/", "batch", 0, "batch is 0, expected a number above 0"),
        ("/", "batch", -4, "batch is -4"),
        ("/", "batch", 2**62, r"is \(3,\), expected \(1,\)"),
        ("/", "batch", "many", "batch of the file holds strings"),
        ("/", "batch", np.bytes_("many"), "batch of the file is 'many', expected int"),
        ("/", "batch", 1.5, "batch of the file is 1.5, expected int"),
        ("/", "unit_rows", 2, "unit_rows is 2, expected 0 or 1"),
        ("/", "dataset", 3, "dataset of the file is 3, expected str"),
        ("/", "dataset", np.bytes_("\x1b[31m"), "cannot be shown"),
        ("/", "dataset", np.bytes_(b"\xff\xfe"), "is not UTF-8 text"),
        ("/", "dataset", h5py.Empty("S3"), "is not a single value"),
        ("/", "dataset", np.array([b"a", b"b"]), "is not a single value"),
        ("/", "schema", 3, "schema 3, this cliad reads schema 1 and 2"),
        ("text/default", "logit_scale", np.inf, "logit scale inf"),
        ("text/default", "logit_scale", np.nan, "logit scale nan"),
        ("text/default", "logit_scale", 0.0, "logit scale 0.0"),
        ("text/default", "logit_scale", np.bytes_("1"), "is '1', expected float"),
        ("text/default", "text_id", np.array(["a"], h5py.string_dtype()), "not a single value"),
        ("splits/train/views/aug", "low", np.zeros(3), "is not a single value"),
    ],
)
def test_an_attribute_of_another_kind_is_refused(tmp_path, node, key, value, message):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file[node].attrs[key] = value
    refused(path, message)


# ------------------------------------------------------------------------------------------- maps


def test_rows_of_a_part_of_a_mapped_array_are_those_of_the_part(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", 16, (100, 4))
    x[:] = np.arange(400).reshape(100, 4)
    x.flush()
    for part in (x[50:], x[::2], x[::-1], x[:, 1:3], x[20:].view(np.uint8)):
        np.testing.assert_array_equal(gather(part, [3, 1]), np.asarray(part)[[3, 1]])


# ---------------------------------------------------------------------------------------- writing


def test_what_could_not_be_opened_again_is_not_written(tmp_path):
    split = layout()
    empty = SplitLayout(split.paths, split.labels, {"features": (0,)}, {})
    with pytest.raises(CacheError, match=r"cannot write a\.h5: .* has no dim to it"):
        create(tmp_path / "a.h5", header(split), {"train": empty}, [text_set()])
    narrow = replace(text_set("narrow"), features=np.ones((2, 3, 5)))
    with pytest.raises(CacheError, match=r"is \(2, 3, 5\), expected \(2, 3, 6\)"):
        create(tmp_path / "a.h5", header(split), {"train": split}, [narrow])
    assert list(tmp_path.iterdir()) == []
    path = write(tmp_path / "a.h5")
    with pytest.raises(CacheError, match=r"is \(2, 3, 5\), expected \(2, 3, 6\)"):
        add_text(path, narrow)
    with pytest.raises(CacheError, match=r"'xxx.* has 70,000 bytes"):
        add_text(path, text_set("long", classnames=("x" * 70_000, "dog", "eel")))
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"] and verify(path) == []


def test_arrays_with_holes_of_any_size_are_refused_unread(tmp_path):
    path = write(tmp_path / "a.h5")

    def of_a_terabyte(file, name, content):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        file.create_dataset(name, (2**38,), content.dtype, dcpl=properties)

    change(path, LABELS, of_a_terabyte)
    refused(path, "1,099,511,627,776 bytes, more than 400,000,000")


def hole(shape, dtype=None):
    """Makes an array that has a place in the file and no content there."""

    def make(file, name, content):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        file.create_dataset(name, shape, dtype or content.dtype, dcpl=properties)

    return make


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("versions", hole((2**24 + 1,)), "16,777,217 bytes, more than 16,777,216"),
        ("image_recipe", hole((2**28,)), "268,435,456 bytes, more than 16,777,216"),
        (FEATURES, hole((10, 2**33)), "a dim of more than 65,536"),
        ("splits/train/views/aug", hole((2**30, 4, 6)), "a n_view of more than 65,536"),
        ("text/default/classnames", hole((2**28,), "S1"), r"is \(2, 3, 6\), expected"),
    ],
)
def test_what_would_take_too_much_memory_is_refused_unread(tmp_path, name, make, message):
    path = write(tmp_path / "a.h5")
    change(path, name, make)
    refused(path, message)


@pytest.mark.parametrize("name", ["classnames", "templates"])
def test_names_beyond_those_of_the_recipe_are_not_read(tmp_path, name):
    path = write(tmp_path / "a.h5")
    change(path, f"text/default/{name}", hole((2**28,), "S1"))
    with h5py.File(path, "r+") as file:
        del file["text/default/features"]
    start = time.perf_counter()
    refused(path, "class names or templates of prompts 'default' do not match their id")
    # To read them takes a minute.
    assert time.perf_counter() - start < 5


def test_arrays_that_are_small_enough_each_and_too_large_together_are_refused(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        for split in ("a", "b"):
            hole((90_000_000,), "i4")(file, f"splits/{split}/labels", None)
    refused(path, "have 720,00.* bytes in all, more than 536,870,912")


@pytest.mark.parametrize("group", ["splits", "text"])
def test_more_groups_than_any_cache_has_are_refused(tmp_path, group):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        for number in range(1001):
            file.create_group(f"{group}/{number}")
    refused(path, "more than 1000 members in one group")


def test_more_attributes_than_any_array_has_are_refused(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        for number in range(201):
            file["splits/train/views/aug"].attrs[f"a{number}"] = number
    refused(path, "more than 200 attributes")


@pytest.mark.parametrize(
    "first, second",
    [("splits/train", "splits/val"), ("text/default/contents", "versions")],
)
def test_arrays_that_share_their_bytes_are_refused(tmp_path, first, second):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        if second in file:
            del file[second]
        file[second] = file[first]
    refused(path, "lie in one place")


def test_verify_stops_after_fifty_lines_and_says_so(tmp_path):
    path = tmp_path / "a.h5"
    split = SplitLayout([""] * 99, np.zeros(99, int), {"features": (6,)})
    create(path, header(split, batch=1), {"train": split}, [text_set()])
    with Writer(path) as writer:
        for name, start, stop in writer.todo():
            writer.write(name, start, {"features": np.ones((1, 6))}, np.ones(stop - start))
        writer.finish()
    assert verify(path) == []
    with h5py.File(path, "r+") as file:
        file[FEATURES][...] = 2
    lines = verify(path)
    assert len(lines) == 51
    assert lines[0] == "train: rows 0 to 0 are damaged (their checksum differs)"
    assert lines[50] == "stopped after 50 lines; the rest was not looked at"


def test_what_is_too_large_to_be_opened_again_is_not_written(tmp_path):
    path = write(tmp_path / "a.h5")
    before = path.read_bytes()
    long = replace(text_set("long"), recipe={"prompts": "x" * 2**24})
    with pytest.raises(CacheError, match=r"text/long/text_recipe has .* more than 16,777,216"):
        add_text(path, long)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_free_space_that_is_listed_in_a_circle_does_not_hang(tmp_path):
    path = write(tmp_path / "a.h5")
    content = path.read_bytes()
    n_heap = 0
    at = content.find(b"HEAP")
    while at >= 0:
        size, free, segment = struct.unpack_from("<QQQ", content, at + 8)
        if free != 1 and free + 16 <= size:
            n_heap += 1
            changed = bytearray(content)
            # The first free part says that it is followed by itself.
            struct.pack_into("<Q", changed, segment + free, free)
            path.write_bytes(changed)
            refused(path, "free space of a group is listed in a circle")
        at = content.find(b"HEAP", at + 1)
    assert n_heap > 3
