"""`--transductive`: another way of scoring the same heads, kept apart from all others."""

import json

import plain
import pytest
import torch
from conftest import result_row, toy_cache
from torch.nn import functional as F

from cliad.adapters.core.classifier import Classifier
from cliad.cli import main
from cliad.pipelines.experiments.axes import AxisError
from cliad.pipelines.experiments.episode import LabelledRows, pick_device, score_rows
from cliad.pipelines.experiments.grid import grid
from cliad.pipelines.experiments.score import Scores, score_runs
from cliad.pipelines.experiments.spec import CAUTION, SpecError
from cliad.pipelines.experiments.train import train
from cliad.pipelines.experiments.transfer import transfer
from cliad.pipelines.report.clean_rows import study_of
from cliad.pipelines.report.report import report
from cliad.pipelines.report.tables import tables
from cliad.pipelines.runs import run_folder
from cliad.pipelines.runs.serve.service import InferenceService

CPU = pick_device("cpu")
ASKED = {"dataset": "toy", "shots": 2, "hyper": {"epochs": 3}, "device": "cpu"}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    toy_cache(folder, dataset="elsewhere")
    toy_cache(folder, noise=2.0)
    return folder


@pytest.fixture(scope="module")
def runs(caches):
    """The inductive and the transductive run of one spec, and their cache."""
    inductive, cache = train(folder=caches, **ASKED)
    transductive, _ = train(folder=caches, **ASKED, transductive=True)
    return inductive, transductive, cache


def test_its_row_is_of_another_protocol_and_has_no_inductive_level(runs):
    inductive, transductive, _ = runs
    before = inductive.row()
    row = transductive.row()
    assert before["protocol"] == "coop"
    assert row["protocol"] == "coop (transductive)"
    assert row["transductive"] is True
    assert row["zero_shot_top1"] is None
    assert row["inductive_top1"] == before["top1"]
    assert row["index_hash"] == before["index_hash"]
    assert row["top1"] != before["top1"]


def test_rows_and_keys_of_other_runs_have_no_word_of_it(runs):
    inductive, transductive, _ = runs
    assert not {"transductive", "inductive_top1"} & inductive.row().keys()
    assert {**inductive.spec.json(), "transductive": True} == transductive.spec.json()
    assert inductive.spec.key != transductive.spec.key


def test_its_numbers_are_those_of_the_algorithm(runs):
    inductive, transductive, cache = runs
    test = score_rows(cache, "test", CPU)
    episode = inductive.draw.episode
    support = F.normalize(episode.features[episode.index], dim=1)
    logits = inductive.classifier.logits(test.x) / inductive.test.temperature
    adapted = plain.adapted_to_batch(logits, F.normalize(test.x, dim=1), support, episode.y)
    right = (adapted.argmax(dim=1) == test.y).double().mean().item()
    assert transductive.test.scores.top1 == pytest.approx(right)
    nll = F.cross_entropy(adapted, test.y).item()
    assert transductive.test.scores.nll == pytest.approx(nll, rel=1e-4)


def test_no_temperature_is_known_for_adapted_logits(runs):
    inductive, transductive, _ = runs
    assert transductive.test.temperature == inductive.test.temperature
    assert (transductive.test.ece_t, transductive.test.nll_t) == (None, None)


def test_no_test_label_is_read_but_to_count_what_is_right(runs):
    inductive, transductive, cache = runs
    test = score_rows(cache, "test", CPU)
    poisoned = LabelledRows(test.x, (test.y + 1) % 5)
    (scores,) = score_runs(
        [inductive.classifier], [inductive.draw.episode], poisoned, transductive=True
    )
    # How many images have how much confidence is known without labels.
    expected = [bin_[:2] for bin_ in transductive.test.scores.reliability]
    assert [bin_[:2] for bin_ in scores.scores.reliability] == expected
    assert scores.scores.top1 < transductive.test.scores.top1 - 0.1


def test_a_head_whose_training_diverged_has_no_scores(runs):
    inductive, _, cache = runs
    test = score_rows(cache, "test", CPU)
    fitted = inductive.classifier
    p = {name: value * torch.nan for name, value in fitted.p.items()}
    broken = Classifier(fitted.head, p, fitted.c, fitted.logit_scale)
    (scores,) = score_runs([broken], [inductive.draw.episode], test, transductive=True)
    assert scores.diverged
    assert scores.scores == Scores()


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def both(caches, tmp_path_factory):
    """The rows of a grid of both ways."""
    out = tmp_path_factory.mktemp("both") / "r.jsonl"
    words = {"dataset": "toy", "head": "clip-adapter,gda,zero-shot", "epochs": "3"}
    words |= {"shots": "1,2", "seeds": "1,2", "transductive": [True, False]}
    lines = []
    done = grid(folder=caches, words=words, out=out, device="cpu", log=lines.append)
    assert done.done == 3 * 2 * 2 * 2
    assert CAUTION in lines
    return out


def test_a_run_alone_and_in_a_grid_have_the_same_numbers(both, runs):
    alone = runs[1].row()
    same = ("head", "shots", "seed", "protocol")
    (row,) = [row for row in rows_of(both) if all(row[word] == alone[word] for word in same)]
    assert row["top1"] == alone["top1"]
    assert row["nll"] == pytest.approx(alone["nll"], rel=1e-4)


def test_a_grid_goes_on_with_what_is_missing_of_either_way(caches, tmp_path):
    out = tmp_path / "r.jsonl"
    words = {"dataset": "toy", "head": "gda", "shots": "1", "seeds": "1,2"}
    assert grid(folder=caches, words=words, out=out).done == 2
    assert grid(folder=caches, words=words | {"transductive": "true"}, out=out).done == 2
    assert grid(folder=caches, words=words | {"transductive": "true"}, out=out).done == 0
    assert len({row["key"] for row in rows_of(out)}) == 4


# ------------------------------------------------------------------------------------ in a report


def test_no_table_holds_rows_of_both_ways(both):
    study = study_of(rows_of(both))
    inductive, transductive = study.blocks
    assert [block.protocol for block in study.blocks] == ["coop", "coop (transductive)"]
    for block, rows in ((inductive, 12), (transductive, 12)):
        of_block = [row for key, cell in study.cells.items() if key.block == block for row in cell]
        assert len(of_block) == rows
        assert {row["protocol"] for row in of_block} == {block.protocol}
    for table in tables(study):
        assert table.title.endswith(("protocol coop)", "protocol coop (transductive))"))


def test_transductive_heads_are_not_compared_with_inductive_zero_shot(both):
    study = study_of(rows_of(both))
    inductive, transductive = study.blocks
    assert study.zero_shot(inductive, "toy") is not None
    assert study.zero_shot(transductive, "toy") is None


def test_the_gain_over_the_next_head_is_between_rows_of_one_way(tmp_path):
    rows = []
    for seed in (1, 2):
        rows.append(result_row(head="gda", seed=seed, top1=0.6))
        rows.append(result_row(head="taskres", seed=seed, top1=0.5))
        other = {"protocol": "coop (transductive)", "transductive": True, "zero_shot_top1": None}
        rows.append(result_row(head="gda", seed=seed, top1=0.9, **other))
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report([path], form="md")
    # A transductive head alone has no next one.
    assert "gda over taskres: +10.00" in text
    assert text.count("gda over") == 1
    assert "+30" not in text


def test_a_report_says_what_transductive_is_and_how_to_make_such_rows(both):
    for form in ("md", "latex", "html"):
        assert "not comparable with those of heads that see one image at a time" in report(
            [both], form=form, out=both.with_name(f"report.{form}")
        )
    page = report([both], form="html", out=both.with_name("report.html"))
    assert "--protocol coop --select fixed --transductive --dataset toy" in page
    assert "--protocol coop --select fixed --dataset toy" in page


# ------------------------------------------------------------------------------- a run, saved


def test_a_saved_run_is_the_inductive_head_and_says_so(runs, tmp_path):
    inductive, transductive, cache = runs
    run_folder.save(inductive, cache, tmp_path / "inductive")
    run_folder.save(transductive, cache, tmp_path / "transductive")
    heads = [tmp_path / name / "head.safetensors" for name in ("inductive", "transductive")]
    assert heads[0].read_bytes() == heads[1].read_bytes()
    about = json.loads((tmp_path / "transductive" / "run.json").read_text())
    plain_about = json.loads((tmp_path / "inductive" / "run.json").read_text())
    assert about["spec"]["transductive"] is True
    assert about["spec"]["protocol"] == "coop"
    assert about["temperature"] == plain_about["temperature"]
    card = (tmp_path / "transductive" / "README.md").read_text()
    accuracy = f"{100 * inductive.test.scores.top1:.1f} %"
    assert "These figures are transductive" in card
    assert f"| accuracy, image by image | {accuracy} |" in card
    adapted = f"{100 * transductive.test.scores.top1:.1f} %"
    assert f"| accuracy, all test images at once | {adapted} |" in card
    assert "protocol coop (transductive)" in card
    other = (tmp_path / "inductive" / "README.md").read_text()
    assert "transductive" not in other
    assert "at once" not in other


def test_the_server_shows_the_accuracy_of_the_head_that_it_serves(runs, caches, tmp_path):
    inductive, transductive, cache = runs
    run_folder.save(transductive, cache, tmp_path / "run")
    (shown,) = InferenceService(tmp_path / "run", caches=caches).runs()
    assert shown["top1"] == inductive.test.scores.top1


def test_it_is_for_a_runs_own_test_split_only(runs, caches, tmp_path):
    _, transductive, cache = runs
    _, elsewhere = train(folder=caches, dataset="elsewhere", head="zero-shot", shots=1)
    with pytest.raises(SpecError, match="on its own test split only"):
        transfer([transductive], cache, elsewhere, CPU)
    words = {"dataset": "toy", "transductive": "true", "test": "elsewhere"}
    with pytest.raises(AxisError, match="on their own test split"):
        grid(folder=caches, words=words, out=tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_a_value_that_is_neither_true_nor_false_is_refused(caches, tmp_path):
    with pytest.raises(SpecError, match="transductive is true or false; got maybe"):
        grid(folder=caches, words={"transductive": "maybe"}, out=tmp_path / "r.jsonl")


@pytest.fixture
def typed(caches, tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIAD_CACHE", str(caches))

    def run(*words):
        monkeypatch.setattr("sys.argv", ["cliad", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def test_train_warns_in_one_line_and_shows_both_accuracies(typed, runs):
    words = ("train", "--dataset", "toy", "--shots", "2", "--epochs", "3", "--transductive")
    code, out, err = typed(*words)
    assert code == 0
    assert err.count(CAUTION) == 1
    assert "seed 1, transductive" in out
    row = runs[1].row()
    assert f"{100 * row['inductive_top1']:.1f} %" in out
    assert f"{100 * row['top1']:.1f} %" in out
    assert "zero-shot" not in out


@pytest.mark.parametrize("other", [["--base-to-new"], ["--test", "elsewhere"]])
def test_train_refuses_what_it_cannot_be_with(typed, tmp_path, other):
    code, _, err = typed("train", "--dataset", "toy", "--transductive", *other)
    assert code == 2
    assert f"--transductive or {other[0]}, not both" in err
    assert not (tmp_path / "runs").exists()


def test_the_commands_take_the_word(typed, tmp_path):
    code, out, _ = typed(
        *("grid", "--dataset", "toy", "--head", "gda", "--shots", "1", "--seeds", "1"),
        *("--transductive", "--json"),
    )
    assert code == 0
    assert json.loads(out)["done"] == 1
    (row,) = rows_of(tmp_path / "results.jsonl")
    assert row["transductive"] is True
