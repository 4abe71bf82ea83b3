"""Lies that stay inside a format: arrays, members and headers that a valid file would not have."""

import io
import json
import random
import tarfile
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image


def odd_array(x: np.ndarray, rng: random.Random) -> np.ndarray:
    """An array in place of `x`: of another type, shape, order, or with other values."""
    kind = rng.choice(["type", "type", "shape", "value", "value", "scale", "order", "text"])
    if kind == "type":
        types = ["f2", "f4", "f8", "i1", "i8", "u8", "?", "c8", "S5", "U3", ">f4", ">i4", "M8[s]"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return x.astype(rng.choice(types))
        except (TypeError, ValueError):
            return np.zeros(x.shape, "f4")
    if kind == "shape":
        row = np.atleast_1d(x)
        shapes = [row[:0], row[:-1], x[..., None], x.ravel(), x.T, x[None], row[..., :0]]
        return rng.choice([*shapes, row.ravel()[:1].reshape(())]) if x.size else x[None]
    if kind == "text":
        texts = ["", "a" * 3000, "../../../outside/canary.jpg", "\x1b[31m", "é", "0", "=1+1"]
        return np.full(x.shape, rng.choice(texts))
    if kind == "order":
        return np.asfortranarray(x) if x.ndim > 1 else np.atleast_1d(x)[::-1]
    if x.dtype.kind not in "fiu" or not x.size:
        return x[::-1] if x.ndim else x
    changed = np.array(x, np.float64)
    if kind == "scale":
        return (changed * rng.choice([0, 1e-30, 1e19, 1e300, -1])).astype(np.float64)
    values = [np.nan, np.inf, -np.inf, 1e30, -1, 0.5, 999999, 2**31 - 1]
    changed.flat[rng.randrange(x.size)] = rng.choice(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return changed.astype(rng.choice([x.dtype, np.float64]))


def lie_in_arrays(arrays: dict[str, np.ndarray], rng: random.Random) -> dict[str, np.ndarray]:
    """Named arrays of which one is odd, gone, renamed, or there twice."""
    changed = dict(arrays)
    name = rng.choice(sorted(changed))
    kind = rng.choice(["odd", "odd", "odd", "odd", "gone", "renamed", "more"])
    if kind == "odd":
        changed[name] = odd_array(np.asarray(changed[name]), rng)
    elif kind == "gone":
        del changed[name]
    elif kind == "renamed":
        names = ["x", "train_x/../y", "../outside/canary", "other_x", "\x1b[31m", "a" * 300]
        changed[rng.choice(names)] = changed.pop(name)
    else:
        changed[f"{name}2"] = changed[name]
    return changed


def lie_in_npz(file: Path, rng: random.Random) -> None:
    """An npz file with odd arrays, packed or not, or with a header that lies about a size."""
    with np.load(file) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    arrays = lie_in_arrays(arrays, rng)
    kind = rng.choice(["plain", "plain", "plain", "packed", "header", "objects", "bomb", "twice"])
    if kind == "objects":
        arrays[rng.choice(sorted(arrays))] = np.array([{"a": 1}, None], dtype=object)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if kind == "packed" else 0) as archive:
        for name, x in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, x, allow_pickle=True)
            content = buffer.getvalue()
            if kind == "header":
                # A shape of as many letters, so that the header's length stays right.
                content = content.replace(b"(", b"(9" if rng.random() < 0.5 else b"(-", 1)
            archive.writestr(name.replace("\x00", "") + ".npy", content)
            if kind == "twice":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    archive.writestr(name + ".npy", b"not an array")
        if kind == "bomb":
            header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9000000, 100), }"
            header = header.ljust(117) + b"\n"
            zeros = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that is there twice
                with archive.open("train_x.npy", "w", force_zip64=True) as member:
                    member.write(zeros)
                    member.write(bytes(2**20))


def lie_in_safetensors(file: Path, rng: random.Random) -> None:
    """A header that lies: offsets, shapes, types, sizes, names."""
    from doors.mutations import mutate_value

    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = mutate_value(json.loads(data[8 : 8 + size]), rng)
    raw = json.dumps(header).encode()
    if rng.random() < 0.2:
        raw = raw[:-1]
    claimed = len(raw) if rng.random() < 0.8 else rng.choice([0, 2**40, 2**63, len(raw) + 9])
    file.write_bytes(claimed.to_bytes(8, "little") + raw + data[8 + size :])


def lie_in_hdf5(file: Path, rng: random.Random) -> None:
    """An array or attribute of another kind, shape, layout or value; links and groups that mislead."""
    with h5py.File(file, "r+") as opened:
        places: list[str] = []
        opened.visit(places.append)
        arrays = [name for name in places if isinstance(opened[name], h5py.Dataset)]
        kind = rng.choice(["array"] * 6 + ["attribute"] * 4 + ["link", "layout", "gone", "name"])
        name = rng.choice(arrays)
        if kind == "attribute":
            _lie_in_attribute(opened[rng.choice(["/", *places])], rng)
            return
        value = opened[name][()]
        attributes = dict(opened[name].attrs)
        del opened[name]
        if kind == "array":
            _write_odd(opened, name, value, rng)
        elif kind == "layout":
            options = rng.choice(
                [
                    {"chunks": True, "compression": "gzip"},
                    {"chunks": True},
                    {"chunks": True, "shuffle": True, "fletcher32": True},
                    {"chunks": True, "maxshape": (None,) * value.ndim},
                    {"external": [("../outside/canary.jpg", 0, 2**30)]},
                ]
            )
            if value.ndim and value.size:
                made = opened.create_dataset(
                    name, data=None, shape=value.shape, dtype=value.dtype, **options
                )
                if "external" not in options:
                    made[...] = value
                for key, attribute in attributes.items():
                    made.attrs[key] = attribute
        elif kind == "link":
            target = rng.choice([name, "/", "/splits", "/gone"])
            links = [
                h5py.SoftLink(target),
                h5py.ExternalLink("../outside/canary.jpg", "/"),
                h5py.ExternalLink("/dev/zero", "/"),
            ]
            opened[name] = rng.choice(links)
        elif kind == "name":
            odd = ["splits/../x/labels", "splits/\x1b[31m/labels", "text/../../x", "splits/a b/c"]
            opened.create_dataset(rng.choice(odd), data=value)


def _write_odd(opened: h5py.File, name: str, value: np.ndarray, rng: random.Random) -> None:
    kind = rng.choice(["odd", "odd", "odd", "vlen", "vlen text", "reference", "compound", "huge"])
    shape = np.shape(value)
    if kind == "vlen text":
        opened.create_dataset(name, shape, h5py.string_dtype())
    elif kind == "vlen":
        opened.create_dataset(name, shape, h5py.vlen_dtype(np.int32))
    elif kind == "reference":
        opened.create_dataset(name, shape, h5py.ref_dtype)
    elif kind == "compound":
        opened.create_dataset(name, shape, np.dtype([("a", "f4"), ("b", "i8")]))
    elif kind == "huge":
        opened.create_dataset(name, (2**33, *shape[1:]), "f4", chunks=True)
    else:
        odd = odd_array(np.asarray(value), rng)
        if odd.dtype.kind == "U":
            odd = np.char.encode(odd, "utf-8")
        if odd.dtype.kind == "M":
            odd = odd.astype(np.int64)
        opened.create_dataset(name, data=odd)


def _lie_in_attribute(node: h5py.Group, rng: random.Random) -> None:
    values = [
        0,
        -1,
        2**62,
        1.5,
        np.nan,
        np.inf,
        -np.inf,
        "",
        "text",
        "\x1b[31m",
        "a" * 5000,
        "[" * 20000,
        '{"a": 1}',
        "null",
        np.zeros(3),
        np.zeros((2, 2), "f2"),
        np.array(["a", "b"], dtype=h5py.string_dtype()),
        np.bytes_(b"\xff\xfe"),
        True,
        h5py.Empty("f4"),
    ]
    keys = list(node.attrs) or ["more"]
    key = rng.choice([*keys, "more"])
    if rng.random() < 0.15 and key in node.attrs:
        del node.attrs[key]
    else:
        node.attrs[key] = rng.choice(values)


def lie_in_tar(file: Path, rng: random.Random) -> None:
    """Members renamed, emptied, doubled, turned into links and devices, or with a size that lies."""
    with tarfile.open(file) as archive:
        members = [(member, archive.extractfile(member)) for member in archive if member.isfile()]
        contents = [(member, stream.read()) for member, stream in members if stream]
    at = rng.randrange(len(contents))
    names = [
        "../../outside/x",
        "/etc/passwd",
        "a.b.jpg",
        "noending",
        "",
        "x/" * 200 + "y.jpg",
        ".jpg",
    ]
    names += ["a" * 3000, "\x1b[31m.jpg", "é.jpg", "0.cls", "0.json", "000.JPG", "s.seg.png"]
    kind = rng.choice(["name", "empty", "double", "link", "content", "content", "drop", "packed"])
    mode = rng.choice(["w:gz", "w:bz2"]) if kind == "packed" else "w:"
    style = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    texts = [
        b"",
        b"\xff",
        b"9" * 6000,
        b"[" * 100000,
        b'{"label": null}',
        b'{"x": 1}',
        b"-1",
        b"cat\x1b[0m",
    ]
    with tarfile.open(file, mode, format=style) as archive:
        for number, (member, content) in enumerate(contents):
            copies = 1
            body = content
            if number == at:
                if kind == "name":
                    member.name = rng.choice(names)
                elif kind == "empty":
                    body = b""
                elif kind == "double":
                    copies = 2
                elif kind == "content":
                    body = rng.choice(texts)
                elif kind == "drop":
                    copies = 0
                elif kind == "link":
                    member.type = rng.choice(
                        [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
                    )
                    member.linkname = "../../outside/canary.jpg"
                    body = b""
            member.size = len(body)
            for _ in range(copies):
                archive.addfile(member, io.BytesIO(body))


def lie_in_zip(file: Path, rng: random.Random) -> None:
    """Members with names that lead elsewhere, links, sizes that lie, a bomb."""
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    names = ["../../outside/x.tar.gz", "../outside/canary.zip", "/etc/passwd", "a/../../b", "C:\\x"]
    names += ["a" * 300, "\x1b[31m", "deep/", "con", "x/" * 300 + "y", ".", "../a.tar", "é.txt"]
    kind = rng.choice(["name", "name", "link", "bomb", "double", "content"])
    name = rng.choice(sorted(contents))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")
        for known, content in contents.items():
            archive.writestr(known, b"torn" if kind == "content" and known == name else content)
        if kind == "name":
            archive.writestr(rng.choice(names), contents[name])
        elif kind == "double":
            archive.writestr(name, b"another")
        elif kind == "link":
            info = zipfile.ZipInfo("deep/out.tar.gz")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "../../outside/canary.zip")
        elif kind == "bomb":
            with archive.open("deep/bomb", "w", force_zip64=True) as member:
                for _ in range(64):
                    member.write(bytes(2**20))


def odd_image(file: Path, rng: random.Random) -> None:
    """An image of another mode, format or size under the same name, or what is no image."""
    shape = rng.choice([(1, 1), (2, 300), (17, 9), (64, 64)])
    mode = rng.choice(
        ["1", "L", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "LA", "HSV", "YCbCr"]
    )
    kind = rng.choice(["mode", "mode", "mode", "eps", "bomb", "svg", "html", "frames"])
    if kind == "eps":
        run = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(outside) run showpage\n"
        file.write_bytes(run)
    elif kind == "svg":
        file.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    elif kind == "html":
        file.write_bytes(b"<!doctype html><title>404</title>")
    elif kind == "bomb":
        # A PNG whose header claims 60,000 x 60,000 pixels.
        whole = io.BytesIO()
        Image.new("L", (1, 1)).save(whole, "PNG")
        file.write_bytes(whole.getvalue().replace(b"\0\0\0\1\0\0\0\1", b"\0\0\xea\x60" * 2, 1))
    elif kind == "frames":
        frames = [Image.new("P", shape, color) for color in (1, 2, 3)]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    else:
        formats = ["TIFF", "PNG", "BMP", "GIF", "JPEG", "WEBP", "ICO", "PPM", "TGA", "PCX"]
        rng.shuffle(formats)
        while formats and not _was_saved(Image.new(mode, shape), file, formats.pop()):
            pass


def _was_saved(image: Image.Image, file: Path, name: str) -> bool:
    """Whether Pillow writes such an image in this format; it does not know all modes in all."""
    try:
        image.save(file, name)
    except (OSError, ValueError, KeyError):
        return False
    return True
