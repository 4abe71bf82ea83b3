"""Fetching data sets, from a server on the loopback address that cuts connections, forgets, refuses and lies."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field, replace

import layouts
import pytest

from cliad.cache import datasets
from cliad.cache.datasets import download as downloading
from cliad.cache.datasets.archives import DownloadError, unpack
from cliad.cache.datasets.base import DatasetMissing, Remote
from cliad.cache.datasets.download import download, fetch


@dataclass
class Site:
    """Files by name, and what the server does wrong: `cut` bytes per answer, status codes to give first, no ranges."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: int | None = None
    refuse: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site(monkeypatch):
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self, site)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # so that closing it waits for its answers
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(downloading, "PAUSE", 0.01)
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def answer(request, site):
    name, asked = request.path.lstrip("/"), request.headers.get("Range")
    site.asked.append(f"{name} {asked or ''}".strip())
    if site.refuse or name not in site.files:
        return request.send_error(site.refuse.pop(0) if site.refuse else 404)
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and site.ranges else 0
    content = site.files[name][start:]
    if asked and site.ranges and not content:
        return request.send_error(416)
    request.send_response(206 if asked and site.ranges else 200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content[: site.cut])


def md5(content):
    return "md5:" + hashlib.md5(content).hexdigest()


def get(site, folder, name="a.bin", checksum=True, lines=None, states=None):
    remote = Remote(
        site.url + name, name, md5(site.files[name]) if checksum is True else checksum or ""
    )
    log, progress = (x.append if x is not None else lambda _: None for x in (lines, states))
    return fetch(remote, folder, log=log, progress=progress)


def test_a_file_comes_whole_with_progress(site, tmp_path):
    site.files["a.bin"], states = bytes(range(256)) * 20000, []
    assert get(site, tmp_path / "new", states=states).read_bytes() == site.files["a.bin"]
    assert states[-1].done == states[-1].total == 5_120_000 and len(states) > 2
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.bin"]


def test_cut_connections_are_continued_where_they_broke(site, tmp_path):
    site.files["a.bin"], site.cut, lines = bytes(range(256)) * 10, 1000, []
    assert get(site, tmp_path, lines=lines).read_bytes() == site.files["a.bin"]
    assert (
        site.asked == ["a.bin", "a.bin bytes=1000-", "a.bin bytes=2000-"]
        and "was cut after 1,000 of 2,560 bytes" in lines[0]
    )


def test_an_earlier_run_is_continued(site, tmp_path):
    site.files["a.bin"] = bytes(range(256)) * 10
    (tmp_path / "a.bin.part").write_bytes(site.files["a.bin"][:700])
    assert get(site, tmp_path).read_bytes() == site.files["a.bin"] and site.asked == [
        "a.bin bytes=700-"
    ]


def test_a_part_that_is_whole_already(site, tmp_path):
    site.files["a.bin"] = b"content"
    (tmp_path / "a.bin.part").write_bytes(b"content")
    assert get(site, tmp_path).read_bytes() == b"content"


def test_a_server_that_cannot_continue_sends_all_again(site, tmp_path):
    site.files["a.bin"], site.ranges = bytes(range(256)) * 10, False
    (tmp_path / "a.bin.part").write_bytes(b"old stuff")
    assert get(site, tmp_path).read_bytes() == site.files["a.bin"]


def test_a_busy_server_is_asked_again(site, tmp_path):
    site.files["a.bin"], site.refuse, lines = b"content", [503, 429], []
    assert (
        get(site, tmp_path, lines=lines).read_bytes() == b"content"
        and len(site.asked) == 3
        and "503" in lines[0]
    )


@pytest.mark.parametrize(
    "spoil, message",
    [
        ({"cut": 0}, "run the same command again"),
        ({"refuse": [503] * 9}, "503 Service Unavailable"),
        ({"refuse": [403]}, "answers 403 Forbidden; fetch it by hand into"),
        ({"url": "http://127.0.0.1:9/"}, "Connection refused"),
    ],
)
def test_what_cannot_be_had_is_one_line(site, tmp_path, spoil, message):
    site.files["a.bin"] = b"content"
    for name, value in spoil.items():
        setattr(site, name, value)
    with pytest.raises(DownloadError, match=message) as error:
        get(site, tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "a.bin").exists()


def test_a_wrong_checksum_removes_the_file_and_says_so(site, tmp_path):
    site.files["a.bin"] = b"content"
    with pytest.raises(DownloadError, match="sent another file than expected"):
        get(site, tmp_path, checksum=md5(b"other"))
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_one_line(site, tmp_path):
    site.files["a.bin"] = b"content"
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="--data DIR"):
        get(site, tmp_path / "file" / "x")


def packed(folder, ending="tar.gz"):
    """A folder as an archive's bytes."""
    buffer = io.BytesIO()
    if ending == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.add(folder, folder.name)
    return buffer.getvalue()


@pytest.fixture
def dtd_site(site, tmp_path, monkeypatch):
    """DTD in miniature on the server, where the table of data sets looks for it."""
    layouts.dtd(tmp_path / "made")
    split = "split_zhou_DescribableTextures.json"
    site.files[split] = (tmp_path / "made" / "dtd" / split).read_bytes()
    (tmp_path / "made" / "dtd" / split).unlink()
    site.files["dtd.tar.gz"] = packed(tmp_path / "made" / "dtd")
    remotes = (
        Remote(site.url + "dtd.tar.gz", "dtd.tar.gz", md5(site.files["dtd.tar.gz"]), 1, True),
        Remote(site.url + split, split),
    )
    monkeypatch.setitem(
        datasets.DATASETS, "dtd", replace(datasets.DATASETS["dtd"], remotes=remotes)
    )
    return site


def test_a_data_set_is_fetched_unpacked_and_read(dtd_site, tmp_path):
    lines = []
    assert download("dtd", data=tmp_path / "data", log=lines.append) == tmp_path / "data"
    assert (
        lines[0].startswith("dtd: fetching http://127.0.0.1")
        and "(1 MB)" in lines[0]
        and "unpacking dtd.tar.gz" in lines
    )
    listing = datasets.find_dataset("dtd").read(tmp_path / "data", "field")
    assert len(listing.splits["train"]) == 8 and listing.open(listing.splits["train"][0][0])
    before = len(dtd_site.asked)
    download("dtd", data=tmp_path / "data", log=lines.append)
    assert len(dtd_site.asked) == before and "everything that can be fetched is in" in lines[-1]


def test_extract_fetches_what_is_missing_unless_told_not_to(dtd_site, tmp_path):
    import toy_clip

    from cliad.cache.file.read import open_cache
    from cliad.pipelines.extract import extract

    name = toy_clip.register(tmp_path, "toy-fetch")
    options = {
        "model": name,
        "pretrained": str(toy_clip.weights(tmp_path, name)),
        "cache_folder": tmp_path / "cache",
        "data": tmp_path / "data",
    }
    (tmp_path / "data").mkdir()
    with pytest.raises(DatasetMissing, match="cliad data check dtd"):
        extract("dtd", fetch=False, **options)
    assert not dtd_site.asked
    lines = []
    assert (
        len(open_cache(extract("dtd", log=lines.append, **options)).split("train")) == 8
        and "fetching" in lines[0]
    )


def test_what_can_only_be_fetched_by_hand_is_said(tmp_path):
    with pytest.raises(DownloadError, match=r"fetch images/train/ .*image-net.org"):
        download("imagenet", data=tmp_path)


def test_archives_in_archives_are_unpacked(tmp_path):
    layouts.caltech101(tmp_path / "made")
    inner = tmp_path / "zipped" / "caltech-101"
    inner.mkdir(parents=True)
    (inner / "101_ObjectCategories.tar.gz").write_bytes(
        packed(tmp_path / "made" / "caltech-101" / "101_ObjectCategories")
    )
    (tmp_path / "caltech-101.zip").write_bytes(packed(inner, "zip"))
    folder = tmp_path / "data" / "caltech-101"
    folder.mkdir(parents=True)
    unpack(tmp_path / "caltech-101.zip", folder)
    (tmp_path / "made" / "caltech-101" / "split_zhou_Caltech101.json").rename(
        folder / "split_zhou_Caltech101.json"
    )
    assert (
        len(datasets.find_dataset("caltech101").read(tmp_path / "data", "field").splits["train"])
        == 8
    )


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8b\x08 broken"])
def test_a_broken_archive_is_one_line(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(
        DownloadError, match=r"remove it and run the same command again|cannot unpack"
    ):
        unpack(tmp_path / "a.tar.gz", tmp_path)


def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("../outside.txt")
        archive.addfile(member, io.BytesIO())
    (tmp_path / "in").mkdir()
    with pytest.raises(DownloadError, match="leads outside"):
        unpack(tmp_path / "a.tar", tmp_path / "in")
    assert not (tmp_path / "outside.txt").exists()
