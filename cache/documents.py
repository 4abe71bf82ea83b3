"""Text, JSON and TOML from outside: one door for every file that people write or send."""

from __future__ import annotations

import codecs
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

from cliad.errors import CliadError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# No list of images is longer than this; ImageNet's has 80 MB.
LARGEST = 2**28

# How files of other encodings begin: what editors on Windows call "Unicode".
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class DocumentError(CliadError):
    """A file that cannot be read as what it should be; the message names it and the way out."""


def open_regular(file: Path, error: type[CliadError] = DocumentError, hint: str = "") -> BinaryIO:
    """Open an ordinary file for reading.

    A pipe would be waited for for ever, and a device may never end: both are refused unread.

    Args:
        file: its path.
        error: the error to raise.
        hint: what the user can do, the end of the message.

    Raises:
        CliadError: of the type `error`: it is missing, no ordinary file, or may not be read.
    """
    try:
        # Without O_NONBLOCK, to open a pipe that nobody writes to would wait for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(file, flags)
    except FileNotFoundError:
        raise error(_line(f"there is no file {file}", hint)) from None
    # ValueError: a zero byte in the name, or letters that no file name can have.
    except (OSError, ValueError) as reason:
        why = getattr(reason, "strerror", None) or reason
        raise error(_line(f"cannot read {file}: {why}", hint)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        kind = "a folder" if os.path.isdir(file) else "a pipe or a device"
        raise error(_line(f"cannot read {file}: it is {kind}, not a file", hint))
    return open(descriptor, "rb")


def read_bytes(
    file: Path, error: type[CliadError] = DocumentError, hint: str = "", largest: int = LARGEST
) -> bytes:
    """The bytes of an ordinary file of at most `largest` bytes.

    Raises:
        CliadError: of the type `error`; see `open_regular`, or the file is larger.
    """
    with open_regular(file, error, hint) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > largest:
            raise error(
                _line(f"{file} has {size:,} bytes, more than the {largest:,} allowed", hint)
            )
        try:
            return stream.read()
        except OSError as reason:
            raise error(_line(f"cannot read {file}: {reason.strerror or reason}", hint)) from None


def read_text(
    file: Path, error: type[CliadError] = DocumentError, hint: str = "", largest: int = LARGEST
) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        CliadError: of the type `error`; see `read_bytes`, or the text is of another encoding.
    """
    content = read_bytes(file, error, hint, largest)
    if content.startswith(UTF_16):
        raise error(_line(f"{file} is UTF-16 text; save it as UTF-8", hint))
    if b"\0" in content:
        raise error(
            _line(f"{file} holds zero bytes, as UTF-16 text does; save it as UTF-8 text", hint)
        )
    try:
        # utf-8-sig: some editors begin a file with a byte order mark, which is not part of it.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = content.count(b"\n", 0, reason.start) + 1
        raise error(
            _line(
                f"{file} is not UTF-8 text (line {line}: {reason.reason}); save it as UTF-8", hint
            )
        ) from None


def read_json(
    file: Path, error: type[CliadError] = DocumentError, hint: str = "", largest: int = LARGEST
) -> Any:
    """What a JSON file of at most `largest` bytes holds.

    Raises:
        CliadError: of the type `error`; see `read_text`, or it is not JSON.
    """
    return parse_json(read_text(file, error, hint, largest), str(file), error, hint)


def parse_json(
    text: str | bytes, name: str, error: type[CliadError] = DocumentError, hint: str = ""
) -> Any:
    """What a JSON text holds; `name` is what the message calls it.

    Raises:
        CliadError: of the type `error`: not JSON, nested too deeply, a number of too many digits,
            or half a letter (a lone surrogate), which no file name and no terminal can take.
    """
    try:
        content = json.loads(text)
        has_half = has_half_letter(text, content)
    except RecursionError:
        raise error(_line(f"{name} is not used: it is nested too deeply", hint)) from None
    # Also UnicodeDecodeError, and Python's refusal of numbers of thousands of digits.
    except ValueError as reason:
        raise error(_line(f"{name} is not valid JSON ({str(reason)[:80]})", hint)) from None
    if has_half:
        raise error(_line(f"{name} holds half a letter (a lone surrogate)", hint))
    return content


def has_half_letter(text: str | bytes, content: object) -> bool:
    """Whether a JSON text holds a lone surrogate, which no file, page or terminal can take.

    Args:
        text: the JSON text.
        content: what it holds.
    """
    # Text that was decoded has one as an escape only. Python reads bytes less strictly. To write
    # all of a long list of images again would take half of the time of reading it.
    if isinstance(text, str) and "\\u" not in text:
        return False
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def read_toml(
    file: Path, error: type[CliadError] = DocumentError, hint: str = ""
) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        CliadError: of the type `error`; see `read_text`, or it is not TOML.
    """
    text = read_text(file, error, hint)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise error(_line(f"{file} is not used: it is nested too deeply", hint)) from None
    except ValueError as reason:
        raise error(_line(f"{file} is not valid TOML ({str(reason)[:80]})", hint)) from None


def _line(what: str, hint: str) -> str:
    """A message: what is wrong, and, where there is a hint, what to do."""
    return f"{what}; {hint}" if hint else what
