"""What all heads are built of, against open_clip, nn.Linear, autograd and loops."""

from dataclasses import dataclass, field, fields

import open_clip
import pytest
import torch
import toy_clip
from torch import nn
from torch.nn import functional as F

from cliad.adapters.core.episode import Support
from cliad.adapters.core.head import Head, HeadError, Plan, default_of, hyper
from cliad.adapters.core.ops import (
    bottleneck,
    bottleneck_start,
    class_weights,
    cosine_logits,
    linear_start,
    raw_class_weights,
    text_loss,
    text_shots,
    unit,
)

CLASSNAMES = ["cat", "red panda", "aeroplane", "oak"]
TEMPLATES = ["{}", "a photo of a {}, which is very small.", "art of the {}.", "itap of many {}s!"]


def normal(*shape, seed=0, dtype=torch.float32):
    """Normal numbers from a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small random CLIP, and its tokenizer, whose text features differ much in length."""
    name = toy_clip.register(tmp_path_factory.mktemp("ops"), "toy-ops")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name).eval()
    with torch.no_grad():
        model.text_projection[:, 0] *= 30  # what lies along one direction decides the length
    return model, open_clip.get_tokenizer(name)


def test_class_weights_are_open_clips_zero_shot_classifier(clip):
    model, tokenizer = clip
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, CLASSNAMES, TEMPLATES).T
    rows = []
    for template in TEMPLATES:
        sentences = [template.format(name) for name in CLASSNAMES]
        rows.append(model.encode_text(tokenizer(sentences)))
    text = torch.stack(rows).detach()
    length = text.norm(dim=-1)
    assert (length.amax(dim=0) > 1.5 * length.amin(dim=0)).any()
    torch.testing.assert_close(class_weights(text), theirs, rtol=1e-5, atol=1e-6)
    lengths_decide = unit(text.mean(dim=0))  # what another reading of the paper would give
    assert (lengths_decide - theirs).abs().max() > 0.01


def test_unit_rows_have_length_one_and_zeros_stay_zeros():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-6]])
    assert unit(rows).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [0, -1]]


def test_raw_class_weights_average_the_templates_that_a_class_has():
    first, second, third = [[3.0, 0], [0, 8]], [[6.0, 3], [0, 0]], [[0, 3.0], [4, 0]]
    text = torch.tensor([first, second, third])
    assert raw_class_weights(text).tolist() == [[3.0, 2.0], [2.0, 4.0]]


def test_a_class_without_any_sentence_has_raw_weights_of_zero():
    text = torch.tensor([[[3.0, 0.0], [0.0, 0.0]], [[6.0, 3.0], [0.0, 0.0]]])
    assert raw_class_weights(text).tolist() == [[4.5, 1.5], [0.0, 0.0]]


def test_text_of_unit_rows_is_given_clips_length_of_ten():
    text = torch.tensor([[[0.6, 0.8], [0.0, 1.0]], [[0.8, 0.6], [0.0, 0.0]]])
    torch.testing.assert_close(raw_class_weights(text), torch.tensor([[7.0, 7.0], [0.0, 10.0]]))
    # one long row shows that the lengths are the encoder's own
    longer = torch.tensor([[[0.6, 0.8], [0.0, 1.0]], [[1.2, 1.6], [0.0, 0.0]]])
    torch.testing.assert_close(raw_class_weights(longer), torch.tensor([[0.9, 1.2], [0.0, 1.0]]))


def plain_cosine(x, w, scale):
    """The cosine as a person would write it."""
    return scale * F.cosine_similarity(x[:, :, None], w[:, None], dim=-1, eps=1e-12)


@pytest.mark.parametrize("n_run, n_weights", [(3, 3), (3, 1), (1, 3), (1, 1)])
def test_cosine_logits_and_their_gradient_equal_those_of_autograd(n_run, n_weights):
    x = normal(n_run, 4, 5, dtype=torch.float64).requires_grad_()
    w = unit(normal(n_weights, 2, 5, seed=1, dtype=torch.float64)).requires_grad_()
    scale = 7 + torch.arange(max(n_run, n_weights), dtype=torch.float64)[:, None, None]
    ours, plain = cosine_logits(x, w, scale), plain_cosine(x, w, scale)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(cosine_logits(x.detach(), w.detach(), scale), plain.detach())
    upstream = normal(*plain.shape, seed=2, dtype=torch.float64)
    # the cosine's own gradient in w also turns w; ours takes w as the unit row that it is
    x_gradient, w_gradient = torch.autograd.grad((ours * upstream).sum(), [x, w])
    torch.testing.assert_close(x_gradient, torch.autograd.grad((plain * upstream).sum(), x)[0])
    linear = scale * (unit(x) @ w.mT)
    torch.testing.assert_close(w_gradient, torch.autograd.grad((linear * upstream).sum(), w)[0])


def test_the_gradient_in_x_alone_equals_that_of_autograd():
    x = normal(2, 4, 5, dtype=torch.float64).requires_grad_()
    w = unit(normal(1, 3, 5, seed=1, dtype=torch.float64))
    ours = torch.autograd.grad(cosine_logits(x, w, 9.0).square().sum(), x)[0]
    theirs = torch.autograd.grad(plain_cosine(x, w, 9.0).square().sum(), x)[0]
    torch.testing.assert_close(ours, theirs)


def test_a_learned_scale_has_a_gradient():
    x = normal(1, 4, 5).requires_grad_()
    w = unit(normal(1, 3, 5, seed=1))
    scale = torch.full((1, 1, 1), 3.0, requires_grad=True)
    cosine_logits(x, w, scale).sum().backward()
    torch.testing.assert_close(scale.grad.sum(), plain_cosine(x, w, 1.0).sum().detach())


def test_the_cosine_of_a_zero_row_is_zero():
    x = torch.zeros(1, 2, 5, requires_grad=True)
    logits = cosine_logits(x, unit(normal(1, 3, 5)), 100.0)
    assert torch.equal(logits, torch.zeros(1, 2, 3))


@pytest.mark.parametrize("final_relu", [True, False])
def test_the_bottleneck_is_two_products_with_relus(final_relu):
    x, w1, w2 = normal(2, 3, 5), normal(2, 5, 4, seed=1), normal(2, 4, 5, seed=2)
    ours = bottleneck(x, w1, w2, final_relu=final_relu)
    for run in range(2):
        hidden = (x[run] @ w1[run]).clamp(min=0)
        expected = hidden @ w2[run]
        assert (expected < 0).any()
        torch.testing.assert_close(ours[run], expected.clamp(min=0) if final_relu else expected)


def test_linear_weights_start_as_nn_linear_starts_them():
    ours = linear_start(64, 400, torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = nn.Linear(64, 400, bias=False).weight.detach()
    assert ours.shape == (64, 400)
    for weights in (theirs, ours):
        assert -1 / 8 <= weights.min() < -0.124
        assert 0.124 < weights.max() <= 1 / 8
    assert abs(ours.mean()) < 2e-3
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.02)


def test_each_run_starts_from_its_own_generator():
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    w1, w2 = bottleneck_start(6, 2, generators, torch.zeros(1, dtype=torch.float64))
    assert w1.shape == (2, 6, 2) and w2.shape == (2, 2, 6) and w1.dtype == torch.float64
    for run, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)
        first = (torch.rand(6, 2, generator=generator) * 2 - 1) / 6**0.5
        second = (torch.rand(2, 6, generator=generator) * 2 - 1) / 2**0.5
        torch.testing.assert_close(w1[run], first.double())
        torch.testing.assert_close(w2[run], second.double())


def text_with_gaps():
    """Raw text (3, 4, 6) of which class 1 lacks two sentences and class 3 one."""
    text = 5 * normal(3, 4, 6)
    for template, missing in ((0, 1), (2, 1), (1, 3)):
        text[template, missing] = 0
    return text


def test_text_shots_are_unit_rows_and_a_missing_sentence_weighs_nothing():
    text = text_with_gaps()
    shots = text_shots(text)
    assert shots["_text"].shape == (1, 12, 6)
    assert shots["_text_y"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]]
    weight = shots["_text_weight"][0].tolist()
    assert sum(weight) == pytest.approx(1)
    for item in range(12):
        sentence = text[item // 4, item % 4]
        there = sentence.norm() > 0
        assert weight[item] == pytest.approx(1 / 9 if there else 0)
        expected = sentence / sentence.norm() if there else sentence
        torch.testing.assert_close(shots["_text"][0, item], expected)


def test_the_text_loss_is_the_mean_cross_entropy_of_the_sentences_there_are():
    text = text_with_gaps()
    logits = normal(2, 12, 4, seed=1)
    ours = text_loss(logits, text_shots(text))
    for run in range(2):
        losses = []
        for item in range(12):
            template, label = divmod(item, 4)
            if text[template, label].norm() > 0:
                losses.append(F.cross_entropy(logits[run, item], torch.tensor(label)).item())
        assert len(losses) == 9
        assert ours[run].item() == pytest.approx(sum(losses) / 9, rel=1e-5)


@dataclass(frozen=True)
class Bounded(Head):
    """A head with one field of each kind."""

    share: float = hyper(0.5, "a share", 0, 1)
    steps: int = hyper(3, "how long", 1)
    below: float = hyper(0.0, "a ceiling", high=2)
    kind: str = hyper("a", "which", choices=("a", "b"))
    flag: bool = hyper(True, "whether", 5)
    free: float | None = hyper(None, "anything", 0)


@pytest.mark.parametrize(
    "value",
    [
        {"share": 0},
        {"share": 1},
        {"steps": 1},
        {"below": 2.0},
        {"below": -1e9},
        {"kind": "b"},
        {"flag": False},
        {"free": None},
        {"free": 0},
    ],
)
def test_hyper_parameters_may_lie_on_their_bounds(value):
    ((name, expected),) = value.items()
    assert getattr(Bounded(**value), name) == expected


@pytest.mark.parametrize(
    "value, message",
    [
        ({"share": -0.1}, "share (a share) is from 0 to 1; got -0.1"),
        ({"share": 1.01}, "share (a share) is from 0 to 1; got 1.01"),
        ({"share": float("nan")}, "share (a share) is from 0 to 1; got nan"),
        ({"steps": 0}, "steps (how long) is at least 1; got 0"),
        ({"below": 3}, "below (a ceiling) is at most 2; got 3"),
        ({"kind": "c"}, "kind of Bounded is one of a, b; got c"),
        ({"free": -1}, "free (anything) is at least 0; got -1"),
    ],
)
def test_hyper_parameters_out_of_bounds_are_one_line(value, message):
    with pytest.raises(HeadError) as caught:
        Bounded(**value)
    assert str(caught.value) == message


def test_a_default_may_come_from_a_factory():
    @dataclass
    class Made:
        plain: int = 3
        fresh: list = field(default_factory=list)

    assert [default_of(spec) for spec in fields(Made)] == [3, []]


def test_a_field_without_a_default_is_named():
    @dataclass
    class Bare:
        width: int

    with pytest.raises(ValueError, match="width"):
        default_of(fields(Bare)[0])


def test_plans_cut_an_epoch_into_batches_of_nearly_equal_size():
    plan = Plan.counted(100, steps=7, batch=32, look=3)
    assert (plan.steps, plan.per_epoch, plan.batch, plan.look) == (7, 4, 25, 3)
    plan = Plan.epochs(100, epochs=5, batch=48)
    assert (plan.steps, plan.per_epoch, plan.batch) == (15, 3, 34)
    plan = Plan.epochs(32, epochs=5, batch=32)
    assert (plan.steps, plan.per_epoch, plan.batch) == (5, 1, 32)
    plan = Plan.dassl(65, epochs=10, batch=32, optimiser="sgd")
    assert (plan.steps, plan.per_epoch, plan.batch) == (20, 2, 33)
    assert (plan.schedule, plan.warmup, plan.warmup_rate) == ("cosine-epoch", 2, 1e-5)
    assert Plan.dassl(31, epochs=10, batch=32).steps == 10
    assert (plan.optimiser, plan.momentum) == ("sgd", 0.9)


def small_support(views=None):
    """Two runs of three and two items; the second run is padded."""
    y, mask = torch.tensor([[2, 0, 1], [1, 2, 0]]), torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    rows = torch.tensor([[4, 0, 2], [3, 1, 0]])
    x = normal(2, 3, 2)
    return Support(x, y, mask, None, 12.5, 4, rows, views, counts=[3, 2], largest_class=1)


def test_padding_has_no_class():
    first = [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    second = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert small_support().onehot.tolist() == [first, second]
    assert small_support().scale.tolist() == [[[12.5]]]


def test_views_are_reduced_once_and_picked_for_each_run():
    assert small_support().per_view() is None
    views = normal(3, 5, 2)
    support = small_support(views)
    every, mean = support.per_view(), support.per_view(lambda rows: rows.mean(dim=0))
    assert every.shape == (2, 3, 3, 2) and mean.shape == (2, 3, 2)
    for run in range(2):
        for item in range(3):
            row = views[:, support.rows[run, item]] * support.mask[run, item]
            torch.testing.assert_close(every[run, :, item], row)
            torch.testing.assert_close(mean[run, item], row.mean(dim=0))
