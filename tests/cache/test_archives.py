"""Archives that were fetched: whatever they say, nothing outside of their folder is touched."""

import io
import os
import tarfile
import zipfile

import pytest

from cliad.cache.datasets import archives
from cliad.cache.datasets.archives import DownloadError, unpack

OUTSIDE = ["../outside.txt", "a/../../outside.txt", "/outside.txt", "..", "a/..", "\\outside.txt"]
OUTSIDE += ["..\\outside.txt", "C:\\outside.txt", "C:/outside.txt"]
KINDS = {
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
    "disk": tarfile.BLKTYPE,
}


@pytest.fixture
def place(tmp_path):
    """A folder to unpack to, and a file outside of it that stays what it is."""
    (tmp_path / "in").mkdir()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("stolen.txt"))
    (tmp_path / "backup.tar.gz").write_bytes(inner.getvalue())
    yield tmp_path
    assert (tmp_path / "backup.tar.gz").read_bytes() == inner.getvalue()
    assert not list(tmp_path.rglob("stolen.txt"))
    assert sorted(
        path.name for path in tmp_path.iterdir() if path.suffix not in (".zip", ".tar")
    ) == [
        "backup.tar.gz",
        "in",
    ]


def make_tar(path, name="a.txt", size=0, content=b"", **facts):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for key, value in facts.items():
            setattr(member, key, value)
        archive.addfile(member, io.BytesIO(content))
    if size:
        lie_about_size(path, size)
    return path


def lie_about_size(path, size):
    """Another size in the header, with the checksum that belongs to it."""
    data = bytearray(path.read_bytes())
    data[124:136] = b"%011o\0" % size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)


def make_zip(path, *names, content=b"", mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, content)
    return path


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_that_leads_outside_is_refused_before_anything_is_written(place, kind, name):
    make = make_tar if kind == "tar" else make_zip
    archive = make(place / f"a.{kind}", name)
    with pytest.raises(DownloadError, match="leads outside of its folder"):
        unpack(archive, place / "in")
    assert os.listdir(place / "in") == []


def test_a_zip_never_unpacks_or_removes_an_archive_beside_its_folder(place):
    archive = make_zip(place / "a.zip", "../backup.tar.gz")
    with pytest.raises(DownloadError, match="leads outside"):
        unpack(archive, place / "in")


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_of_a_tar_are_refused(place, kind):
    archive = make_tar(place / "a.tar", type=KINDS[kind], linkname="../backup.tar.gz")
    with pytest.raises(DownloadError, match="is a link, a device or sparse"):
        unpack(archive, place / "in")
    assert os.listdir(place / "in") == []


def test_a_link_of_a_zip_is_refused(place):
    archive = make_zip(place / "a.zip", "x.tar.gz", content=b"../backup.tar.gz", mode=0o120777)
    with pytest.raises(DownloadError, match="is a link or a device"):
        unpack(archive, place / "in")


def test_what_would_grow_a_thousandfold_is_refused(place, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 2**20)
    archive = make_zip(place / "a.zip", "zeros", content=bytes(2**24))
    with pytest.raises(DownloadError, match="too many for an archive of images"):
        unpack(archive, place / "in")
    assert os.listdir(place / "in") == []


def test_a_size_that_no_disk_has_is_refused(place):
    archive = make_tar(place / "a.tar", size=8**11 - 1)
    with pytest.raises(DownloadError, match="says that it holds"):
        unpack(archive, place / "in")


def test_an_archive_with_a_password_is_one_line(place):
    archive = make_zip(place / "a.zip", "a.txt", content=b"abc")
    data = archive.read_bytes()
    # the flag "encrypted" of the member, in both of its headers
    data = data.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")
    data = data.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    archive.write_bytes(data)
    with pytest.raises(DownloadError, match=r"its member a\.txt has a password"):
        unpack(archive, place / "in")


def test_a_pipe_in_place_of_an_archive_is_not_waited_for(place):
    os.mkfifo(place / "a.zip")
    with pytest.raises(DownloadError, match="pipe or a device"):
        unpack(place / "a.zip", place / "in")


def test_an_archive_in_an_archive_is_unpacked_in_its_place_and_removed(place):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        member = tarfile.TarInfo("cat/1.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"cat"))
    archive = make_zip(place / "a.zip", "deep/b.tar.gz", content=inner.getvalue())
    unpack(archive, place / "in")
    found = [path.relative_to(place / "in").as_posix() for path in (place / "in").rglob("*")]
    assert sorted(found) == ["deep", "deep/cat", "deep/cat/1.txt"]


def packed(*members):
    """A tar.gz with members (name, content), as bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_an_archive_that_was_there_before_is_not_taken_for_one_that_a_zip_brought(place):
    own = place / "in" / "photos.tar.gz"
    own.write_bytes(b"the user's own")
    unpack(
        make_zip(place / "a.zip", own.name, content=packed(("1.txt", b"one"))),
        place / "in",
    )
    assert own.read_bytes() == b"the user's own"
    assert (place / "in" / "1.txt").read_bytes() == b"one"


@pytest.mark.parametrize("last", ["../outside.txt", "cat"])
def test_nothing_stays_of_an_archive_that_is_refused_half_way(place, last):
    (place / "in" / "cat").mkdir()
    (place / "in" / "cat" / "own.txt").write_bytes(b"own")
    archive = place / "a.tar"
    archive.write_bytes(packed(("cat/1.txt", b"1"), ("dog/big/2.txt", b"2"), (last, b"3")))
    with pytest.raises(DownloadError):
        unpack(archive, place / "in")
    assert [path.name for path in (place / "in").rglob("*")] == ["cat", "own.txt"]


def test_the_archives_in_an_archive_count_towards_its_size(place, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 2**20)
    names = [f"{number}.tar.gz" for number in range(4)]
    archive = make_zip(place / "a.zip", *names, content=packed(("zeros", bytes(2**18))))
    with pytest.raises(DownloadError, match="too many for an archive of images"):
        unpack(archive, place / "in")
    assert os.listdir(place / "in") == []


def test_files_of_one_name_are_counted_in_a_line(place):
    archive = place / "a.tar"
    archive.write_bytes(packed(("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3")))
    lines = []
    unpack(archive, place / "in", lines.append)
    assert (place / "in" / "a.txt").read_bytes() == b"3"
    assert lines == ["a.tar: 1 files stand in it more than once; the last of each is taken"]
