"""OpenAI's archives: the tensors that PyTorch's own reader gives, and no code of theirs is run."""

import pickle
import struct
import tracemalloc
import warnings
import zipfile

import open_clip
import pytest
import torch
import toy_clip
from torch import nn

from cliad.cache.encoders import clip
from cliad.cache.encoders.base import EncoderError
from cliad.cache.encoders.torchscript import state_of

CPU = torch.device("cpu")
warnings.filterwarnings("ignore", message=".*torch.jit.*")


class Block(nn.Module):
    """Layers in a row, a table that is no weight, and an attribute of each kind."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.numbers = [1, 2]
        self.table = {"one": 1.5}
        self.nothing: str | None = None
        self.register_buffer("attn_mask", torch.full((2, 2), float("-inf")))

    def forward(self, x):
        return self.norm(self.linear(x))


class Toy(nn.Module):
    """Modules in modules, parts of one storage, an empty tensor, types of every kind."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        both = torch.randn(4, 6)
        self.left = nn.Parameter(both[:, :3])
        self.turned = nn.Parameter(both.t()[1:3])
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("count", torch.tensor([-(2**40), 7]))
        self.register_buffer("precise", torch.randn(2, dtype=torch.float64))
        self.register_buffer("short", torch.randn(3).bfloat16())
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("wide", torch.ones(1).expand(3))
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x):
        return self.blocks(x) * self.scale


def saved(folder, *, how=torch.jit.script, half=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Toy().eval()
    model = model.half() if half else model
    file = folder / "toy.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(how(model), file)
    return file


def traced(model):
    return torch.jit.trace(model, torch.zeros(2, 3, dtype=model.scale.dtype))


def any_state(file):
    return state_of(file, lambda stored: None)


def refusal(file):
    with pytest.raises(EncoderError) as caught:
        any_state(file)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def changed(file, members):
    """The archive with other members; None: without this one."""
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for name, value in members.items():
        content[f"toy/{name}"] = value
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in content.items():
            if value is not None:
                archive.writestr(name, value)
    return file


def with_pickle(folder, content):
    return changed(saved(folder), {"data.pkl": content})


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("how", [torch.jit.script, traced])
def test_the_tensors_are_those_of_pytorchs_own_reader(tmp_path, how, half):
    file = saved(tmp_path, how=how, half=half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(file).state_dict()
    left_out = {"blocks.0.attn_mask", "blocks.1.attn_mask", "input_resolution"}
    found = any_state(file)
    assert set(found) == set(expected) - left_out
    for name, x in found.items():
        assert x.dtype == expected[name].dtype and x.stride() == expected[name].stride()
        assert torch.equal(x, expected[name]), name


def test_an_archive_of_the_other_byte_order_gives_the_same_numbers(tmp_path):
    file = saved(tmp_path)
    expected = any_state(file)
    widths = {bytes(x.untyped_storage()): x.element_size() for x in expected.values()}
    swapped = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if "/data/" in name:
                value = archive.read(name)
                width = widths.get(value, 1)
                pieces = [value[i : i + width][::-1] for i in range(0, len(value), width)]
                swapped[name.removeprefix("toy/")] = b"".join(pieces)
    found = any_state(changed(file, {"byteorder": b"big"} | swapped))
    for name, x in found.items():
        assert torch.equal(x, expected[name]), name
    assert "no byte order that there is" in refusal(changed(file, {"byteorder": b"middle"}))


def test_neither_code_nor_constants_of_an_archive_are_opened(tmp_path):
    file = saved(tmp_path)
    expected = any_state(file)
    code = b"class Toy(Module):\n  def __setstate__(self): torch.classes.a.b()\n" * 1000
    changed(file, {"code/__torch__.py": code, "constants.pkl": pickle.dumps(print)})
    found = any_state(file)
    assert all(torch.equal(x, expected[name]) for name, x in found.items())
    changed(file, {"constants.pkl": None})
    assert set(any_state(file)) == set(expected)


MODULE = b"c__torch__\nToy\n)\x81"  # a new module


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(key="0", place="cpu", n_number=1, *, kind="FloatStorage", view=b"K\x00))"):
    """The words of a tensor, whose storage has these words."""
    count = b"J" + struct.pack("<i", n_number)
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n"
    storage += text(key) + text(place) + count + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + hooks + b"tR"


def holding(value):
    """The words of a module with one attribute."""
    return b"\x80\x02" + MODULE + b"}" + text("x") + value + b"sb."


NESTED = b"K\x01" + b"q\x00h\x00\x86" * 60  # pairs of pairs: to look one up takes for ever


@pytest.mark.parametrize(
    "words, message",
    [
        (pickle.dumps(print, 2), "__builtin__.print, which no model needs"),
        (b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R.", "os.system, which no model needs"),
        (b"\x80\x02c__torch__\nToy\n)R.", "a call of __torch__ Toy"),
        (b"\x80\x02ctorch\nHalfStorage\n)\x81.", "an object that is no module"),
        (b"\x80\x02" + MODULE + b"K\x01\x85b.", "code that would run when it is read"),
        (b"\x80\x02" + MODULE + b"}K\x01K\x02sb.", "code that would run when it is read"),
        (b"\x80\x02}" + NESTED + b"K\x01s.", "a table by other than names and numbers"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".", "is cut off or damaged"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "an entry (SHORT_BINUNICODE)"),
        (b"\x80\x02K\x01r\xff\xff\xff\xff.", "no module"),
        (b"\x80\x02" + b"N" * 2**20 + b".", "more entries than any model has"),
        (b"\x80\x02h\x07.", "is cut off or damaged"),
        (b"\x80\x02" + MODULE, "is cut off or damaged"),
        (b"", "is cut off or damaged"),
        (bytes(2**24 + 1), "16,777,217 bytes of names"),
        (b"\x80\x02" + MODULE + b"q\x00}" + text("me") + b"h\x00sb.", "more modules than any"),
        (holding(tensor(n_number=-1)), "numbers without a count"),
        (holding(tensor(n_number=2**31 - 1)), "bytes for 2,147,483,647 numbers of 4 bytes"),
        (holding(tensor(key="../../etc/passwd")), "no data/../../etc/passwd"),
        (holding(tensor(kind="ComplexFloatStorage")), "torch.ComplexFloatStorage, which no"),
        (holding(tensor(view=b"K\x05))")), "a tensor that does not lie in its numbers"),
        (holding(tensor(view=b"K\x00K\x02\x85K\x01\x85")), "does not lie in its numbers"),
        (holding(tensor(view=b"J\xff\xff\xff\xff))")), "a tensor of no shape"),
        (holding(tensor(view=b"K\x00K\x02\x85)")), "is cut off or damaged"),
        (
            holding(tensor(view=b"K\x00" + b"\x8a\x0a" + b"\x01" * 9 + b"\x00\x85K\x00\x85")),
            "a tensor larger",
        ),
    ],
    ids=range(25),
)
def test_a_hostile_pickle_is_one_line_and_takes_no_memory(tmp_path, words, message):
    file = with_pickle(tmp_path, words)
    del words
    tracemalloc.start()
    try:
        assert message in refusal(file)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_modules_that_hold_each_other_a_million_times_are_refused(tmp_path):
    words = b"\x80\x02" + MODULE + b"}(" + text("0") + MODULE + b"q\x00"
    for number in range(20):
        before = b"h" + bytes([number])
        words += text(str(number + 1)) + MODULE + b"}("
        words += text("a") + before + text("b") + before + b"ubq" + bytes([number + 1])
    words += b"ub"
    assert "more modules than any model has" in refusal(with_pickle(tmp_path, words + b"."))


def test_numbers_that_were_saved_on_another_device_are_read_here(tmp_path):
    file = saved(tmp_path)
    with zipfile.ZipFile(file) as archive:
        key = next(x.filename for x in archive.infolist() if x.filename.endswith("/data/0"))
        n_number = archive.getinfo(key).file_size // 4
    words = holding(tensor(place="cuda:7", n_number=n_number))
    (x,) = any_state(changed(file, {"data.pkl": words})).values()
    assert x.device == CPU


def test_members_that_are_packed_or_lie_about_their_sizes_are_refused(tmp_path):
    file = saved(tmp_path)
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    assert "packed values" in refusal(file)
    whole = saved(tmp_path).read_bytes()
    for length in (len(whole) // 2, len(whole) - 30, 100):
        file.write_bytes(whole[:length])
        assert "is cut off or damaged" in refusal(file)


def test_an_archive_with_two_members_of_one_name_is_refused(tmp_path):
    _, path = toy_clip.openai_archive(tmp_path, "toy-twice")
    for name in ("toy-twice/data.pkl", "TOY-TWICE/DATA.PKL"):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(name, b"\x80\x02N.")
        with pytest.raises(EncoderError, match="two members of one name"):
            clip.load("toy-twice", path, device=CPU)


def test_sizes_are_the_models_before_anything_is_built_or_read(tmp_path):
    """Open_clip would build a model of any size that the shapes of an archive name."""
    _, path = toy_clip.openai_archive(tmp_path, "toy-other", embed_dim=40)
    with pytest.raises(EncoderError, match="archive of another model than ViT-L-14"):
        clip.load("ViT-L-14", path, device=CPU)


RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}


@pytest.mark.parametrize("vision", [None, RESNET])
def test_a_model_of_an_archive_is_bit_for_bit_the_one_that_open_clip_builds(tmp_path, vision):
    changes = {} if vision is None else {"vision_cfg": vision}
    name = f"toy-archive-{'vit' if vision is None else 'resnet'}"
    _, path = toy_clip.openai_archive(tmp_path, name, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = open_clip.load_openai_model(path, precision="fp32", device="cpu").state_dict()
    found = clip.load(name, path, device=CPU).model.state_dict()
    assert set(found) == set(expected)
    for key, x in found.items():
        assert x.dtype == expected[key].dtype and torch.equal(x, expected[key]), key
