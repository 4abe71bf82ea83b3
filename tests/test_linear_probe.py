"""The linear probe beside scikit-learn's logistic regression, the same objective."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_heads import WORLD, fitted

from cliad.adapters.linear_probe import LinearProbe


def objective(w, b, x, y, C):
    """C sum CE + |W|^2 / 2 in double precision."""
    logits = torch.as_tensor(x).double() @ torch.as_tensor(w).double().T + torch.as_tensor(b).double()
    return C * torch.nn.functional.cross_entropy(logits, y, reduction="sum").item() + 0.5 * float((torch.as_tensor(w).double() ** 2).sum())


@pytest.mark.parametrize("C", LinearProbe.space["C"])
@pytest.mark.parametrize("shots", [2, 16])
def test_the_probe_reaches_scikit_learns_objective(C, shots):
    episode, (query, _, _) = WORLD.episode(shots), WORLD.test
    x, y = episode.features[episode.index], episode.y
    twin = LogisticRegression(C=C, max_iter=20000, tol=1e-9).fit(np.asarray(x, np.float64), y.numpy())
    ours = fitted(LinearProbe(C=C, tol=1e-5, max_iter=4000), episode)
    reached = objective(ours.p["w"][0], ours.p["b"][0], x, y, C)
    theirs = objective(twin.coef_, twin.intercept_, x, y, C)
    assert reached <= theirs * (1 + 1e-4)
    if abs(reached / theirs - 1) < 1e-4:  # at a high C scikit-learn stops earlier
        agree = ours.logits(query).argmax(dim=1).numpy() == twin.predict(np.asarray(query, np.float64))
        assert agree.mean() == 1.0
