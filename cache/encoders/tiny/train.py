"""Train `tiny`, the small CLIP that comes with cliad, on images that this script renders itself.

    python train.py --seed 0 --steps 2000 --out weights.safetensors

It renders digits, letters and words for numbers (fonts, and digits drawn as pen strokes), captions them, and
trains open_clip's own CLIP class, as configured in tiny.json, with the contrastive loss. No data set is read.
The weights kept are those with the best zero-shot accuracy on rendered digits of fonts and pens never trained on.

Fonts: every .ttf and .otf below --fonts that has digits and letters. The weights in this folder saw these Debian 12 packages:
fonts-b612 fonts-breip fonts-cabin fonts-cherrybomb fonts-comfortaa fonts-comic-neue fonts-courier-prime
fonts-crosextra-carlito fonts-dancingscript fonts-dejavu-core fonts-dejavu-extra fonts-dkg-handwriting fonts-dustin
fonts-ecolier-court fonts-femkeklaver fonts-freefont-ttf fonts-georgewilliams fonts-hack-ttf fonts-humor-sans
fonts-inconsolata fonts-isabella fonts-junicode fonts-jura fonts-kaushanscript fonts-kiloji fonts-klee fonts-kristi
fonts-lato fonts-leckerli-one fonts-liberation fonts-open-sans fonts-opendyslexic fonts-play fonts-quicksand
fonts-radisnoir fonts-roboto-hinted fonts-rufscript fonts-seto fonts-sil-andika fonts-sjfonts fonts-smc-chilanka
fonts-staypuft fonts-summersby fonts-tlwg-purisa-ttf fonts-tomsontalks fonts-tuffy fonts-urw-base35 fonts-yusei-magic
"""

from __future__ import annotations

import argparse
import math
import random
import string
import sys
import time
from collections import defaultdict
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
NOT_LETTERS = {"D050000L", "Standard Symbols PS"}  # symbol fonts: a glyph for "3" that is no three
BATCH = 256
MASK = 48  # side of a rendered mask; the image side is the config's
MIX = {"pen": 0.42, "digit": 0.22, "letter": 0.24, "word": 0.12}  # share of each kind in a batch

# --- What there is to see, and how it is called ----------------------------------------------------------------

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (*DIGIT_NAMES, "ten", "eleven", "twelve", "twenty", "hundred", "thousand")
DIGIT_TEMPLATES = (  # the ones to use: trained on, and used for validation
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

# A content is what an image shows, ("digit", "3"), ("letter", "b"), ("word", "three"). The tokenizer lowercases, so B is b.
DIGITS = [("digit", d) for d in string.digits]
CONTENTS = DIGITS + [("letter", c) for c in string.ascii_lowercase] + [("word", w) for w in WORDS]


def captions(content: tuple[str, str]) -> list[str]:
    """All captions of one content; a digit is called "3" and "three" alike."""
    kind, name = content
    if kind == "letter":
        return [t.format(name) for t in LETTER_TEMPLATES]
    if kind == "word":
        return [t.format(name) for t in WORD_TEMPLATES]
    return [
        t.format(n)
        for t in DIGIT_TEMPLATES + MORE_DIGIT_TEMPLATES
        for n in (name, DIGIT_NAMES[int(name)])
    ]


# --- Fonts ------------------------------------------------------------------------------------------------------


def font_families(root: Path) -> list[list[Path]]:
    """Usable font files in groups of kin, the first word of the family name: all of Roboto is one group.

    Kin look alike, so validation holds out whole groups."""
    groups: dict[str, dict[tuple[str, str | None], Path]] = defaultdict(dict)
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in (".ttf", ".otf")):
        try:
            font = ImageFont.truetype(str(path), 24)
        except OSError:
            continue
        name = font.getname()
        if name[0] not in NOT_LETTERS and has_letters(font):
            groups[(name[0] or path.stem).split()[0].lower()].setdefault(name, path)
    return [list(groups[key].values()) for key in sorted(groups)]


def has_letters(font: ImageFont.FreeTypeFont) -> bool:
    """A missing glyph is drawn as one and the same box, or as nothing."""
    pictures = {bytes(font.getmask(c)) for c in string.digits + "abdegkq"}
    return len(pictures) == 17 and b"" not in pictures


# --- Masks: white ink on black, MASK x MASK ---------------------------------------------------------------------


def fit(picture: Image.Image, rng: random.Random) -> np.ndarray:
    """Crop to the ink, slant and stretch it, and fit it into a MASK x MASK frame with a margin of 4."""
    ink = picture.crop(picture.getbbox())
    slant = rng.gauss(0, 0.15) * ink.height  # pixels that the top moves to the right
    wide = ink.width + math.ceil(abs(slant))
    move = (1, slant / ink.height, -max(slant, 0), 0, 1, 0)
    ink = ink.transform((wide, ink.height), Image.Transform.AFFINE, move, Image.Resampling.BILINEAR)
    ink = ink.crop(ink.getbbox())
    width = ink.width * math.exp(rng.gauss(0, 0.2))
    scale = (MASK - 8) / max(width, ink.height)
    size = max(2, round(width * scale)), max(2, round(ink.height * scale))
    frame = Image.new("L", (MASK, MASK))
    frame.paste(
        ink.resize(size, Image.Resampling.BOX), ((MASK - size[0]) // 2, (MASK - size[1]) // 2)
    )
    return np.asarray(frame)


def typed(text: str, path: Path, rng: random.Random) -> np.ndarray:
    """A mask of `text` in the font at `path`."""
    font = ImageFont.truetype(str(path), 64)
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("L", (math.ceil(right - left) + 16, math.ceil(bottom - top) + 16))
    ImageDraw.Draw(picture).text((8 - left, 8 - top), text, fill=255, font=font)
    return fit(picture, rng)


# How hands write digits: per digit the usual forms, per form its strokes, per stroke points (x, y) in a unit box, y
# downwards. A curve runs through the points; a point given twice is a corner.
PEN = {
    "0": (
        (
            (
                (0.55, 0),
                (0.2, 0.15),
                (0.05, 0.5),
                (0.2, 0.87),
                (0.5, 1),
                (0.8, 0.85),
                (0.95, 0.5),
                (0.8, 0.13),
                (0.5, 0),
            ),
        ),
        (
            (
                (0.6, 0.08),
                (0.25, 0.1),
                (0.05, 0.5),
                (0.2, 0.9),
                (0.6, 0.98),
                (0.9, 0.7),
                (0.88, 0.3),
                (0.6, 0),
                (0.35, 0.06),
            ),
        ),
    ),
    "1": (
        (((0.5, 0), (0.5, 0.5), (0.5, 1)),),
        (((0.2, 0.3), (0.55, 0), (0.55, 0), (0.55, 0.5), (0.55, 1)),),
        (((0.0, 0.5), (0.35, 0.25), (0.6, 0), (0.6, 0), (0.6, 0.5), (0.6, 1)),),
        (((0.25, 0.25), (0.55, 0), (0.55, 0), (0.55, 0.5), (0.55, 1)), ((0.2, 1), (0.9, 1))),
    ),
    "2": (
        (
            (
                (0.1, 0.25),
                (0.4, 0),
                (0.8, 0.08),
                (0.8, 0.4),
                (0.45, 0.72),
                (0.05, 1),
                (0.05, 1),
                (0.5, 0.98),
                (0.95, 1),
            ),
        ),
        (
            (
                (0.1, 0.2),
                (0.45, 0),
                (0.85, 0.2),
                (0.7, 0.55),
                (0.3, 0.95),
                (0.05, 0.9),
                (0.2, 0.75),
                (0.5, 0.9),
                (0.95, 1),
            ),
        ),
        (((0.05, 0.1), (0.5, 0), (0.85, 0.1), (0.6, 0.5), (0.1, 1), (0.1, 1), (0.9, 0.95)),),
    ),
    "3": (
        (
            (
                (0.1, 0.12),
                (0.5, 0),
                (0.85, 0.2),
                (0.7, 0.42),
                (0.35, 0.48),
                (0.35, 0.48),
                (0.8, 0.55),
                (0.95, 0.78),
                (0.6, 1),
                (0.05, 0.9),
            ),
        ),
        (
            (
                (0.1, 0),
                (0.9, 0),
                (0.9, 0),
                (0.45, 0.4),
                (0.45, 0.4),
                (0.9, 0.6),
                (0.85, 0.9),
                (0.4, 1),
                (0.05, 0.88),
            ),
        ),
        (
            (
                (0.1, 0.1),
                (0.6, 0),
                (0.85, 0.22),
                (0.55, 0.45),
                (0.8, 0.65),
                (0.75, 0.92),
                (0.4, 1),
                (0.05, 0.95),
            ),
        ),
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
        (
            (
                (0.85, 0),
                (0.2, 0),
                (0.2, 0),
                (0.12, 0.45),
                (0.12, 0.45),
                (0.55, 0.38),
                (0.9, 0.65),
                (0.65, 0.97),
                (0.05, 0.95),
            ),
        ),
        (
            ((0.2, 0.05), (0.15, 0.45), (0.55, 0.4), (0.9, 0.68), (0.6, 1), (0.05, 0.92)),
            ((0.2, 0.05), (0.9, 0)),
        ),
        (((0.9, 0), (0.35, 0.05), (0.15, 0.35), (0.6, 0.5), (0.85, 0.75), (0.5, 1), (0.05, 0.95)),),
    ),
    "6": (
        (
            (
                (0.75, 0),
                (0.3, 0.25),
                (0.05, 0.65),
                (0.25, 0.97),
                (0.7, 0.97),
                (0.9, 0.72),
                (0.6, 0.52),
                (0.12, 0.7),
            ),
        ),
        (
            (
                (0.6, 0),
                (0.2, 0.4),
                (0.1, 0.8),
                (0.45, 1),
                (0.85, 0.85),
                (0.75, 0.6),
                (0.4, 0.58),
                (0.12, 0.78),
            ),
        ),
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
        (
            (
                (0.8, 0.12),
                (0.45, 0),
                (0.15, 0.2),
                (0.5, 0.48),
                (0.85, 0.75),
                (0.5, 1),
                (0.12, 0.78),
                (0.5, 0.48),
                (0.85, 0.2),
                (0.7, 0.05),
            ),
        ),
        (
            ((0.5, 0), (0.2, 0.12), (0.25, 0.38), (0.5, 0.46), (0.78, 0.36), (0.8, 0.12), (0.5, 0)),
            (
                (0.5, 0.46),
                (0.12, 0.62),
                (0.15, 0.9),
                (0.5, 1),
                (0.85, 0.9),
                (0.88, 0.62),
                (0.5, 0.46),
            ),
        ),
    ),
    "9": (
        (
            (
                (0.85, 0.15),
                (0.5, 0),
                (0.12, 0.2),
                (0.2, 0.48),
                (0.6, 0.48),
                (0.88, 0.15),
                (0.88, 0.15),
                (0.85, 0.6),
                (0.7, 1),
            ),
        ),
        (
            (
                (0.85, 0.1),
                (0.4, 0),
                (0.1, 0.25),
                (0.35, 0.5),
                (0.85, 0.3),
                (0.85, 0.1),
                (0.85, 0.1),
                (0.85, 0.55),
                (0.85, 1),
            ),
        ),
        (
            (
                (0.85, 0.18),
                (0.5, 0),
                (0.12, 0.2),
                (0.25, 0.48),
                (0.65, 0.45),
                (0.88, 0.2),
                (0.88, 0.7),
                (0.55, 1),
                (0.1, 0.92),
            ),
        ),
    ),
}


def penned(digit: str, rng: random.Random) -> np.ndarray:
    """A mask of a digit written with a round pen: a form of PEN, every point of it moved, the whole slightly turned."""
    side, pen, shake = 128, rng.uniform(7, 20), rng.uniform(0.02, 0.07)
    squeeze, turn = rng.uniform(0.45, 1.0), rng.gauss(0, 0.1)
    picture = Image.new("L", (2 * side, 2 * side))
    draw = ImageDraw.Draw(picture)
    for stroke in rng.choice(PEN[digit]):
        moved: dict[
            tuple[float, float], tuple[float, float]
        ] = {}  # a corner's two points move together
        for x, y in stroke:
            moved.setdefault((x, y), (x + rng.gauss(0, shake), y + rng.gauss(0, shake)))
        points = np.array([moved[p] for p in stroke]) - 0.5
        points = (
            points
            * (squeeze, 1)
            @ ((math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn)))
        )
        for x, y in smooth(points) * side + side:
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return fit(picture, rng)


def smooth(points: np.ndarray, steps: int = 24) -> np.ndarray:
    """Catmull-Rom curve through `points` (n, 2), as (m, 2) places to set the pen down."""
    p = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, steps)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))  # each (n - 1, 1, 2)
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve.reshape(-1, 2)


class Bank(dict[str, tuple[Tensor, Tensor]]):
    """kind -> masks (n, MASK, MASK) uint8 and what they show (n,), indices into CONTENTS."""

    def add(self, kind: str, shown: list[tuple[np.ndarray, tuple[str, str]]]) -> None:
        masks, contents = zip(*shown, strict=True)
        self[kind] = (
            torch.from_numpy(np.stack(masks)),
            torch.tensor([CONTENTS.index(c) for c in contents]),
        )


def render_bank(families: list[list[Path]], seed: int, size: float = 1.0) -> Bank:
    """Render every kind of mask once; each family gets the same share, however many files it has."""
    rng = random.Random(seed)
    bank = Bank()

    def in_fonts(
        pairs: list[tuple[str, tuple[str, str]]], times: float
    ) -> list[tuple[np.ndarray, tuple[str, str]]]:
        return [
            (typed(text, rng.choice(family), rng), content)
            for family in families
            for text, content in pairs
            for _ in range(math.ceil(times * size))
        ]

    bank.add("digit", in_fonts([(d, ("digit", d)) for d in string.digits], 12))
    bank.add("letter", in_fonts([(c, ("letter", c.lower())) for c in string.ascii_letters], 3))
    bank.add("word", in_fonts([(w, ("word", w)) for w in WORDS], 5))
    bank.add(
        "pen",
        [(penned(d, rng), ("digit", d)) for d in string.digits for _ in range(int(3000 * size))],
    )
    return bank


# --- Images: masks bent, inked, blurred and coloured ------------------------------------------------------------


def uniform(n: int, low: float, high: float, g: torch.Generator) -> Tensor:
    """(n, 1, 1, 1), to act on a batch of images."""
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=g)


def bend(ink: Tensor, side: int, g: torch.Generator) -> Tensor:
    """(n, 1, MASK, MASK) -> (n, 1, side, side): thicken some, then turn, scale, shift and warp each."""
    n = len(ink)
    ink = torch.where(uniform(n, 0, 1, g) < 0.3, F.max_pool2d(ink, 3, 1, 1), ink)
    ink = torch.where(uniform(n, 0, 1, g) < 0.2, F.max_pool2d(ink, 3, 1, 1), ink)
    angle = 0.12 * torch.randn(n, generator=g)
    sx, sy = 1 / (
        1.2 - 0.5 * torch.rand(2, n, generator=g).square()
    )  # mostly large: 1.2 fills the frame
    shift = 0.08 * torch.randn(2, n, generator=g)
    theta = torch.stack(
        [
            sx * angle.cos(),
            -sx * angle.sin(),
            shift[0],
            sy * angle.sin(),
            sy * angle.cos(),
            shift[1],
        ]
    )
    grid = F.affine_grid(
        theta.T.reshape(n, 2, 3), [n, 1, side, side], align_corners=False
    )  # (n, side, side, 2)
    knots = 0.07 * torch.randn(n, 2, 4, 4, generator=g)
    warp = F.interpolate(knots, (side, side), mode="bicubic", align_corners=True).permute(
        0, 2, 3, 1
    )
    return F.grid_sample(ink, grid + warp, align_corners=False)


def coarsen(ink: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Down to few pixels by area averages and up again (bicubic, as open_clip's preprocessing); one side per slice of the batch."""
    full = ink.shape[-1]
    slices = ink.chunk(len(sides))
    small = [
        F.interpolate(s, (k, k), mode="area") if k < full else s
        for s, k in zip(slices, sides, strict=True)
    ]
    return torch.cat(
        [F.interpolate(s, (full, full), mode="bicubic", antialias=True) for s in small]
    ).clamp(0, 1)


def colour(ink: Tensor, plain: float, g: torch.Generator) -> Tensor:
    """(n, 1, s, s) -> (n, 3, s, s): a share `plain` in black and white of both polarities, the rest in two colours."""
    n = len(ink)
    light = torch.rand(n, 3, 1, 1, generator=g)
    dark = light * uniform(n, 0, 0.55, g)  # darker in every channel: always readable
    is_plain = uniform(n, 0, 1, g) < plain
    light, dark = (
        torch.where(is_plain, 1.0, 0.35 + 0.65 * light),
        torch.where(is_plain, 0.0, 0.35 * dark + 0.1),
    )
    swap = uniform(n, 0, 1, g) < 0.5
    ground, pen = torch.where(swap, light, dark), torch.where(swap, dark, light)
    image = ground + (pen - ground) * ink
    return (image + uniform(n, 0, 0.06, g) * torch.randn(image.shape, generator=g)).clamp(0, 1)


def images(masks: Tensor, sides: tuple[int, ...], plain: float, g: torch.Generator) -> Tensor:
    """Masks (n, MASK, MASK) uint8 -> normalised images (n, 3, side, side), another picture each time."""
    ink = bend(masks[:, None].float() / 255, 32, g)
    ink = coarsen((ink * uniform(len(ink), 0.7, 1.4, g)).clamp(0, 1), sides)
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    return (colour(ink, plain, g) - mean) / std


def training_batch(bank: Bank, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (n, 3, s, s) and what they show (n,), the kinds in the shares of MIX; half the images keep 8 x 8 pixels of detail."""
    masks, shown = [], []
    for kind, share in MIX.items():
        rows = torch.randint(len(bank[kind][0]), (round(BATCH * share),), generator=g)
        masks.append(bank[kind][0][rows])
        shown.append(bank[kind][1][rows])
    order = torch.randperm(sum(map(len, shown)), generator=g)
    x = images(torch.cat(masks)[order], (8, 8, 8, 12, 16, 32), plain=0.6, g=g)
    return x, torch.cat(shown)[order]


# --- Training ---------------------------------------------------------------------------------------------------


def contrastive_loss(x: Tensor, text: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss where equal contents are all positives of each other (soft targets).

    x (n, dim) and text (c, dim) are unit rows, text one caption per content in the batch, target (n,) its row."""
    logits = scale * x @ text.T  # (n, c)
    match = F.one_hot(target, len(text)).float()
    return 0.5 * (
        F.cross_entropy(logits, target) + F.cross_entropy(logits.T, (match / match.sum(0)).T)
    )


@torch.no_grad()
def zero_shot_weights(model: torch.nn.Module, tokenizer) -> Tensor:
    """(10, dim): unit class embeddings, the mean of the unit embeddings of DIGIT_TEMPLATES, as everybody does it."""
    text = [tokenizer([t.format(name) for t in DIGIT_TEMPLATES]) for name in DIGIT_NAMES]
    return torch.stack(
        [F.normalize(model.encode_text(t, normalize=True).mean(0), dim=0) for t in text]
    )


@torch.no_grad()
def accuracy(model: torch.nn.Module, tokenizer, x: Tensor, y: Tensor) -> float:
    """Zero-shot accuracy on digits x (n, 3, s, s)."""
    model.eval()
    logits = (
        torch.cat([model.encode_image(part) for part in x.split(500)])
        @ zero_shot_weights(model, tokenizer).T
    )
    model.train()
    return (logits.argmax(1) == y).float().mean().item()


def held_out_digits(families: list[list[Path]], seed: int) -> tuple[Tensor, Tensor]:
    """Validation: digits of unseen fonts and unseen pen seeds, half each, black and white, degraded to 8 x 8 pixels."""
    bank, g = render_bank(families, seed, size=0.5), torch.Generator().manual_seed(seed)
    rows = {k: torch.randperm(len(bank[k][0]), generator=g)[:1000] for k in ("digit", "pen")}
    masks, y = (torch.cat([bank[k][i][r] for k, r in rows.items()]) for i in (0, 1))
    return images(masks, (8,), plain=1.0, g=g), y  # contents 0..9 are the digits


def new_model(seed: int) -> torch.nn.Module:
    """open_clip draws its weights from the global generator: seed a fork of it, so that nobody else sees."""
    open_clip.add_model_config(CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.create_model("tiny")


def make_optimiser(
    model: torch.nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, no decay on gains and biases; 100 steps of warm-up, then a half cosine to zero."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    rate = lambda i: min((i + 1) / 100, 0.5 * (1 + math.cos(math.pi * i / steps)))
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def save(model: torch.nn.Module, tokenizer, path: Path) -> None:
    """Half precision; rows of the token table that no caption uses are random still: zero them, so an unknown word says nothing."""
    state = {name: value.half().contiguous().clone() for name, value in model.state_dict().items()}
    used = tokenizer([text for content in CONTENTS for text in captions(content)]).unique()
    table = torch.zeros_like(state["token_embedding.weight"])
    table[used] = state["token_embedding.weight"][used]
    save_file(state | {"token_embedding.weight": table}, path)


def train(bank: Bank, held_out: tuple[Tensor, Tensor], *, seed: int, steps: int, out: Path) -> None:
    """Train, and keep at `out` the weights that read the held-out digits best."""
    model, tokenizer, rng = new_model(seed), open_clip.get_tokenizer("tiny"), random.Random(seed)
    g = torch.Generator().manual_seed(seed)
    tokens = [tokenizer(captions(content)) for content in CONTENTS]
    optimiser, schedule = make_optimiser(model, steps)
    best, start = 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        x, shown = training_batch(bank, g)
        contents, target = shown.unique(return_inverse=True)
        text = torch.stack([rng.choice(tokens[c]) for c in contents.tolist()])
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
            print(
                f"step {step:5d}  loss {loss:.3f}  scale {scale:.1f}  held-out {score:.4f}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            if score > best:
                best = score
                save(model, tokenizer, out)


def main() -> None:
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
    args = parser.parse_args()
    torch.set_num_threads(1)  # part of what makes a run repeatable
    families = font_families(args.fonts)
    if len(families) < MIN_FAMILIES:
        sys.exit(
            f"{args.fonts} has {len(families)} usable font families, at least {MIN_FAMILIES} are needed: install the packages listed by --help"
        )
    held_out = families[::HELD_OUT]
    seen = [family for family in families if family not in held_out]
    print(f"{len(seen)} font families to train on, {len(held_out)} held out", flush=True)
    bank = render_bank(seen, args.seed)
    print({kind: len(y) for kind, (_, y) in bank.items()}, flush=True)
    train(
        bank,
        held_out_digits(held_out, args.seed + 1_000_000),
        seed=args.seed,
        steps=args.steps,
        out=args.out,
    )


if __name__ == "__main__":
    main()
