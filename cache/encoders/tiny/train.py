"""Train `tiny`, the small CLIP that comes with cliad, on images that this script renders itself.

    python train.py --seed 0 --steps 2000 --out weights.safetensors

It renders digits, letters and words for numbers (fonts, and digits drawn as pen strokes), captions
them, and trains open_clip's own CLIP class, as configured in tiny.json, with the contrastive loss.
No data set is read. The weights kept are those with the best zero-shot accuracy on rendered digits
of fonts and pens never trained on.

Fonts: every .ttf and .otf below --fonts that has digits and letters. The weights in this folder saw
these Debian 12 packages:
fonts-b612 fonts-breip fonts-cabin fonts-cherrybomb fonts-comfortaa fonts-comic-neue
fonts-courier-prime fonts-crosextra-carlito fonts-dancingscript fonts-dejavu-core
fonts-dejavu-extra fonts-dkg-handwriting fonts-dustin fonts-ecolier-court fonts-femkeklaver
fonts-freefont-ttf fonts-georgewilliams fonts-hack-ttf fonts-humor-sans fonts-inconsolata
fonts-isabella fonts-junicode fonts-jura fonts-kaushanscript fonts-kiloji fonts-klee
fonts-kristi fonts-lato fonts-leckerli-one fonts-liberation fonts-open-sans fonts-opendyslexic
fonts-play fonts-quicksand fonts-radisnoir fonts-roboto-hinted fonts-rufscript fonts-seto
fonts-sil-andika fonts-sjfonts fonts-smc-chilanka fonts-staypuft fonts-summersby
fonts-tlwg-purisa-ttf fonts-tomsontalks fonts-tuffy fonts-urw-base35 fonts-yusei-magic
"""

from __future__ import annotations

import argparse
import math
import random
import string
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

CONFIG = Path(__file__).with_name("tiny.json")
MIN_FAMILIES = 40
HELD_OUT = 5  # every fifth font family is kept for validation
# Symbol fonts: their glyph for "3" is not a three.
NOT_LETTERS = {"D050000L", "Standard Symbols PS"}
BATCH = 256
MASK = 48  # side of a rendered mask in pixels; the image's side is the config's
MARGIN = 4  # pixels between the ink and the sides of a mask
MIX = {"pen": 0.42, "digit": 0.22, "letter": 0.24, "word": 0.12}  # share of each kind in a batch

# --- What there is to see, and how it is called --------------------------------------------------

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (*DIGIT_NAMES, "ten", "eleven", "twelve", "twenty", "hundred", "thousand")
# The ones to use: trained on, and used for validation.
DIGIT_TEMPLATES = (
    'a photo of the number: "{}".',
    "a photo of the digit {}.",
    "a handwritten digit {}.",
    "a picture of the number {}.",
    "a blurry photo of the digit {}.",
)
MORE_DIGIT_TEMPLATES = (
    "a photo of a {}.",
    "the number {}",
    'a drawing of the digit "{}".',
    "{}",
    "a {} written by hand.",
)
LETTER_TEMPLATES = (
    'a photo of the letter "{}".',
    "a picture of the letter {}.",
    "a handwritten letter {}.",
    "the letter {}",
)
WORD_TEMPLATES = ('a photo of the word "{}".', "a picture of the word {}.", "the word {}")

# What an image shows: ("digit", "3"), ("letter", "b") or ("word", "three").
Content = tuple[str, str]
DIGITS: list[Content] = [("digit", digit) for digit in string.digits]
# The tokenizer lowercases, so B is b.
LETTERS: list[Content] = [("letter", letter) for letter in string.ascii_lowercase]
CONTENTS = DIGITS + LETTERS + [("word", word) for word in WORDS]


def captions(content: Content) -> list[str]:
    """All captions of one content; a digit is called "3" and "three" alike."""
    kind, name = content
    if kind == "letter":
        return [template.format(name) for template in LETTER_TEMPLATES]
    if kind == "word":
        return [template.format(name) for template in WORD_TEMPLATES]
    texts = []
    for template in DIGIT_TEMPLATES + MORE_DIGIT_TEMPLATES:
        texts.append(template.format(name))
        texts.append(template.format(DIGIT_NAMES[int(name)]))
    return texts


# --- Fonts ---------------------------------------------------------------------------------------


def font_families(root: Path) -> list[list[Path]]:
    """Usable font files in groups, by the first word of the family name: all of Roboto is one.

    Fonts of a group look alike, so validation holds out whole groups.
    """
    groups: dict[str, dict[tuple[str | None, str | None], Path]] = defaultdict(dict)
    for path in font_files(root):
        font = open_font(path)
        if font is None:
            continue
        name = font.getname()  # (family, style)
        if name[0] not in NOT_LETTERS and has_letters(font):
            first_word = (name[0] or path.stem).split()[0].lower()
            groups[first_word].setdefault(name, path)  # of equal fonts the first path
    return [list(groups[first_word].values()) for first_word in sorted(groups)]


def font_files(root: Path) -> list[Path]:
    """All font files below a folder, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))


def open_font(path: Path) -> ImageFont.FreeTypeFont | None:
    """The font, None for a file that cannot be read."""
    try:
        return ImageFont.truetype(str(path), 24)
    except OSError:
        return None


def has_letters(font: ImageFont.FreeTypeFont) -> bool:
    """Whether the font has digits and letters.

    A missing glyph is drawn as one and the same box, or as nothing.
    """
    characters = string.digits + "abdegkq"
    pictures = {bytes(font.getmask(character)) for character in characters}
    return len(pictures) == len(characters) and b"" not in pictures


# --- Masks: white ink on black, MASK x MASK ------------------------------------------------------


def fit(picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Crop to the ink, slant and stretch it, and fit it into a MASK x MASK frame with a margin."""
    ink = picture.crop(picture.getbbox())
    slant = rng.gauss(0, 0.15) * ink.height  # pixels that the top moves to the right
    slanted_width = ink.width + math.ceil(abs(slant))
    # (a, b, c, d, e, f): the pixel at (x, y) is taken from (ax + by + c, dx + ey + f).
    move = (1, slant / ink.height, -max(slant, 0), 0, 1, 0)
    ink = ink.transform(
        (slanted_width, ink.height), Image.Transform.AFFINE, move, Image.Resampling.BILINEAR
    )
    ink = ink.crop(ink.getbbox())
    stretched_width = ink.width * math.exp(rng.gauss(0, 0.2))
    scale = (MASK - 2 * MARGIN) / max(stretched_width, ink.height)
    width = max(2, round(stretched_width * scale))
    height = max(2, round(ink.height * scale))
    frame = Image.new("L", (MASK, MASK))
    ink = ink.resize((width, height), Image.Resampling.BOX)
    frame.paste(ink, ((MASK - width) // 2, (MASK - height) // 2))
    return np.asarray(frame)


def typed(text: str, path: Path, rng: random.Random) -> np.ndarray:
    """A mask of `text` in the font at `path`."""
    font = ImageFont.truetype(str(path), 64)
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("L", (math.ceil(right - left) + 16, math.ceil(bottom - top) + 16))
    ImageDraw.Draw(picture).text((8 - left, 8 - top), text, fill=255, font=font)
    return fit(picture, rng)


Point = tuple[float, float]  # (x, y), y downwards
Stroke = tuple[Point, ...]
Form = tuple[Stroke, ...]

# How hands write digits: per digit the usual forms, per form its strokes, per stroke the points
# that a curve runs through, in a unit box. A point given twice is a corner.
# fmt: off
PEN: dict[str, tuple[Form, ...]] = {
    "0": (
        ((
            (0.55, 0), (0.2, 0.15), (0.05, 0.5), (0.2, 0.87), (0.5, 1), (0.8, 0.85), (0.95, 0.5),
            (0.8, 0.13), (0.5, 0),
        ),),
        ((
            (0.6, 0.08), (0.25, 0.1), (0.05, 0.5), (0.2, 0.9), (0.6, 0.98), (0.9, 0.7), (0.88, 0.3),
            (0.6, 0), (0.35, 0.06),
        ),),
    ),
    "1": (
        (((0.5, 0), (0.5, 0.5), (0.5, 1)),),
        (((0.2, 0.3), (0.55, 0), (0.55, 0), (0.55, 0.5), (0.55, 1)),),
        (((0.0, 0.5), (0.35, 0.25), (0.6, 0), (0.6, 0), (0.6, 0.5), (0.6, 1)),),
        (((0.25, 0.25), (0.55, 0), (0.55, 0), (0.55, 0.5), (0.55, 1)), ((0.2, 1), (0.9, 1))),
    ),
    "2": (
        ((
            (0.1, 0.25), (0.4, 0), (0.8, 0.08), (0.8, 0.4), (0.45, 0.72), (0.05, 1), (0.05, 1),
            (0.5, 0.98), (0.95, 1),
        ),),
        ((
            (0.1, 0.2), (0.45, 0), (0.85, 0.2), (0.7, 0.55), (0.3, 0.95), (0.05, 0.9), (0.2, 0.75),
            (0.5, 0.9), (0.95, 1),
        ),),
        (((0.05, 0.1), (0.5, 0), (0.85, 0.1), (0.6, 0.5), (0.1, 1), (0.1, 1), (0.9, 0.95)),),
    ),
    "3": (
        ((
            (0.1, 0.12), (0.5, 0), (0.85, 0.2), (0.7, 0.42), (0.35, 0.48), (0.35, 0.48),
            (0.8, 0.55), (0.95, 0.78), (0.6, 1), (0.05, 0.9),
        ),),
        ((
            (0.1, 0), (0.9, 0), (0.9, 0), (0.45, 0.4), (0.45, 0.4), (0.9, 0.6), (0.85, 0.9),
            (0.4, 1), (0.05, 0.88),
        ),),
        ((
            (0.1, 0.1), (0.6, 0), (0.85, 0.22), (0.55, 0.45), (0.8, 0.65), (0.75, 0.92), (0.4, 1),
            (0.05, 0.95),
        ),),
    ),
    "4": (
        (
            ((0.2, 0), (0.15, 0.3), (0.05, 0.6), (0.05, 0.6), (0.5, 0.6), (0.95, 0.6)),
            ((0.7, 0.25), (0.65, 1)),
        ),
        (
            ((0.7, 0), (0.35, 0.35), (0.0, 0.65), (0.0, 0.65), (0.5, 0.65), (1, 0.65)),
            ((0.7, 0), (0.7, 0.5), (0.7, 1)),
        ),
        (
            ((0.5, 0), (0.25, 0.35), (0.05, 0.65), (0.05, 0.65), (0.5, 0.62), (0.95, 0.58)),
            ((0.65, 0.35), (0.5, 1)),
        ),
        (
            ((0.1, 0), (0.1, 0.35), (0.3, 0.5), (0.6, 0.48), (0.85, 0.4)),
            ((0.85, 0), (0.8, 0.5), (0.75, 1)),
        ),
    ),
    "5": (
        ((
            (0.85, 0), (0.2, 0), (0.2, 0), (0.12, 0.45), (0.12, 0.45), (0.55, 0.38), (0.9, 0.65),
            (0.65, 0.97), (0.05, 0.95),
        ),),
        (
            ((0.2, 0.05), (0.15, 0.45), (0.55, 0.4), (0.9, 0.68), (0.6, 1), (0.05, 0.92)),
            ((0.2, 0.05), (0.9, 0)),
        ),
        (((0.9, 0), (0.35, 0.05), (0.15, 0.35), (0.6, 0.5), (0.85, 0.75), (0.5, 1), (0.05, 0.95)),),
    ),
    "6": (
        ((
            (0.75, 0), (0.3, 0.25), (0.05, 0.65), (0.25, 0.97), (0.7, 0.97), (0.9, 0.72),
            (0.6, 0.52), (0.12, 0.7),
        ),),
        ((
            (0.6, 0), (0.2, 0.4), (0.1, 0.8), (0.45, 1), (0.85, 0.85), (0.75, 0.6), (0.4, 0.58),
            (0.12, 0.78),
        ),),
        (((0.35, 0), (0.15, 0.4), (0.1, 0.85), (0.5, 1), (0.9, 0.82), (0.58, 0.6), (0.12, 0.8)),),
    ),
    "7": (
        (((0.05, 0), (0.5, 0), (0.95, 0), (0.95, 0), (0.65, 0.5), (0.4, 1)),),
        (
            ((0.05, 0), (0.5, 0), (0.95, 0), (0.95, 0), (0.65, 0.5), (0.45, 1)),
            ((0.25, 0.52), (0.95, 0.48)),
        ),
        (((0.05, 0.18), (0.08, 0.02), (0.08, 0.02), (0.95, 0), (0.95, 0), (0.65, 0.45), (0.5, 1)),),
        (
            ((0.05, 0.1), (0.4, 0.02), (0.9, 0.02), (0.75, 0.4), (0.55, 1)),
            ((0.3, 0.55), (0.95, 0.5)),
        ),
    ),
    "8": (
        ((
            (0.8, 0.12), (0.45, 0), (0.15, 0.2), (0.5, 0.48), (0.85, 0.75), (0.5, 1), (0.12, 0.78),
            (0.5, 0.48), (0.85, 0.2), (0.7, 0.05),
        ),),
        (
            ((0.5, 0), (0.2, 0.12), (0.25, 0.38), (0.5, 0.46), (0.78, 0.36), (0.8, 0.12), (0.5, 0)),
            (
                (0.5, 0.46), (0.12, 0.62), (0.15, 0.9), (0.5, 1), (0.85, 0.9), (0.88, 0.62),
                (0.5, 0.46),
            ),
        ),
    ),
    "9": (
        ((
            (0.85, 0.15), (0.5, 0), (0.12, 0.2), (0.2, 0.48), (0.6, 0.48), (0.88, 0.15),
            (0.88, 0.15), (0.85, 0.6), (0.7, 1),
        ),),
        ((
            (0.85, 0.1), (0.4, 0), (0.1, 0.25), (0.35, 0.5), (0.85, 0.3), (0.85, 0.1), (0.85, 0.1),
            (0.85, 0.55), (0.85, 1),
        ),),
        ((
            (0.85, 0.18), (0.5, 0), (0.12, 0.2), (0.25, 0.48), (0.65, 0.45), (0.88, 0.2),
            (0.88, 0.7), (0.55, 1), (0.1, 0.92),
        ),),
    ),
}
# fmt: on


def penned(digit: str, rng: random.Random) -> np.ndarray:
    """A mask of a digit written with a round pen.

    It is a form of PEN, every point of it moved, the whole squeezed and slightly turned.
    """
    # The order of these draws is part of what makes a run repeatable.
    side = 128
    pen = rng.uniform(7, 20)  # pixels across
    shake = rng.uniform(0.02, 0.07)
    squeeze = rng.uniform(0.45, 1.0)
    turn = rng.gauss(0, 0.1)
    rotation = ((math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn)))
    picture = Image.new("L", (2 * side, 2 * side))
    draw = ImageDraw.Draw(picture)
    for stroke in rng.choice(PEN[digit]):
        points = shaken(stroke, shake, rng) - 0.5  # about the middle of the unit box
        points = points * (squeeze, 1) @ rotation
        for x, y in smooth(points) * side + side:
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return fit(picture, rng)


def shaken(stroke: Stroke, shake: float, rng: random.Random) -> np.ndarray:
    """The points of a stroke (n, 2), each moved a little; a corner's two points move together."""
    moved: dict[Point, Point] = {}
    for x, y in stroke:
        # Drawn for the second point of a corner, too, where it is not used.
        place = (x + rng.gauss(0, shake), y + rng.gauss(0, shake))
        moved.setdefault((x, y), place)
    return np.array([moved[point] for point in stroke])


def smooth(points: np.ndarray, steps: int = 24) -> np.ndarray:
    """Catmull-Rom curve through `points` (n, 2), as (m, 2) places to set the pen down."""
    p = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, steps)[None, :, None]
    # The n - 1 pieces of the curve run from b to c; each of a, b, c, d is (n - 1, 1, 2).
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve.reshape(-1, 2)


Shown = tuple[np.ndarray, Content]  # a mask (MASK, MASK) and what it shows


class Bank(dict[str, tuple[Tensor, Tensor]]):
    """kind -> masks (n, MASK, MASK) uint8 and what they show (n,), indices into CONTENTS."""

    def add(self, kind: str, shown: list[Shown]) -> None:
        """Put in all masks of a kind, each with its content."""
        masks = np.stack([mask for mask, _ in shown])
        indices = [CONTENTS.index(content) for _, content in shown]
        self[kind] = (torch.from_numpy(masks), torch.tensor(indices))


def render_bank(families: list[list[Path]], seed: int, size: float = 1.0) -> Bank:
    """Render every kind of mask once; `size` scales how many."""
    rng = random.Random(seed)
    bank = Bank()
    digits = [(digit, ("digit", digit)) for digit in string.digits]
    bank.add("digit", in_fonts(digits, families, math.ceil(12 * size), rng))
    letters = [(letter, ("letter", letter.lower())) for letter in string.ascii_letters]
    bank.add("letter", in_fonts(letters, families, math.ceil(3 * size), rng))
    words = [(word, ("word", word)) for word in WORDS]
    bank.add("word", in_fonts(words, families, math.ceil(5 * size), rng))
    bank.add("pen", in_pen(int(3000 * size), rng))
    return bank


def in_fonts(
    pairs: list[tuple[str, Content]], families: list[list[Path]], times: int, rng: random.Random
) -> list[Shown]:
    """Masks of texts, each `times` times in each family, however many files the family has.

    `pairs` are the texts with what they show.
    """
    shown: list[Shown] = []
    for family in families:
        for text, content in pairs:
            shown += [(typed(text, rng.choice(family), rng), content) for _ in range(times)]
    return shown


def in_pen(times: int, rng: random.Random) -> list[Shown]:
    """Each digit `times` times written with a pen."""
    shown: list[Shown] = []
    for digit in string.digits:
        shown += [(penned(digit, rng), ("digit", digit)) for _ in range(times)]
    return shown


# --- Images: masks bent, inked, blurred and coloured ---------------------------------------------


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Random numbers (n, 1, 1, 1), to act on a batch of images."""
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)


def bend(ink: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Thicken some masks, then turn, scale, shift and warp each.

    (n, 1, MASK, MASK) -> (n, 1, side, side)
    """
    n = len(ink)
    ink = torch.where(uniform(n, 0, 1, generator) < 0.3, F.max_pool2d(ink, 3, 1, 1), ink)
    ink = torch.where(uniform(n, 0, 1, generator) < 0.2, F.max_pool2d(ink, 3, 1, 1), ink)
    angle = 0.12 * torch.randn(n, generator=generator)
    # Mostly large: 1.2 fills the frame.
    sx, sy = 1 / (1.2 - 0.5 * torch.rand(2, n, generator=generator).square())
    shift = 0.08 * torch.randn(2, n, generator=generator)
    x_row = [sx * angle.cos(), -sx * angle.sin(), shift[0]]
    y_row = [sy * angle.sin(), sy * angle.cos(), shift[1]]
    theta = torch.stack(x_row + y_row).T.reshape(n, 2, 3)
    grid = F.affine_grid(theta, [n, 1, side, side], align_corners=False)  # (n, side, side, 2)
    # A smooth warp: random moves on a 4 x 4 grid of knots, interpolated.
    knots = 0.07 * torch.randn(n, 2, 4, 4, generator=generator)
    warp = F.interpolate(knots, (side, side), mode="bicubic", align_corners=True)
    return F.grid_sample(ink, grid + warp.permute(0, 2, 3, 1), align_corners=False)


def coarsen(ink: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Down to few pixels by area averages and up again, one of `sides` per slice of the batch.

    Up is bicubic, as in open_clip's preprocessing.
    """
    full = ink.shape[-1]
    coarse = []
    for part, side in zip(ink.chunk(len(sides)), sides, strict=True):
        small = F.interpolate(part, (side, side), mode="area") if side < full else part
        coarse.append(F.interpolate(small, (full, full), mode="bicubic", antialias=True))
    return torch.cat(coarse).clamp(0, 1)


def colour(ink: Tensor, plain: float, generator: torch.Generator) -> Tensor:
    """Ink (n, 1, s, s) in colour (n, 3, s, s).

    A share `plain` is in black and white of both polarities, the rest in two colours.
    """
    n = len(ink)
    light = torch.rand(n, 3, 1, 1, generator=generator)
    dark = light * uniform(n, 0, 0.55, generator)  # darker in every channel: always readable
    is_plain = uniform(n, 0, 1, generator) < plain
    light = torch.where(is_plain, 1.0, 0.35 + 0.65 * light)
    dark = torch.where(is_plain, 0.0, 0.35 * dark + 0.1)
    swap = uniform(n, 0, 1, generator) < 0.5
    ground = torch.where(swap, light, dark)
    pen = torch.where(swap, dark, light)
    image = ground + (pen - ground) * ink
    noise = uniform(n, 0, 0.06, generator) * torch.randn(image.shape, generator=generator)
    return (image + noise).clamp(0, 1)


def images(
    masks: Tensor, sides: tuple[int, ...], plain: float, generator: torch.Generator
) -> Tensor:
    """Normalised images (n, 3, side, side) of masks (n, MASK, MASK) uint8.

    The same masks give other pictures each time.
    """
    ink = bend(masks[:, None].float() / 255, 32, generator)
    ink = (ink * uniform(len(ink), 0.7, 1.4, generator)).clamp(0, 1)
    pictures = colour(coarsen(ink, sides), plain, generator)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    return (pictures - mean) / std


def training_batch(bank: Bank, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (n, 3, s, s) and what they show (n,), the kinds in the shares of MIX.

    Half the images keep 8 x 8 pixels of detail.
    """
    masks = []
    shown = []
    for kind, share in MIX.items():
        of_kind, contents = bank[kind]
        rows = torch.randint(len(of_kind), (round(BATCH * share),), generator=generator)
        masks.append(of_kind[rows])
        shown.append(contents[rows])
    order = torch.randperm(sum(len(contents) for contents in shown), generator=generator)
    sides = (8, 8, 8, 12, 16, 32)
    x = images(torch.cat(masks)[order], sides, plain=0.6, generator=generator)
    return x, torch.cat(shown)[order]


# --- Training ------------------------------------------------------------------------------------

Tokenizer = Callable[[Sequence[str]], Tensor]  # texts -> token numbers (n, context_length)


def contrastive_loss(x: Tensor, text: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss where equal contents are all positives of each other (soft targets).

    x (n, dim) and text (c, dim) are unit rows, text one caption per content in the batch, target
    (n,) its row.
    """
    logits = scale * x @ text.T  # (n, c)
    match = F.one_hot(target, len(text)).float()
    share = (match / match.sum(0)).T  # (c, n): a caption's images share its probability
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, share))


@torch.no_grad()
def zero_shot_weights(model: open_clip.CLIP, tokenizer: Tokenizer) -> Tensor:
    """Unit class embeddings (10, dim): the mean of the unit embeddings of DIGIT_TEMPLATES."""
    classes = []
    for name in DIGIT_NAMES:
        tokens = tokenizer([template.format(name) for template in DIGIT_TEMPLATES])
        mean = model.encode_text(tokens, normalize=True).mean(0)
        classes.append(F.normalize(mean, dim=0))
    return torch.stack(classes)


@torch.no_grad()
def accuracy(model: open_clip.CLIP, tokenizer: Tokenizer, x: Tensor, y: Tensor) -> float:
    """Zero-shot accuracy on digits x (n, 3, s, s)."""
    model.eval()
    features = torch.cat([model.encode_image(part) for part in x.split(500)])
    logits = features @ zero_shot_weights(model, tokenizer).T
    model.train()
    return (logits.argmax(1) == y).float().mean().item()


def held_out_digits(families: list[list[Path]], seed: int) -> tuple[Tensor, Tensor]:
    """Validation: digits of unseen fonts and unseen pen seeds, half each.

    They are black and white and degraded to 8 x 8 pixels.
    """
    bank = render_bank(families, seed, size=0.5)
    generator = torch.Generator().manual_seed(seed)
    masks = []
    labels = []
    for kind in ("digit", "pen"):
        of_kind, contents = bank[kind]
        rows = torch.randperm(len(of_kind), generator=generator)[:1000]
        masks.append(of_kind[rows])
        labels.append(contents[rows])  # contents 0..9 are the digits
    x = images(torch.cat(masks), (8,), plain=1.0, generator=generator)
    return x, torch.cat(labels)


def new_model(seed: int) -> open_clip.CLIP:
    """The model with random weights.

    open_clip draws them from the global generator: a fork of it is seeded, so that nobody else
    sees it.
    """
    open_clip.add_model_config(CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.create_model("tiny")


def make_optimiser(
    model: open_clip.CLIP, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, no decay on gains and biases; 100 steps of warm-up, then a half cosine to zero."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / steps)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def save(model: open_clip.CLIP, tokenizer: Tokenizer, path: Path) -> None:
    """The weights in half precision.

    Rows of the token table that no caption uses are still random: they are zeroed, so that an
    unknown word says nothing.
    """
    state = {name: value.half().contiguous().clone() for name, value in model.state_dict().items()}
    texts = []
    for content in CONTENTS:
        texts += captions(content)
    used = tokenizer(texts).unique()
    table = torch.zeros_like(state["token_embedding.weight"])
    table[used] = state["token_embedding.weight"][used]
    save_file(state | {"token_embedding.weight": table}, path)


def train(bank: Bank, held_out: tuple[Tensor, Tensor], *, seed: int, steps: int, out: Path) -> None:
    """Train, and keep at `out` the weights that read the held-out digits best."""
    model = new_model(seed)
    tokenizer = open_clip.get_tokenizer("tiny")
    rng = random.Random(seed)  # chooses captions
    generator = torch.Generator().manual_seed(seed)  # draws images
    tokens = [tokenizer(captions(content)) for content in CONTENTS]
    optimiser, schedule = make_optimiser(model, steps)
    best = 0.0
    start = time.perf_counter()
    for step in range(1, steps + 1):
        x, shown = training_batch(bank, generator)
        contents, target = shown.unique(return_inverse=True)
        text = torch.stack([rng.choice(tokens[content]) for content in contents.tolist()])
        x, text, scale = model(x, text)[:3]
        loss = contrastive_loss(x, text, target, scale)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 100 == 0 or step == steps:
            score = accuracy(model, tokenizer, *held_out)
            seconds = time.perf_counter() - start
            print(
                f"step {step:5d}  loss {loss:.3f}  scale {scale:.1f}  "
                f"held-out {score:.4f}  {seconds:.0f} s",
                flush=True,
            )
            if score > best:
                best = score
                save(model, tokenizer, out)


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=CONFIG.with_name("weights.safetensors"))
    parser.add_argument(
        "--fonts",
        type=Path,
        default=Path("/usr/share/fonts"),
        help="searched for .ttf and .otf (default: where Debian puts them)",
    )
    return parser.parse_args()


def main() -> None:
    """Render, train and save."""
    args = parse_arguments()
    torch.set_num_threads(1)  # part of what makes a run repeatable
    families = font_families(args.fonts)
    if len(families) < MIN_FAMILIES:
        sys.exit(
            f"{args.fonts} has {len(families)} usable font families, at least {MIN_FAMILIES} are "
            "needed: install the packages listed by --help"
        )
    held_out = families[::HELD_OUT]
    seen = [family for family in families if family not in held_out]
    print(f"{len(seen)} font families to train on, {len(held_out)} held out", flush=True)
    bank = render_bank(seen, args.seed)
    print({kind: len(contents) for kind, (_, contents) in bank.items()}, flush=True)
    digits = held_out_digits(held_out, args.seed + 1_000_000)
    train(bank, digits, seed=args.seed, steps=args.steps, out=args.out)


if __name__ == "__main__":
    main()
