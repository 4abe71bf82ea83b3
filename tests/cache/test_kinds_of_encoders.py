"""Each kind of model that open_clip has, with random weights, against a plain open_clip loop.

The weights are a file on this disk, so nothing is fetched. What a trained model would show and
random weights hide is made visible: small noise lies on every weight, so that biases, scales of
layers and statistics of batches change the numbers.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from cliad.cache.encoders.base import EncoderError
from cliad.cache.extract.choices import EncoderChoice, Extras
from cliad.cache.file.check import problems
from cliad.cache.file.read import open_cache
from cliad.cache.views import ViewSet
from cliad.pipelines.experiments.train import train
from cliad.pipelines.extract import extract
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.export import export_run
from cliad.pipelines.runs.predict import load

GAIN = 1.5  # of random matrices: with small ones all images look alike
CLASSES = ("grey heron", "little owl")
TEMPLATE = "a photo of a {}."
# Of a number stored as float16: half its last bit, and what float32 loses in another order.
ROUNDING = 1e-3
# Of the differences between images, which random weights make small: what an error may be.
SHARE = 0.02


@dataclass(frozen=True)
class Kind:
    """A model of open_clip, and what its image tower gives beside the features."""

    name: str
    pre_projection: bool
    tokens: bool
    config: str = ""  # the model whose configuration it has, with `changes`
    vision: tuple[tuple[str, object], ...] = ()
    text: tuple[tuple[str, object], ...] = ()


# SigLIP's towers with CLIP's words: the table of its 256,000 words and their tokenizer lie on the
# hub. All else is open_clip's own configuration.
CLIP_WORDS = (("vocab_size", 49408), ("hf_tokenizer_name", ""), ("tokenizer_kwargs", {}))
KINDS = [
    Kind("RN50", pre_projection=True, tokens=True),
    Kind("ViT-B-32-quickgelu", pre_projection=True, tokens=True),
    Kind(
        "sigmoid-B-32",
        config="ViT-B-32-SigLIP2-256",
        text=CLIP_WORDS,
        pre_projection=False,
        tokens=False,
    ),
    Kind("coca_ViT-B-32", pre_projection=True, tokens=True),
    Kind("EVA02-B-16", pre_projection=False, tokens=False),
    Kind("convnext_tiny", pre_projection=True, tokens=False),
    Kind("MobileCLIP2-S0", pre_projection=False, tokens=False),
    Kind("PE-Core-T-16-384", pre_projection=False, tokens=False),
    Kind(
        "wide-M-32",
        config="ViT-M-32-alt",
        vision=(("image_size", [160, 224]),),
        pre_projection=True,
        tokens=True,
    ),
]


def register(kind, folder):
    """Make a changed configuration known to open_clip under the name of the kind."""
    config = copy.deepcopy(open_clip.get_model_config(kind.config))
    config["vision_cfg"].update(kind.vision)
    config["text_cfg"].update(kind.text)
    file = folder / f"{kind.name}.json"
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)


def shake(model):
    """Noise on every weight and statistic, so that none of them is a one or a zero."""
    generator = torch.Generator().manual_seed(5)
    for name, x in model.state_dict().items():
        if not x.is_floating_point() or name.startswith("logit_"):
            continue
        noise = torch.randn(x.shape, generator=generator)
        if name.endswith("running_var"):
            x.mul_(noise.mul_(0.2).exp_())
        elif x.ndim <= 1 or "gamma" in name:
            x.add_(noise.mul_(0.1))
        elif 1e-6 < x.std() < 1e3:
            # Rows of unit length or more: what an image gives shall outweigh what all share.
            gain = max(GAIN, 1 / (x.std().item() * x[0].numel() ** 0.5))
            x.mul_(gain).add_(noise.mul_(0.1 * x.std()))
        else:
            x.copy_(noise.mul_(0.05))  # CoCa's decoder leaves a matrix as the memory was


@pytest.fixture
def photos(tmp_path):
    """Images of two classes, wide and tall ones, four in train and two in test."""
    rng = np.random.default_rng(3)
    for split, n in (("train", 2), ("test", 1)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(n):
                size = (300, 200) if (number + label) % 2 else (180, 240)
                coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize(size).save(folder / f"{number}.png")
    return tmp_path / "photos"


@dataclass
class World:
    """A model with its transform and its words, as open_clip gives them, and its weights file."""

    kind: Kind
    model: torch.nn.Module
    transform: object
    tokenizer: object
    file: Path


def world_of(kind, folder):
    if kind.config:
        register(kind, folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, _, transform = open_clip.create_model_and_transforms(kind.name, pretrained=None)
    model.eval().requires_grad_(False)
    shake(model)
    file = folder / "weights.safetensors"
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, file)
    words = open_clip.tokenizer.SimpleTokenizer(context_length=model_context(kind))
    return World(kind, model, transform, words, file)


def model_context(kind):
    return open_clip.get_model_config(kind.name)["text_cfg"]["context_length"]


def choice(world, **options):
    # RN50 and ViT-B-32 have weights of both activations; these are of the plain architecture.
    quick_gelu = world.kind.name.endswith("-quickgelu")
    return EncoderChoice(world.kind.name, str(world.file), quick_gelu=quick_gelu, **options)


def run(world, photos, folder, **options):
    return open_cache(
        extract(
            f"folder:{photos}",
            encoder=choice(world),
            cache_folder=folder,
            device="cpu",
            batch=2,
            workers=1,
            **options,
        )
    )


def assert_same_rows(stored, expected):
    """Equal, as measured by how far the rows of different images lie apart."""
    stored = torch.from_numpy(np.array(stored, np.float32))
    assert stored.shape == expected.shape
    apart = (expected - expected.mean(0)).norm(dim=-1).max()
    assert (stored - expected).norm(dim=-1).max() < SHARE * apart


def assert_rounded(stored, expected):
    """Equal to the rounding of float16."""
    stored = torch.from_numpy(np.array(stored, np.float32))
    scale = expected.std().item()
    torch.testing.assert_close(stored, expected, rtol=ROUNDING, atol=ROUNDING * scale)


def plain_loop(world, images):
    """Raw features, one image at a time, as open_clip's own example does it."""
    encode = world.model.encode_image
    return torch.cat([encode(world.transform(image)[None], normalize=False) for image in images])


def parts_by_hook(world, images):
    """The features before the last projection, and the tokens, caught inside of open_clip."""
    visual = world.model.visual
    if hasattr(visual, "ln_post"):
        x = caught(visual.ln_post, world, images).output
        return x[:, 0], x[:, 1:] @ visual.proj
    if hasattr(visual, "attnpool"):
        grid = caught(visual.attnpool, world, images).input
        return pooled_places(visual.attnpool, grid)
    return caught(visual.head.proj, world, images).input, None


@dataclass
class Caught:
    """What a module was given and what it gave, for all images."""

    input: torch.Tensor
    output: torch.Tensor


def caught(module, world, images):
    inputs = []
    outputs = []

    def keep(_, given, result):
        inputs.append(given[0])
        outputs.append(result)

    handle = module.register_forward_hook(keep)
    plain_loop(world, images)
    handle.remove()
    return Caught(torch.cat(inputs), torch.cat(outputs))


def pooled_places(pool, grid):
    """CLIP's attention pool by torch's own attention, each place a query, the mean first."""
    x = grid.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding[:, None]
    width = x.shape[-1]
    before, _ = F.multi_head_attention_forward(
        x,
        x,
        x,
        embed_dim_to_check=width,
        num_heads=pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=torch.eye(width),
        out_proj_bias=torch.zeros(width),
        use_separate_proj_weight=True,
        training=False,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    after = pool.c_proj(before)
    return before[0], after[1:].transpose(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_encoder_gives_what_a_plain_open_clip_loop_gives(kind, photos, tmp_path):
    world = world_of(kind, tmp_path)
    extras = Extras(views=2, flip=True, pre_projection=kind.pre_projection, tokens=kind.tokens)
    cache = run(world, photos, tmp_path / "with extras", extras=extras, dtype="float32")
    assert problems(cache) == []
    names = cache.split("train").paths()
    images = [Image.open(photos / name).convert("RGB") for name in names]
    features = plain_loop(world, images)
    assert_same_rows(cache.split("train").rows(), features)
    check_views(world, cache, names, images)
    if kind.pre_projection:
        before, tokens = parts_by_hook(world, images)
        assert_same_rows(cache.column("train", "pre_projection"), before)
        if kind.tokens:
            assert_same_rows(cache.column("train", "tokens"), tokens)
    check_texts(world, cache)
    scale = world.model.logit_scale.exp().item()
    assert cache.logit_scale == pytest.approx(scale, rel=1e-6)
    # Without extras the model's own method gives the features: they are the same.
    plain = run(world, photos, tmp_path / "plain")
    assert_rounded(plain.split("train").rows(), features)
    missing_parts_are_one_line(world, photos, tmp_path / "missing")


def check_views(world, cache, names, images):
    mirrored = [ImageOps.mirror(image) for image in images]
    assert_same_rows(cache.column("train", "views/flip")[0], plain_loop(world, mirrored))
    for number in range(2):
        crops = []
        for name, image in zip(names, images, strict=True):
            crops.append(crop_of(world, name, image, number))
        assert_same_rows(
            cache.column("train", "views/crop-0.5-1")[number], plain_loop(world, crops)
        )


def crop_of(world, name, image, number):
    (left, top, width, height), mirror = ViewSet(2, (0.5, 1.0)).show(image.size, name, number)
    config = world.model.visual.preprocess_cfg
    how = InterpolationMode(config["interpolation"])
    size = config["size"]
    size = [size, size] if isinstance(size, int) else list(size)
    crop = transforms.resized_crop(image, top, left, height, width, size, how)
    return ImageOps.mirror(crop) if mirror else crop


def check_texts(world, cache):
    tokens = world.tokenizer([TEMPLATE.format(name) for name in CLASSES])
    assert cache.templates == [TEMPLATE]
    assert_same_rows(cache.text[0], world.model.encode_text(tokens, normalize=False))


def missing_parts_are_one_line(world, photos, folder):
    missing = [part for part in ("pre_projection", "tokens") if not getattr(world.kind, part)]
    if not missing:
        return
    word = missing[0].replace("_", "-")
    with pytest.raises(EncoderError, match=f"has no {word} output; leave out --{word}"):
        run(world, photos, folder, extras=Extras(**dict.fromkeys(missing, True)))
    assert list(folder.glob("**/*.h5*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "coca_ViT-B-32", "convnext_tiny"])
def test_encoder_and_head_in_onnx_give_what_a_plain_loop_gives(name, photos, tmp_path):
    (kind,) = [kind for kind in KINDS if kind.name == name]
    world = world_of(kind, tmp_path)
    run(world, photos, tmp_path / "caches", dtype="float32")
    result, cache = train(folder=tmp_path / "caches", head="linear-probe", shots=2, hyper={"C": 1})
    folder = run_folder.save(result, cache, tmp_path / "run")
    (path,) = export_run(
        folder,
        format="onnx",
        out=tmp_path / "whole.onnx",
        with_encoder=True,
        pretrained=str(world.file),
    )
    images = [Image.open(photos / row).convert("RGB") for row in cache.split("train").paths()]
    expected = load(folder).probabilities(plain_loop(world, images).numpy())
    assert (expected[0] - expected[-1]).abs().max() > 0.05  # the probe tells the classes apart
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _, found = session.run(None, {"pixels": np.stack([pixels(world, x) for x in images])})
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3)


def pixels(world, image):
    """The image as open_clip's transform leaves it before it is a tensor, (3, height, width)."""
    for step in world.transform.transforms:
        if type(step).__name__ in ("ToTensor", "Normalize", "MaybeToTensor"):
            break
        image = step(image)
    return np.asarray(image).transpose(2, 0, 1)
