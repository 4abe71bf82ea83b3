"""Adapting logits to a batch, beside the same algorithm image by image in numpy."""

import plain
import pytest
import torch
from torch.nn import functional as F

from cliad.adapters.core import transductive
from cliad.adapters.core.transductive import adapt_to_batch

N_CLASS, DIM = 4, 12


def world(n=60, shots=3, noise=1.2, seed=0):
    """Logits (n, n_class) and unit rows of a batch, its labels, and a support: x, y."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(N_CLASS, DIM, generator=g)
    labels = torch.randint(N_CLASS, (n,), generator=g)
    y = torch.arange(N_CLASS).repeat(shots)
    q = F.normalize(centres[labels] + noise * torch.randn(n, DIM, generator=g), dim=1)
    x = F.normalize(centres[y] + noise * torch.randn(len(y), DIM, generator=g), dim=1)
    logits = 4 * q @ F.normalize(centres + torch.randn(N_CLASS, DIM, generator=g), dim=1).T
    return logits, q, labels, x, y


def assert_probabilities_are(logits, expected):
    """Logits matter up to one number for each image."""
    p = logits.double().softmax(dim=1)
    torch.testing.assert_close(p, expected.double().softmax(dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_adapted_logits_are_the_algorithm(n, shots):
    logits, q, _, x, y = world(n=n, shots=shots)
    adapted = adapt_to_batch(logits, q, x, y)
    assert_probabilities_are(adapted, plain.adapted_to_batch(logits, q, x, y))
    assert (adapted.softmax(dim=1) - logits.softmax(dim=1)).abs().max() > 0.005


def test_the_mean_over_classes_of_an_images_logits_stays():
    logits, q, _, x, y = world()
    adapted = adapt_to_batch(logits, q, x, y)
    torch.testing.assert_close(adapted.mean(dim=1), logits.mean(dim=1), rtol=1e-4, atol=1e-4)


def test_a_balanced_batch_makes_a_poor_head_better():
    logits, q, labels, x, y = world(n=400, noise=0.8)
    before = (logits.argmax(dim=1) == labels).float().mean()
    after = (adapt_to_batch(logits, q, x, y).argmax(dim=1) == labels).float().mean()
    assert after > before + 0.01


def test_a_class_without_support_has_its_share_of_the_batch():
    logits, q, _, x, y = world()
    some = y != 2
    assert_probabilities_are(
        adapt_to_batch(logits, q, x[some], y[some]),
        plain.adapted_to_batch(logits, q, x[some], y[some]),
    )


def test_a_class_without_any_share_has_the_mean_of_all_images():
    logits, q, _, x, y = world()
    logits[:, 2] = -1e4
    some = y != 2
    adapted = adapt_to_batch(logits, q, x[some], y[some])
    assert torch.isfinite(adapted).all()
    assert (adapted.argmax(dim=1) != 2).all()
    # Among the others, nothing is changed by a class that nothing belongs to, but for n_class.
    assert (adapted[:, 2] < -9e3).all()


def test_a_permutation_of_the_batch_permutes_the_logits():
    logits, q, _, x, y = world()
    order = torch.randperm(len(q), generator=torch.Generator().manual_seed(1))
    adapted = adapt_to_batch(logits, q, x, y)
    permuted = adapt_to_batch(logits[order], q[order], x, y)
    torch.testing.assert_close(permuted, adapted[order], rtol=1e-5, atol=1e-5)


def test_blocks_of_rows_change_nothing(monkeypatch):
    logits, q, _, x, y = world()
    whole = adapt_to_batch(logits, q, x, y)
    monkeypatch.setattr(transductive, "ROWS_AT_ONCE", 7)
    torch.testing.assert_close(adapt_to_batch(logits, q, x, y), whole, rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_class_is_adapted_like_any_other():
    logits, q, labels, x, y = world(n=200)
    one = labels == 1
    adapted = adapt_to_batch(logits[one], q[one], x, y)
    assert_probabilities_are(adapted, plain.adapted_to_batch(logits[one], q[one], x, y))


def test_images_that_are_all_the_same_have_finite_logits():
    logits, q, _, _, y = world()
    same = q[:1].expand(len(q), -1)
    adapted = adapt_to_batch(logits[:1].expand(len(q), -1), same, q[:1].expand(len(y), -1), y)
    assert torch.isfinite(adapted).all()


def test_arguments_are_left_as_they_are():
    given = world()
    before = [tensor.clone() for tensor in given]
    logits, q, _, x, y = given
    adapt_to_batch(logits, q, x, y)
    for tensor, was in zip(given, before, strict=True):
        assert torch.equal(tensor, was)


def test_numbers_that_are_not_finite_are_refused():
    logits, q, _, x, y = world()
    logits[3, 1] = torch.nan
    with pytest.raises(ValueError, match="expected finite logits and features"):
        adapt_to_batch(logits, q, x, y)


def test_shapes_that_do_not_fit_are_refused():
    logits, q, _, x, y = world()
    with pytest.raises(ValueError, match=r"expected logits \(n, n_class\)"):
        adapt_to_batch(logits, q[:-1], x, y)
