"""Changes to valid inputs: of bytes, of text, of JSON values, and of what a name stands for.

Each takes a `random.Random`, so that a seed is a case.
"""

import json
import os
import random
from pathlib import Path

# Texts that have broken readers before, ours or others.
TEXTS = [
    "",
    " ",
    "0",
    "-1",
    "1.0",
    "1e999",
    "NaN",
    "Infinity",
    "null",
    "true",
    "None",
    "²",
    "٣",
    "00",
    "999999999999999999999999",
    "9" * 5000,
    "a" * 5000,
    "../../../outside/canary.jpg",
    "../outside/canary.jpg",
    "/etc/passwd",
    "/etc/hostname",
    "/dev/zero",
    ".",
    "..",
    "~",
    "con\\..\\aux",
    "\x1b[31mred\x1b[0m",
    "[red]red[/red]",
    "[/]",
    "\x00",
    "\x07",
    "two\nlines",
    "tab\there",
    'a "quoted" name',
    "=1+1",
    "@SUM(A1)",
    "<script>alert(1)</script>",
    "a|b",
    "$x^2$ \\input{x}",
    "\u202egnp.exe",
    "é",
    "e\u0301",
    "猫",
    "😀",
    "{}",
    "{0.__class__}",
    "%s%n",
    "a/b",
    "train",
    "test",
]
# Values of other types than a field expects.
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    2**31,
    2**63,
    10**30,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    *TEXTS,
]
# Pieces of bytes that mean something to some reader.
PIECES = [
    b"\x00" * 8,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"../../outside/canary.jpg",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"PK\x03\x04",
    b"\x89HDF\r\n\x1a\n",
    b"\x93NUMPY",
    b"\r\n",
    b'"',
    b",",
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, cut, doubled, inserted or overwritten."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        kind = rng.choice(["flip", "flip", "set", "cut", "end", "double", "insert", "piece"])
        if not changed:
            kind = "insert"
        # Headers decide what is read, so half of all changes are near the start.
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 600)
        at = rng.randrange(reach or 1)
        width = rng.choice([1, 2, 4, 8, 64])
        if kind == "flip":
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "set":
            changed[at : at + 1] = bytes([rng.choice([0, 1, 127, 128, 255])])
        elif kind == "cut":
            del changed[at : at + width]
        elif kind == "end":
            del changed[at:]
        elif kind == "double":
            changed[at:at] = changed[at : at + width]
        elif kind == "insert":
            changed[at:at] = rng.randbytes(width)
        else:
            piece = rng.choice(PIECES)
            changed[at : at + len(piece)] = piece
    return bytes(changed)


def mutate_text(text: str, rng: random.Random) -> bytes:
    """A word or line replaced, doubled, moved or dropped, or the whole text in another encoding."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    kind = rng.choice(
        ["cell", "cell", "cell", "line", "double", "drop", "swap", "encoding", "long"]
    )
    if kind == "cell":
        separator = rng.choice([",", '"', " ", ":", "/", "="])
        words = lines[at].split(separator)
        words[rng.randrange(len(words))] = rng.choice(TEXTS)
        lines[at] = separator.join(words)
    elif kind == "line":
        lines[at] = rng.choice(TEXTS)
    elif kind == "double":
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif kind == "drop":
        del lines[at]
    elif kind == "swap":
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == "long":
        lines[at] = rng.choice(["[", "{", '{"a":', "(", "'", '"', "x", "-"]) * 100_000
    changed = "\n".join(lines)
    if kind == "encoding":
        encoding = rng.choice(["utf-16", "utf-8-sig", "latin-1", "utf-32", "utf-7"])
        return f"{changed}é".encode(encoding, errors="replace")
    return changed.encode(errors="surrogatepass")


def mutate_value(value: object, rng: random.Random, depth: int = 0) -> object:
    """A JSON value in which one part is replaced, dropped, doubled or renamed."""
    inner = isinstance(value, dict | list) and bool(value) and depth < 8
    if not inner or rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(value, list):
        changed = list(value)
        at = rng.randrange(len(changed))
        kind = rng.choice(["in", "in", "in", "drop", "double"])
        if kind == "drop":
            del changed[at]
        elif kind == "double":
            changed.insert(at, changed[at])
        else:
            changed[at] = mutate_value(changed[at], rng, depth + 1)
        return changed
    changed = dict(value)
    key = rng.choice(list(changed))
    kind = rng.choice(["in", "in", "in", "in", "drop", "rename", "more"])
    if kind == "drop":
        del changed[key]
    elif kind == "rename":
        changed[rng.choice(TEXTS)] = changed.pop(key)
    elif kind == "more":
        changed[rng.choice(TEXTS)] = rng.choice(VALUES)
    else:
        changed[key] = mutate_value(changed[key], rng, depth + 1)
    return changed


def mutate_json(text: str, rng: random.Random) -> bytes:
    """One JSON document with another value in it."""
    changed = json.dumps(mutate_value(json.loads(text), rng), ensure_ascii=rng.random() < 0.5)
    # Half a letter can be written as an escape only.
    if rng.random() < 0.1:
        changed = changed.replace('"', '"\\ud800', 3).replace('\\ud800"', '"', 1)
    return changed.encode(errors="replace")


def mutate_json_lines(text: str, rng: random.Random) -> bytes:
    """JSON lines, one of them with another value in it."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = mutate_json(lines[at], rng).decode(errors="replace")
    return "\n".join(lines).encode()


def mutate_place(file: Path, rng: random.Random) -> str:
    """Something else stands under the name of a file; returns what."""
    kind = rng.choice(["gone", "empty", "folder", "pipe", "loop", "link to a device"])
    file.unlink()
    if kind == "empty":
        file.touch()
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "link to a device":
        file.symlink_to("/dev/zero")
    return kind
