"""What each head does where nothing is asked, as literals beside their source."""

from dataclasses import asdict, dataclass, field, fields

import pytest

from cliad.adapters import HEADS
from cliad.adapters.clip_adapter import ClipAdapter
from cliad.adapters.coop import CoOp
from cliad.adapters.core.head import default_of
from cliad.adapters.meta_adapter import MetaAdapter
from cliad.adapters.taskres import TaskRes

NO_TRAINING = {
    "steps": 0,
    "per_epoch": 1,
    "batch": None,
    "optimiser": "adamw",
    "momentum": 0.9,
    "eps": 1e-8,
    "schedule": "cosine",
    "warmup": 0,
    "warmup_rate": None,
    "keep": "last",
    "look": 1,
}
# 1600 items in minibatches of at most 256: 7 of them
BY_256 = NO_TRAINING | {"per_epoch": 7, "batch": 229}
# CoOp's trainer (its configs/trainers): cosine per epoch, the first epoch at the constant rate 1e-5
DASSL = NO_TRAINING | {"schedule": "cosine-epoch", "warmup_rate": 1e-5}
# its loader drops a short last minibatch: 1600 items make 6 steps an epoch
DASSL_BY_256 = DASSL | {"per_epoch": 6, "batch": 267, "warmup": 6}
FULL_BATCH = NO_TRAINING | {"optimiser": "sgd", "schedule": "constant"}
# Lin et al.: cosine after 50 steps of warm-up, the best step on validation is kept
CROSS_MODAL = NO_TRAINING | {"per_epoch": 25, "batch": 64, "warmup": 50, "keep": "best", "look": 25}

# Tip-Adapter's configs search alpha from 0.1 up to 3 ... 50 and beta up to 7 ... 50, each data set
# its own range; these two grids span them all
KEY_ALPHAS = (0.1, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0)
ALPHAS_TO_10 = (0.1, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
KEY_BETAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.5, 7.0, 9.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0)


@dataclass(frozen=True)
class Published:
    """A head's defaults, its plan at 16 shots of 100 classes, and what validation searches."""

    defaults: dict
    plan: dict
    searched: dict = field(default_factory=dict)
    select: str = "fixed"
    refine: int = 0
    tuned: frozenset = frozenset()
    needs: frozenset = frozenset({"text"})
    optional_inputs: frozenset = frozenset()


PUBLISHED = {
    "zero-shot": Published(defaults={}, plan=NO_TRAINING),
    # CoOp's lpclip scripts: seven powers of ten, then 8 steps of bisection
    "linear-probe": Published(
        defaults={"C": 1.0, "max_iter": 300, "tol": 1e-3},
        plan=NO_TRAINING | {"batch": 1600},
        searched={"C": (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)},
        select="val",
        refine=8,
        needs=frozenset({"raw"}),
    ),
    # arXiv 2110.04544: ratio 0.2 in the released code and best on ImageNet, width D/4, one branch
    # (Section 3.2), a second ReLU in the code; the fast recipe is ours: batches of 256, 30 epochs,
    # but at least 300 steps above 4 shots: 43 epochs of 7
    "clip-adapter": Published(
        defaults={
            "alpha": 0.2,
            "beta": 0.2,
            "branch": "visual",
            "ratio": "fixed",
            "hidden": "D/4",
            "final_relu": True,
            "preset": "fast",
            "lr": 1e-3,
            "weight_decay": 0.01,
            "epochs": None,
            "batch": 256,
        },
        plan=BY_256 | {"steps": 43 * 7},
        searched={"alpha": (0.2, 0.4, 0.6, 0.8, 1.0, 0.0)},
        optional_inputs=frozenset({"views"}),
    ),
    # ECCV 2022, Table 4: alpha 1, beta 5.5 are the best on ImageNet
    "tip-adapter": Published(
        defaults={"alpha": 1.0, "beta": 5.5},
        plan=NO_TRAINING,
        searched={"alpha": KEY_ALPHAS, "beta": KEY_BETAS},
        select="val",
        tuned=frozenset({"alpha", "beta"}),
        optional_inputs=frozenset({"views"}),
    ),
    # Tip-Adapter's main.py: AdamW at 1e-3, eps 1e-4, torch's decay of 0.01, batch 256, cosine
    # over 20 epochs; its configs start beta at 1, and alpha at 1.17 (four), 2 (two), 3 (three), 5
    # and 10: the mean is 3
    "tip-adapter-f": Published(
        defaults={
            "alpha": 3.0,
            "beta": 1.0,
            "lr": 1e-3,
            "weight_decay": 0.01,
            "epochs": 20,
            "batch": 256,
        },
        plan=BY_256 | {"steps": 140, "eps": 1e-4},
        searched={"alpha": ALPHAS_TO_10, "beta": KEY_BETAS},
        select="val",
        tuned=frozenset({"alpha", "beta"}),
        optional_inputs=frozenset({"views"}),
    ),
    # ICLR 2024, main_few_shots.py: alpha in powers of ten; None, the natural scale, is ours
    "gda": Published(
        defaults={"alpha": None},
        plan=NO_TRAINING,
        searched={"alpha": (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)},
        select="val",
        tuned=frozenset({"alpha"}),
        needs=frozenset(),
        optional_inputs=frozenset({"text", "views"}),
    ),
    # ICCV 2023, configs: gamma starts at 0.1 and is searched from 0 to 1; alpha goes up to 5, 7 or
    # 10; 800 of 1024 channels are the most frequent, w 0.5 is the middle of its tables
    "ape": Published(
        defaults={"alpha": 1.0, "beta": 5.5, "gamma": 0.1, "share": 0.78, "w": 0.5},
        plan=NO_TRAINING,
        searched={"alpha": ALPHAS_TO_10, "beta": KEY_BETAS, "gamma": (0.0, 0.1, 0.3, 0.6, 1.0)},
        select="val",
        tuned=frozenset({"alpha", "beta", "gamma"}),
        optional_inputs=frozenset({"views"}),
    ),
    # CVPR 2023: alpha 0.5, Adam at 2e-3 (2e-4 on ImageNet), CoOp's decay of 5e-4, batch 256,
    # 200 epochs at 8 and 16 shots
    "taskres": Published(
        defaults={"alpha": 0.5, "lr": 2e-3, "weight_decay": 5e-4, "epochs": 0, "batch": 256},
        plan=DASSL_BY_256 | {"steps": 1200, "optimiser": "adam"},
        searched={"alpha": (0.5, 0.1, 0.3, 1.0), "lr": (2e-3, 2e-4)},
        optional_inputs=frozenset({"views"}),
    ),
    # CVPR 2024, SGD_lr1e-1_B256_ep300.yaml, momentum 0.9, no decay
    "zs-lp": Published(
        defaults={"lr": 0.1, "epochs": 300, "batch": 256},
        plan=DASSL_BY_256 | {"steps": 1800, "optimiser": "sgd"},
        searched={"lr": (0.1, 0.01, 1e-3)},
        optional_inputs=frozenset({"views"}),
    ),
    # the same file; the released CLAP weighs the penalty by class and by 1
    "clap": Published(
        defaults={"strength": 1.0, "weights": "class", "lr": 0.1, "epochs": 300, "batch": 256},
        plan=DASSL_BY_256 | {"steps": 1800, "optimiser": "sgd"},
        searched={"strength": (1.0, 0.1, 10.0)},
        optional_inputs=frozenset({"views"}),
    ),
    # CVPR 2024, base.yaml: 300 steps on all items, momentum 0.9, the best step on validation
    "lp++": Published(
        defaults={"epochs": 300},
        plan=FULL_BATCH | {"steps": 300, "keep": "best"},
        select="val",
    ),
    # CVPR 2023, its hyper-parameter grid for linear heads; 50 steps of warm-up; 600 steps are ours
    "cross-modal": Published(
        defaults={"lr": 1e-3, "weight_decay": 0.01, "wise": 0.0, "steps": 600, "batch": 64},
        plan=CROSS_MODAL | {"steps": 600},
        searched={"lr": (1e-3, 1e-4), "weight_decay": (0.0, 0.01, 1e-4)},
        select="val",
    ),
    # the same paper: residual ratio 0.2, decay up to 1e-3; higher rates and 600 steps are ours
    "cross-modal-adapter": Published(
        defaults={
            "ratio": 0.2,
            "lr": 1e-3,
            "weight_decay": 1e-3,
            "wise": 0.0,
            "steps": 600,
            "batch": 64,
        },
        plan=CROSS_MODAL | {"steps": 600},
        searched={"lr": (1e-3, 3e-4, 1e-4)},
        select="val",
    ),
    # ProLIP's repository: Adam with eps 1e-4, cosine over 300 steps, a penalty of 1 / shots
    "reg-linear": Published(
        defaults={"strength": 1.0, "lr": 1e-3, "steps": 300, "batch": 256},
        plan=BY_256 | {"steps": 300, "optimiser": "adam", "eps": 1e-4},
        searched={"strength": (1.0, 10.0, 0.1, 0.01), "lr": (1e-3, 1e-4)},
        optional_inputs=frozenset({"views"}),
    ),
    "prolip": Published(
        defaults={"strength": 1.0, "lr": 1e-3, "steps": 300, "batch": 256},
        plan=BY_256 | {"steps": 300, "optimiser": "adam", "eps": 1e-4},
        searched={"strength": (1.0, 10.0, 0.1, 0.01), "lr": (1e-3, 1e-4, 1e-5)},
        needs=frozenset({"text", "raw", "pre_projection"}),
    ),
    # ours: the paper has no code, and its abstract no numbers
    "vt-clip": Published(
        defaults={"alpha": 1.0, "lr": 1e-3, "weight_decay": 0.01, "epochs": 30, "batch": 64},
        plan=NO_TRAINING | {"steps": 750, "per_epoch": 25, "batch": 64},
        searched={"lr": (1e-3, 1e-4), "alpha": (1.0, 0.3)},
        needs=frozenset({"text", "raw", "tokens"}),
    ),
    # ours: what was measured on validation images of caltech65 and oxford_pets
    "whitened-lr": Published(
        defaults={
            "strength": 1.0,
            "bias_strength": 0.1,
            "text_weight": 1.0,
            "max_iter": 60,
            "tol": 1e-3,
        },
        plan=NO_TRAINING | {"batch": 1600},
        searched={"strength": (1.0, 0.1, 10.0, 0.01, 100.0)},
        needs=frozenset(),
        optional_inputs=frozenset({"text"}),
    ),
    "offset-lr": Published(
        defaults={
            "strength": 0.1,
            "bias_strength": 0.1,
            "sharpen": 1.5,
            "max_iter": 60,
            "tol": 1e-3,
        },
        plan=NO_TRAINING | {"batch": 1600},
        searched={"strength": (0.1, 0.01, 1.0, 1e-3, 10.0)},
        needs=frozenset(),
        optional_inputs=frozenset({"text"}),
    ),
    "text-ridge": Published(
        defaults={"ridge": 0.3},
        plan=NO_TRAINING,
        searched={"ridge": (0.3, 0.1, 1.0, 0.03, 3.0)},
    ),
    # ours
    # CoOp's configs (lr, decay), its "a photo of a"; the plan of 100 steps of Adam is ours
    "coop": Published(
        defaults={
            "init": "a photo of a",
            "words": 16,
            "csc": False,
            "position": "end",
            "preset": "fast",
            "lr": 2e-3,
            "weight_decay": 5e-4,
            "epochs": None,
            "batch": 4096,
        },
        plan=NO_TRAINING | {"steps": 100, "batch": 1600, "optimiser": "adam"},
        needs=frozenset({"text", "tower"}),
        optional_inputs=frozenset({"views"}),
    ),
    # CoCoOp's config vit_b16_c4_ep10_batch1_ctxv1: one image a step, so an epoch is 1,600 steps
    "cocoop": Published(
        defaults={
            "init": "a photo of a",
            "lr": 2e-3,
            "weight_decay": 5e-4,
            "epochs": 10,
            "batch": 1,
        },
        plan=DASSL
        | {"steps": 16000, "per_epoch": 1600, "batch": 1, "warmup": 1600, "optimiser": "sgd"},
        needs=frozenset({"text", "tower"}),
        optional_inputs=frozenset({"views"}),
    ),
    # CPL's code is on CoCoOp's; its lambda is 1
    "cpl": Published(
        defaults={
            "init": "a photo of a",
            "lr": 2e-3,
            "weight_decay": 5e-4,
            "epochs": 10,
            "batch": 1,
            "contrast": 1.0,
        },
        plan=DASSL
        | {"steps": 16000, "per_epoch": 1600, "batch": 1, "warmup": 1600, "optimiser": "sgd"},
        needs=frozenset({"text", "tower"}),
        optional_inputs=frozenset({"views"}),
    ),
    "auto": Published(
        defaults={"folds": 4},
        plan=NO_TRAINING | {"batch": 1600},
        select="cv",
        needs=frozenset(),
        optional_inputs=frozenset({"text"}),
    ),
}
PUBLISHED |= {
    # no paper's: unit(t + unit mean), and a search of ours
    "prototype": Published(
        defaults={"alpha": 1.0},
        plan=NO_TRAINING,
        searched={"alpha": (1.0, 0.5, 2.0, 0.25, 4.0, 0.1, 10.0, 0.0)},
        tuned=frozenset({"alpha"}),
        optional_inputs=frozenset({"views"}),
    ),
    # the released Meta-Adapter: AdamW with eps 1e-4 and a cosine; rate, epochs and batch are ours
    "meta-adapter": Published(
        defaults={"preset": "fast", "lr": 1e-2, "weight_decay": 0.01, "epochs": 20, "batch": 256},
        plan=BY_256 | {"steps": 140, "eps": 1e-4},
        searched={"lr": (1e-4, 1e-3, 1e-2)},
        select="val",
        optional_inputs=frozenset({"views"}),
    ),
}
EVERY = pytest.mark.parametrize("name", HEADS)


def test_every_head_of_the_table_has_its_published_defaults_here():
    assert set(PUBLISHED) == set(HEADS)


@EVERY
def test_hyper_parameters_are_as_published(name):
    head = HEADS[name]()
    values = {spec.name: getattr(head, spec.name) for spec in fields(head)}
    assert values == PUBLISHED[name].defaults


@EVERY
def test_the_plan_is_as_published(name):
    assert asdict(HEADS[name]().plan(1600, 16)) == PUBLISHED[name].plan


@EVERY
def test_what_is_searched_is_as_published(name):
    head = HEADS[name]()
    expected = PUBLISHED[name]
    assert head.searches() == expected.searched
    assert (head.select, head.refine) == (expected.select, expected.refine)
    assert head.tuned == expected.tuned


@EVERY
def test_required_and_optional_inputs_are_as_published(name):
    assert HEADS[name].needs == PUBLISHED[name].needs
    assert HEADS[name].optional_inputs == PUBLISHED[name].optional_inputs


def test_the_paper_preset_is_coops_recipe():
    head = ClipAdapter(preset="paper")
    assert (head.lr, head.weight_decay, head.batch) == (2e-3, 5e-4, 32)
    expected = DASSL | {"optimiser": "sgd", "per_epoch": 50, "warmup": 50, "batch": 32}
    assert asdict(head.plan(1600, 16)) == expected | {"steps": 200 * 50}
    assert (ClipAdapter(preset="paper", lr=0.1).lr, ClipAdapter(lr=0.1).lr) == (0.1, 0.1)


def test_meta_adapters_paper_preset_is_the_released_recipe():
    head = MetaAdapter(preset="paper")
    assert (head.lr, head.epochs, head.batch, head.weight_decay) == (1e-4, 5, 64, 0.01)
    expected = NO_TRAINING | {"eps": 1e-4, "steps": 125, "per_epoch": 25, "batch": 64}
    assert asdict(head.plan(1600, 16)) == expected
    assert (MetaAdapter(preset="paper", lr=0.1).lr, MetaAdapter(epochs=3).epochs) == (0.1, 3)


@pytest.mark.parametrize(
    "preset, n, epochs",
    [
        # CoOp: 50 epochs at 1 shot, 100 at 2 and 4, 200 at 8 and 16; a share of a shot counts on
        ("paper", 10, 50),
        ("paper", 11, 100),
        ("paper", 20, 100),
        ("paper", 21, 100),
        ("paper", 40, 100),
        ("paper", 41, 200),
        ("paper", 80, 200),
        ("paper", 160, 200),
        # one minibatch an epoch: so many steps
        ("fast", 10, 100),
        ("fast", 11, 200),
        ("fast", 40, 200),
        ("fast", 41, 300),
        ("fast", 160, 300),
        # 3 minibatches an epoch; 20 of them
        ("fast", 600, 100),
        ("fast", 5000, 30),
    ],
)
def test_clip_adapters_epochs_follow_the_shots(preset, n, epochs):
    plan = ClipAdapter(preset=preset).plan(n, n / 10)
    assert plan.steps / plan.per_epoch == epochs


@pytest.mark.parametrize(
    "n, epochs", [(10, 50), (11, 100), (40, 100), (41, 200), (80, 200), (160, 200)]
)
def test_coop_s_published_recipe_is_its_trainer_s(n, epochs):
    plan = CoOp(preset="paper").plan(n, n / 10)
    assert plan.steps / plan.per_epoch == epochs
    assert (plan.optimiser, plan.momentum, plan.schedule) == ("sgd", 0.9, "cosine-epoch")
    assert (plan.warmup, plan.warmup_rate) == (plan.per_epoch, 1e-5)
    assert plan.per_epoch == max(n // 32, 1)  # a last minibatch that is short is dropped
    assert (CoOp(preset="paper").lr, CoOp(preset="paper").weight_decay) == (2e-3, 5e-4)


def test_epochs_that_are_given_are_kept():
    assert ClipAdapter(preset="paper", epochs=7).plan(32, 16).steps == 7
    assert ClipAdapter(epochs=7).plan(32, 16).steps == 7
    assert TaskRes(epochs=7).plan(32, 16).steps == 7
    assert CoOp(preset="paper", epochs=7).plan(32, 16).steps == 7
    assert CoOp(epochs=7).plan(32, 16).steps == 7


@pytest.mark.parametrize("n, epochs", [(10, 100), (40, 100), (41, 200), (80, 200), (160, 200)])
def test_taskres_trains_100_epochs_up_to_4_shots_and_200_above(n, epochs):
    plan = TaskRes().plan(n, n / 10)
    assert plan.steps / plan.per_epoch == epochs


def test_ratios_of_both_branches_are_searched_from_0_to_1():
    ratios = (0.2, 0.4, 0.6, 0.8, 1.0, 0.0)
    assert ClipAdapter(branch="text").searches() == {"beta": ratios}
    assert ClipAdapter(branch="both").searches() == {"alpha": ratios, "beta": ratios}
    assert ClipAdapter(ratio="learned").searches() == {}
    assert ClipAdapter(ratio="conditioned").searches() == {}


# the smallest and the largest value that a number may have
SPANS = {
    ("linear-probe", "C"): (1e-12, 1e12),
    ("linear-probe", "tol"): (0, None),
    ("clip-adapter", "alpha"): (0, 1),
    ("clip-adapter", "beta"): (0, 1),
    ("tip-adapter", "alpha"): (0, 1000),
    ("tip-adapter", "beta"): (0, 1000),
    ("tip-adapter-f", "alpha"): (0, 1000),
    ("tip-adapter-f", "beta"): (0, 1000),
    ("gda", "alpha"): (0, 1e6),
    ("ape", "alpha"): (0, 1000),
    ("ape", "beta"): (0, 1000),
    ("ape", "gamma"): (0, 100),
    ("ape", "share"): (0, 1),
    ("ape", "w"): (0, 1),
    ("taskres", "alpha"): (0, 1000),
    ("taskres", "epochs"): (0, None),
    ("clap", "strength"): (0, None),
    ("reg-linear", "strength"): (0, None),
    ("prolip", "strength"): (0, None),
    ("vt-clip", "alpha"): (0, 1000),
    ("whitened-lr", "strength"): (1e-12, 1e12),
    ("whitened-lr", "bias_strength"): (0, 1e12),
    ("whitened-lr", "text_weight"): (0, 1000),
    ("whitened-lr", "tol"): (0, None),
    ("offset-lr", "strength"): (1e-12, 1e12),
    ("offset-lr", "bias_strength"): (0, 1e12),
    ("offset-lr", "sharpen"): (1e-3, 1000),
    ("offset-lr", "tol"): (0, None),
    ("text-ridge", "ridge"): (1e-9, 1e9),
    ("prototype", "alpha"): (0, 1000),
    ("auto", "folds"): (2, 20),
    ("coop", "words"): (1, 1000),
    ("cpl", "contrast"): (0, None),
    ("cross-modal", "wise"): (0, 1),
    ("cross-modal-adapter", "wise"): (0, 1),
    ("cross-modal-adapter", "ratio"): (0, 1),
}
COUNTS = {"epochs", "batch", "steps", "max_iter"}  # at least 1
RATES = {"lr", "weight_decay"}  # at least 0


@EVERY
def test_what_a_number_may_be_is_as_published(name):
    for spec in fields(HEADS[name]):
        if spec.metadata["choices"] or isinstance(default_of(spec), str):
            continue
        low = spec.metadata["low"]
        high = spec.metadata["high"]
        if spec.name in COUNTS and (name, spec.name) not in SPANS:
            assert (low, high) == (1, None), spec.name
        elif spec.name in RATES:
            assert (low, high) == (0, None), spec.name
        else:
            assert (low, high) == SPANS[name, spec.name], spec.name
