"""A very small CLIP with random weights, of open_clip's own classes, as a weights file that cliad loads like any other."""

import json
import warnings
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def register(folder: Path, name: str = "toy-clip", **changes) -> str:
    """Make an architecture known to open_clip; `changes` replace entries of its configuration."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT} | changes))
    open_clip.add_model_config(file)
    return name


def weights(folder: Path, name: str = "toy-clip", seed: int = 0, **options) -> Path:
    """A file with random weights for a known architecture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(name, **options)
        for key, value in model.named_parameters():
            # open_clip leaves this matrix of CoCa's decoder as the memory was.
            if key == "text_decoder.text_projection":
                torch.nn.init.normal_(value, std=0.02)
    path = folder / f"{name}-{seed}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def holder(state):
    """A module that has the parameters of a state dict and does nothing."""
    root = torch.nn.Module()
    for name, x in state.items():
        *path, last = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, torch.nn.Module())
            at = at._modules[part]
        is_real = x.is_floating_point()
        at.register_parameter(last, torch.nn.Parameter(x.clone(), requires_grad=is_real))
    return root


def openai_archive(folder, name, **changes):
    """A TorchScript archive as OpenAI publishes them: half precision, heads of width 64."""
    towers = {
        "vision_cfg": VISION | {"head_width": 64},
        "text_cfg": TEXT | {"width": 64, "heads": 1},
    } | changes
    register(folder, name, **towers)
    model = open_clip.create_model(name, force_quick_gelu=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(holder(model.state_dict())).half(), folder / f"{name}.pt")
    return model, str(folder / f"{name}.pt")
