"""The index of a webdataset shard: which samples it has, and where their images lie in it."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cliad.cache.datasets.folders import IMAGE_ENDINGS, DatasetError, Note, number_of
from cliad.cache.documents import open_regular, parse_json
from cliad.errors import is_utf8, printable

# Endings of the files that hold a sample's class, the first that holds one counts.
LABEL_ENDINGS = ("cls", "label", "json", "index")
LABEL_KEYS = ("label", "cls", "class")  # of a .json file, the first that is there
LARGEST_LABEL = 2**20  # bytes of a file that holds a class
LONGEST_NUMBER = 9  # digits of a class that is a number
LONGEST_NAME = 1000  # letters of a class that is a name

# How compressed files begin: an offset in one is not a place in the file.
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Sample:
    """An image in a shard: where its bytes lie, and what the shard calls its class.

    label: a number or a name.
    """

    shard: Path
    key: str
    offset: int
    size: int
    label: str


@dataclass
class LeftOut:
    """What is not taken from shards, by `SHARD/KEY`, to be said in notes.

    no_class: images without a class; no_image: classes without an image; dotted: images with more
    than one dot in their names; further: further images of a sample.
    """

    no_class: list[str] = field(default_factory=list)
    no_image: list[str] = field(default_factory=list)
    dotted: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)

    def notes(self) -> list[Note]:
        """A note for each kind that there is."""
        kinds = {
            "without a .cls, .label or .json that holds a class": self.no_class,
            "without an image": self.no_image,
            "of which further images are not used": self.further,
        }
        notes = []
        for what, keys in kinds.items():
            if keys:
                verb = "left out " if keys is not self.further else ""
                notes.append(Note(f"{verb}{number_of(len(keys), 'sample')} {what}", keys))
        if self.dotted:
            what = number_of(len(self.dotted), "image")
            notes.append(
                Note(
                    f"left out {what} with several dots in the name: a sample's key ends at the"
                    " first one, so that what stands behind it is not an ending of images",
                    self.dotted,
                )
            )
        return notes


def index_shard(shard: Path, left_out: LeftOut) -> list[Sample]:
    """The samples of a shard in its own order; what is not taken is added to `left_out`.

    Raises:
        DatasetError: it is not an uncompressed tar file, is cut, says that a member is larger than
            the file, has a sample twice, or a label that is not a class.
    """
    files = _Files(shard)
    with open_regular(shard, DatasetError) as stream:
        _check_plain(shard, stream.read(6))
        stream.seek(0, 2)
        size = stream.tell()
        stream.seek(0)
        try:
            # "r:" refuses compressed archives.
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    # Links and devices are not followed: they are not what a shard consists of.
                    if member.isreg() and not member.issparse():
                        files.add(member, archive, size)
        # A damaged header may make tarfile raise almost anything.
        except DatasetError:
            raise
        except Exception as error:
            reason = printable(str(error))[:80]
            raise DatasetError(
                f"{shard} cannot be read as a shard ({reason}); it must be a whole, uncompressed"
                " .tar"
            ) from None
    return files.samples(left_out)


def _check_plain(shard: Path, start: bytes) -> None:
    for mark, kind in COMPRESSED.items():
        if start.startswith(mark):
            raise DatasetError(
                f"{shard} is compressed ({kind}), so that images cannot be read where they lie;"
                " unpack it to a plain .tar (gunzip, bunzip2, unxz, unzstd)"
            )


class _Files:
    """The images and classes of a shard, by key."""

    def __init__(self, shard: Path):
        self.shard = shard
        self.images: dict[str, tarfile.TarInfo] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.dotted: list[str] = []
        self.further: list[str] = []
        self.seen: set[str] = set()

    def add(self, member: tarfile.TarInfo, archive: tarfile.TarFile, size: int) -> None:
        """Take a file of the archive, which has `size` bytes.

        Raises:
            DatasetError: see `index_shard`.
        """
        name = member.name
        if member.offset_data + member.size > size:
            raise DatasetError(f"{self.shard} is cut: {printable(name)} ends behind its end")
        if name in self.seen:
            raise DatasetError(f"{self.shard} has {printable(name)} twice; make the shard anew")
        self.seen.add(name)
        folder, _, file = name.rpartition("/")
        # webdataset's rule: the key ends at the first dot.
        key, _, ending = file.partition(".")
        key = f"{folder}/{key}".lstrip("./")
        if not is_utf8(name):
            raise DatasetError(
                f"{self.shard}: the name {printable(name)} is not UTF-8; make the shard anew"
            )
        if f".{ending.lower()}" in IMAGE_ENDINGS:
            if key in self.images:
                self.further.append(self._place(key))
            self.images.setdefault(key, member)
        elif ending in LABEL_ENDINGS:
            content = archive.extractfile(member)
            if content is None or member.size > LARGEST_LABEL:
                raise DatasetError(f"{self.shard}: {printable(name)} is too large for a class")
            label = class_in(ending, content.read(), f"{self.shard}: {printable(name)}")
            self.labels.setdefault(key, {})[ending] = label
        elif f".{ending.rpartition('.')[2].lower()}" in IMAGE_ENDINGS:
            self.dotted.append(f"{self.shard.name}/{name}")

    def samples(self, left_out: LeftOut) -> list[Sample]:
        """Images with their classes, in the order of the images."""
        samples = []
        for key, member in self.images.items():
            label = self._label(key)
            # An empty label file is as good as none.
            if not label:
                left_out.no_class.append(self._place(key))
                continue
            samples.append(Sample(self.shard, key, member.offset_data, member.size, label))
        left_out.no_image += [self._place(key) for key in self.labels if key not in self.images]
        left_out.dotted += self.dotted
        left_out.further += self.further
        return samples

    def _label(self, key: str) -> str:
        found: Mapping[str, str] = self.labels.get(key, {})
        for ending in LABEL_ENDINGS:
            if found.get(ending):
                return found[ending]
        return ""

    def _place(self, key: str) -> str:
        return f"{self.shard.name}/{key}"


def class_in(ending: str, content: bytes, place: str) -> str:
    """The class that a label file holds; empty where it says none.

    Args:
        ending: of the file; a .json may hold an object or the class itself.
        content: its bytes.
        place: what the message calls it.

    Raises:
        DatasetError: not UTF-8, not JSON, or not a number or a name.
    """
    if ending == "json":
        value = parse_json(content, place, DatasetError)
        if isinstance(value, dict):
            keys = [key for key in LABEL_KEYS if key in value]
            if not keys:
                return ""
            value = value[keys[0]]
    else:
        try:
            value = content.decode().strip()
        except UnicodeDecodeError:
            raise DatasetError(f"{place} is not UTF-8 text") from None
    return _as_class(value, place)


def _as_class(value: object, place: str) -> str:
    """A number or a name as text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_class = isinstance(value, str | int) and not isinstance(value, bool)
    text = " ".join(str(value).split()) if is_class else ""
    number = text.lstrip("-")
    too_long = number.isdecimal() and len(number) > LONGEST_NUMBER
    if len(text) > LONGEST_NAME:
        raise DatasetError(
            f"{place}: the name of a class has {len(text):,} letters, at most {LONGEST_NAME:,} are"
            " allowed"
        )
    if not is_class or too_long or (number.isdecimal() and text.startswith("-")):
        raise DatasetError(
            f"{place}: expected a class, a number from 0 or a name;"
            f" got {printable(str(value))[:40]}"
        )
    return text


def need_samples(pattern: str, samples: Sequence[Sample], left_out: LeftOut) -> None:
    """Refuse shards without a sample, and say what they have instead.

    Raises:
        DatasetError: there is none.
    """
    if samples:
        return
    reasons = "; ".join(note.line() for note in left_out.notes())
    raise DatasetError(
        f"wds:{pattern} has no samples with an image"
        " and a .cls, .label or .json file that holds the class"
        + (f" ({reasons})" if reasons else "")
    )
