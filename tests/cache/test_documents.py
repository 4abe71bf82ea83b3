"""The one door for text, JSON and TOML: whatever a file holds, it is read or refused in one line."""

import os

import pytest

from cliad.cache.documents import (
    DocumentError,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    read_toml,
)


def written(folder, content):
    file = folder / "file"
    file.write_bytes(content)
    return file


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    assert read_text(written(tmp_path, b"\xef\xbb\xbfcaf\xc3\xa9\n")) == "café\n"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="pipe or a device"):
        open_regular(tmp_path / "pipe")


def test_a_device_that_never_ends_is_refused():
    with pytest.raises(DocumentError, match="pipe or a device"):
        read_bytes("/dev/zero")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DocumentError, match="a folder, not a file"):
        read_text(tmp_path)


@pytest.mark.parametrize("name", ["missing", "a" * 5000, "zero\0byte", "half\ud800"])
def test_a_name_without_a_file_is_one_line(tmp_path, name):
    with pytest.raises(DocumentError):
        read_text(tmp_path / name)


def test_a_file_above_the_limit_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(DocumentError, match="bytes, more than"):
        read_text(tmp_path / "large")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_text_of_another_encoding_is_named_with_the_way_out(tmp_path, encoding):
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    file = written(tmp_path, mark + "café\n".encode(encoding))
    with pytest.raises(DocumentError, match="save it as UTF-8"):
        read_text(file)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "",
        "{",
        "[1, 2",
        '["\\ud800"]',
        '{"\\udc00": 1}',
        "9" * 5000,
        b"\xff\xfe\x00",
    ],
)
def test_what_is_not_json_is_one_line(text):
    with pytest.raises(DocumentError) as caught:
        parse_json(text, "the file")
    assert str(caught.value).startswith("the file")
    assert "\n" not in str(caught.value)


def test_json_and_toml_are_read(tmp_path):
    assert read_json(written(tmp_path, b'{"a": [1, "\\ud83d\\ude00"]}')) == {"a": [1, "😀"]}
    assert read_toml(written(tmp_path, b"a = [1, 2]")) == {"a": [1, 2]}


@pytest.mark.parametrize("text", [b"a = " + b"[" * 100_000, b"a = ", b"a = 1\na = 2"])
def test_what_is_not_toml_is_one_line(tmp_path, text):
    with pytest.raises(DocumentError, match="file is not"):
        read_toml(written(tmp_path, text))


def test_the_error_is_of_the_type_that_the_caller_names(tmp_path):
    class OwnError(DocumentError):
        pass

    with pytest.raises(OwnError, match=r"no file .*; make one$"):
        read_json(tmp_path / "missing", OwnError, "make one")
