"""CLIP models of every kind that open_clip knows. The only module that imports open_clip."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import textwrap
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, ToTensor
from torchvision.transforms import functional as image_functions

from cliad.cache.encoder import Encoder, EncoderError
from cliad.cache.store import recipe_id
from cliad.cache.towers import all_parts, swapped

TINY = Path(__file__).parent / "tiny_clip"
TEXT_BATCH = 256
SMALL = 5_000_000  # parameters of an image tower that one thread serves best
DEFAULT = ("ViT-B-32", "openai")


class Clip:
    """An `Encoder` around an open_clip model. Images travel as uint8 and are normalised in batches on the device."""

    def __init__(
        self, model: nn.Module, tokenizer, *, name: str, recipe: Mapping, preprocess: PreprocessCfg, device: torch.device, half: bool
    ):
        weights = _split_towers(model.state_dict())
        activation = _activation(model)
        self.name, self.tokenizer, self.device = name, tokenizer, device
        self.image_recipe = {**recipe, "weights": _hash(weights["image"]), "activation": activation, "preprocess": _json_ready(preprocess)}
        self.text_recipe = {**recipe, "weights": _hash(weights["text"]), "activation": activation, "context": tokenizer.context_length}
        self.encoder_id = recipe_id({"image": self.image_recipe["weights"], "text": self.text_recipe["weights"], "activation": activation})
        self.model = model.eval().requires_grad_(False).to(device)
        self.logit_scale = model.logit_scale.exp().item()
        self._half = half and device.type == "cuda"  # elsewhere half precision is slow, or wrong
        if device.type == "cuda" or hasattr(model.visual, "attnpool"):
            self.model.visual.to(memory_format=torch.channels_last)
        self._resize = _picture_half(preprocess)
        self._scale, self._shift = (torch.tensor(x).view(3, 1, 1).to(device) for x in _on_bytes(preprocess))
        self._size, self._interpolation = self.image_recipe["preprocess"]["size"], InterpolationMode(_interpolation(preprocess))
        blank = self.preprocess(Image.new("RGB", (64, 64)))
        self.parts = {part: tuple(x.shape[1:]) for part, x in self._all_parts(blank[None]).items()}
        self.dim = self.parts["features"][0]

    @property
    def threads(self) -> int | None:
        """One for a small model: more would mostly wait for each other, and for the threads that read images."""
        return 1 if sum(x.numel() for x in self.model.visual.parameters()) < SMALL else None

    @property
    def text_projects(self) -> bool:
        return getattr(getattr(self.model, "text", self.model), "text_projection", None) is not None

    @property
    def precision(self) -> str:
        return "float16 autocast" if self._half else "float32"

    def preprocess(self, image: Image.Image, *, box: tuple[int, int, int, int] | None = None, mirror: bool = False) -> Tensor:
        if box:
            left, top, width, height = box
            image = image_functions.resized_crop(image, top, left, height, width, self._size, self._interpolation)
        else:
            image = self._resize(image)
        image = image_functions.hflip(image) if mirror else image
        return image_functions.pil_to_tensor(image.convert("RGB"))

    @torch.inference_mode()
    def encode_images(self, batch: Tensor) -> Tensor:
        with self._autocast():
            return self.model.encode_image(self._ready(batch)).float()

    def encode_parts(self, batch: Tensor, parts: Sequence[str]) -> dict[str, Tensor]:
        if list(parts) == ["features"]:
            return {"features": self.encode_images(batch)}
        if missing := set(parts) - set(self.parts):
            raise EncoderError(f"{self.name} gives no {sorted(missing)[0]}; it gives {', '.join(self.parts)}")
        found = self._all_parts(batch)
        return {part: found[part] for part in parts}

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, pre_projection: bool = False) -> Tensor:
        holder = getattr(self.model, "text", self.model)
        if pre_projection and not self.text_projects:
            raise EncoderError(f"the text tower of {self.name} ends in no projection, so there is nothing before it to keep")
        with swapped(holder, text_projection=None) if pre_projection else nullcontext(), self._autocast():
            chunks = (texts[i : i + TEXT_BATCH] for i in range(0, len(texts), TEXT_BATCH))
            return torch.cat([self.model.encode_text(self.tokenizer(list(chunk)).to(self.device)).float() for chunk in chunks])

    @property
    def preprocess_size(self) -> tuple[int, int]:
        """(height, width) of a preprocessed image."""
        height, width = self.image_recipe["preprocess"]["size"]
        return height, width

    def image_tower(self) -> nn.Module:
        """The image encoder as one module, for export: preprocessed images (b, 3, height, width) uint8 -> raw features (b, dim)."""
        return _Tower(self.model.visual, self._scale, self._shift)

    @torch.inference_mode()
    def _all_parts(self, batch: Tensor) -> dict[str, Tensor]:
        with self._autocast():
            return {part: x.float() for part, x in all_parts(self.model.visual, self._ready(batch)).items()}

    def _ready(self, batch: Tensor) -> Tensor:
        batch = batch.to(self.device, non_blocking=True)
        return batch.float().mul_(self._scale).add_(self._shift) if batch.dtype == torch.uint8 else batch

    def _autocast(self):
        return torch.autocast("cuda", torch.float16) if self._half else nullcontext()


if TYPE_CHECKING:

    def _is_an_encoder(clip: Clip) -> Encoder:
        """The type checker compares every member here."""
        return clip


class _Tower(nn.Module):
    """The normalisation and the image tower of a CLIP."""

    def __init__(self, visual: nn.Module, scale: Tensor, shift: Tensor):
        super().__init__()
        self.visual = visual
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.visual(pixels.float() * self.scale + self.shift)


def _split_towers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The state dict in two: the image tower, and all that the text side and the logits use."""
    image = {name: x for name, x in state.items() if name.startswith("visual.")}
    return {"image": image, "text": {name: x for name, x in state.items() if name not in image}}


def _hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over name, type, shape and bytes of every tensor, by name."""
    digest = hashlib.sha256()
    for name, x in sorted(state.items()):
        x = x.detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _activation(model: nn.Module) -> str:
    """The kinds of GELU that the model is built of: "QuickGELU", "GELU", or "" for a model without."""
    return "+".join(sorted({type(m).__name__ for m in model.modules() if "GELU" in type(m).__name__}))


def _json_ready(preprocess: PreprocessCfg) -> dict:
    recipe = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(preprocess).items()}
    size = recipe["size"]
    return recipe | {"size": size if isinstance(size, list) else [size, size], "decoder": "pillow upright rgb"}


def _interpolation(preprocess: PreprocessCfg) -> str:
    """As open_clip reads it: whatever is not bilinear is bicubic."""
    return "bilinear" if preprocess.interpolation == "bilinear" else "bicubic"


def _picture_half(preprocess: PreprocessCfg) -> Compose:
    """The part of open_clip's own transform that works on the picture; what follows is to_tensor and the normalisation."""
    steps = image_transform_v2(preprocess, is_train=False).transforms
    return Compose([step for step in steps if not isinstance(step, ToTensor | Normalize)])


def _on_bytes(preprocess: PreprocessCfg) -> tuple[list[float], list[float]]:
    """Factor and shift per channel that normalise values of 0 to 255: (x / 255 - mean) / std in two steps."""
    mean, std = (x if isinstance(x, list | tuple) else [x] * 3 for x in (preprocess.mean, preprocess.std))
    return [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


# ---------------------------------------------------------------------------------------------------------- loading


def load(
    model: str,
    pretrained: str | None = None,
    *,
    device: torch.device,
    quick_gelu: bool | None = None,
    squeeze: bool = False,
    half: bool = False,
) -> Clip:
    """An encoder by name.

    Args:
        model: `tiny`, a name of open_clip (`ViT-B-32`, `ViT-B/32`, `ViT-B-32/openai`), `hf-hub:OWNER/NAME` or `local-dir:DIR`.
        pretrained: a tag (by default `openai`, or the only one there is) or a weights file.
        quick_gelu: the activation of a weights file; a tag knows its own.
        squeeze: resize to the model's square without keeping proportions, as CoOp's code does.
        half: compute in half precision where that is safe (CUDA).
    Raises:
        EncoderError: no such model or tag, no weights, or an activation that must be told.
    """
    model, pretrained = full_name(model, pretrained)
    network, recipe, shown = _build(model, pretrained, quick_gelu)
    preprocess = PreprocessCfg(**getattr(network.visual, "preprocess_cfg", {"size": network.visual.image_size}))
    if squeeze:
        preprocess.resize_mode = "squash"
    return Clip(network, _tokenizer(model), name=shown, recipe=recipe, preprocess=preprocess, device=device, half=half)


def full_name(model: str, pretrained: str | None = None) -> tuple[str, str]:
    """The architecture and the tag (or file) that a user means; "" for a model that brings its own weights.

    Raises:
        EncoderError: an unknown model or tag; the message suggests the nearest.
    """
    if ":" in model or model == "tiny":
        return model, ""
    name, tag = _dashed(model), pretrained
    if name not in open_clip.list_models() and "/" in model:
        head, _, last = model.rpartition("/")
        name, tag = _dashed(head), pretrained or last
    if name not in open_clip.list_models():
        raise EncoderError(f"there is no model '{model}'{_nearest(name, open_clip.list_models())}; `cliad models` lists all")
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = tag or default_tag(tags)
    if tag is None:
        raise EncoderError(f"{name} has {len(tags)} sets of weights; choose one with --pretrained: {', '.join(tags) or 'a file'}")
    if not os.path.isfile(tag) and not open_clip.get_pretrained_cfg(name, tag):
        raise EncoderError(
            f"{name} has no weights '{tag}', and there is no such file{_nearest(tag, tags)}; known: {', '.join(tags) or 'none, give a file'}"
        )
    return name, tag


def default_tag(tags: Sequence[str]) -> str | None:
    """The weights meant when none are named: OpenAI's, or the only ones there are."""
    return "openai" if "openai" in tags else tags[0] if len(tags) == 1 else None


def published() -> dict[str, list[str]]:
    """The tags of every architecture that has published weights."""
    tags: dict[str, list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(name, []).append(tag)
    return tags


def _dashed(model: str) -> str:
    """OpenAI's way of writing a name in open_clip's: `ViT-L/14@336px` is `ViT-L-14-336`."""
    return model.replace("/", "-").replace("@", "-").removesuffix("px")


def _nearest(name: str, known: Sequence[str]) -> str:
    lower = {entry.lower(): entry for entry in known}
    found = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean '{lower[found[0]]}'?" if found else ""


def _build(model: str, pretrained: str, quick_gelu: bool | None) -> tuple[nn.Module, dict, str]:
    """The network, what the ids say of its origin, and the name that is shown."""
    if model == "tiny":
        return _create("tiny", str(TINY / "weights.safetensors")), {"model": "tiny", "pretrained": ""}, "tiny"
    if ":" in model:
        return _create(model, None), {"model": model, "pretrained": ""}, model
    if os.path.isfile(pretrained):
        network = _from_file(model, Path(pretrained), quick_gelu)
        return network, {"model": model, "pretrained": "file"}, f"{model}/{Path(pretrained).stem}"
    wants = bool(open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu"))
    return _create(model, pretrained, force_quick_gelu=wants), {"model": model, "pretrained": pretrained}, f"{model}/{pretrained}"


def _create(model: str, pretrained: str | None, **options) -> nn.Module:
    if model == "tiny" and "tiny" not in open_clip.list_models():
        open_clip.add_model_config(TINY / "tiny.json")
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            return open_clip.create_model(model, pretrained=pretrained, require_pretrained=True, **options)
    except UserWarning as warning:
        raise EncoderError(f"{warning} Give a model name that fits the weights") from None
    except Exception as error:  # a file that is no checkpoint may raise anything
        raise _no_weights(model, pretrained, error) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip also logs what it raises; one line is enough."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _no_weights(model: str, pretrained: str | None, error: Exception) -> EncoderError:
    reason = textwrap.shorten(str(error).rpartition("Last error: ")[2], 160, placeholder=" ...")
    if pretrained and os.path.isfile(pretrained):
        return EncoderError(f"{pretrained} does not hold the weights of {model} ({reason}); give the --model that it was made with")
    if model == "tiny":
        return EncoderError(f"the bundled encoder is not whole ({reason}); install cliad again")
    where = (missing.where if (missing := to_fetch(model, pretrained or "")) else model) or model
    return EncoderError(
        f"no weights for {shown_name(model, pretrained)}: tried {where} ({reason}); give a local file with --pretrained FILE"
    )


def shown_name(model: str, pretrained: str | None) -> str:
    return f"{model}/{pretrained}" if pretrained else model


@dataclass(frozen=True)
class Missing:
    """Weights that are not on this machine: where they come from, and about how large they are (0: not known)."""

    where: str
    megabytes: float


def to_fetch(model: str, pretrained: str) -> Missing | None:
    """What must be fetched before `load` can work; None where all is here. Arguments as `full_name` gives them."""
    if model.startswith("hf-hub:"):
        repository = model.removeprefix("hf-hub:")
        return None if _in_hub_cache(repository, "open_clip_config.json") else Missing(f"{repository} on the Hugging Face hub", 0)
    if not pretrained or os.path.isfile(pretrained):
        return None
    published = open_clip.get_pretrained_cfg(model, pretrained)
    if published.get("file"):
        return None
    repository, _, file = published.get("hf_hub", "").rpartition("/")
    if repository:
        names = [file] if file else [HF_WEIGHTS_NAME, HF_SAFE_WEIGHTS_NAME]
        names += [f"{Path(name).stem}.safetensors" for name in names]
        return (
            None
            if any(_in_hub_cache(repository, name) for name in names)
            else Missing(f"{repository} on the Hugging Face hub", _size(model))
        )
    here = Path.home() / ".cache" / "clip" / published["url"].rpartition("/")[2]
    return None if here.is_file() else Missing(published["url"], _size(model))


def _in_hub_cache(repository: str, file: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str)


def _size(model: str) -> float:
    """Megabytes of the weights in single precision, counted on a model without memory; 0 where it cannot be built so."""
    try:
        with torch.device("meta"), _quiet():
            network = open_clip.create_model(model, pretrained_text=False, device="meta")
        return sum(x.numel() for x in network.parameters()) * 4 / 1e6
    except Exception:  # some towers need files to be built: then the size is not told
        return 0


def _from_file(model: str, path: Path, quick_gelu: bool | None) -> nn.Module:
    if _is_torchscript(path):
        return _from_openai_archive(model, path)
    if quick_gelu is None:
        quick_gelu = _known_activation(model, path)
    return _create(model, str(path), force_quick_gelu=quick_gelu)


def _is_torchscript(path: Path) -> bool:
    """OpenAI's own files are TorchScript archives: zip files with code in them."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _from_openai_archive(model: str, path: Path) -> nn.Module:
    """OpenAI's weights; these always want QuickGELU, and open_clip builds it for them."""
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # torch says that such archives are a thing of the past
        try:
            network = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
        except Exception as error:  # an archive of something else may raise anything
            raise _no_weights(model, str(path), error) from None
        asked = open_clip.create_model(model, pretrained=None, device="meta")
    if {name: x.shape for name, x in network.state_dict().items()} != {name: x.shape for name, x in asked.state_dict().items()}:
        raise EncoderError(f"{path} is an OpenAI archive of another model than {model}; give the --model that it was made with")
    return network


def _known_activation(model: str, path: Path) -> bool:
    """Whether a weights file of `model` wants QuickGELU, where that can be known without being told.

    Raises:
        EncoderError: some published weights of this architecture want it, others do not, and the file is unknown.
    """
    published = [open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    if model.endswith("-quickgelu") or not any(cfg.get("quick_gelu") for cfg in published):
        return model.endswith("-quickgelu")
    with open(path, "rb") as file:
        digest = (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
        )
    for cfg in published:
        known = cfg.get("url", "").rpartition("-")[2].removesuffix(".pt")
        if len(known) >= 8 and digest.startswith(known):
            return bool(cfg.get("quick_gelu"))
    raise EncoderError(
        f"{path} does not say its activation, and weights of {model} exist with both; give --quick-gelu (OpenAI, MetaCLIP, DFN) or --no-quick-gelu"
    )


def _tokenizer(model: str):
    try:
        return open_clip.get_tokenizer(model)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise EncoderError(
            f"no tokenizer for {model} ({reason}); `pip install transformers` if that is missing, or choose another model"
        ) from None
