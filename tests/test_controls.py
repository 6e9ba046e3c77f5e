"""Controls of the selection on a network whose answer is known, and against running every image alone."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import Checkpoint, CheckpointInfo
from gft_edge.config.model import preset
from gft_edge.control_checkpoint import learn_places, measure_rules, require_dropping
from gft_edge.control_results import (
    CENTRE,
    LEAST,
    LOWER,
    ORACLE,
    OWN,
    RANDOM,
    STATIC,
    budget_controls,
    gain_text,
    rule_accuracy,
    rule_table,
)
from gft_edge.control_rules import SEEDS, require_selection
from gft_edge.controls import ControlOptions, controls
from gft_edge.data.marks import marks_of
from gft_edge.data.sets import Subset
from gft_edge.errors import CheckFailed, ConfigError, DataError
from gft_edge.model.choices import Following, ranked
from gft_edge.model.gft import GFTOutput, StageMaps
from gft_edge.model.places import centre_first, random_places
from gft_edge.model.selection import gather_tokens, select_patches
from gft_edge.preprocess import PreprocessSpec

PLAIN = PreprocessSpec(32, 32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BUDGET = TokenBudget((12, 6), 16)
IMAGES = 200


class MarkedPatches:
    """Images of noise with one marked patch: green is full there, and its blue says the class, 1 to 3."""

    labels = ("none", "a", "b", "c")
    notes = ()
    rendered_split = None

    def __init__(self, often_at=None):
        rng = np.random.default_rng(1)
        self.places = rng.integers(0, 16, IMAGES)
        if often_at is not None:
            self.places[rng.random(IMAGES) < 0.9] = often_at
        self.classes = rng.integers(1, 4, IMAGES)

    def name(self, index):
        return f"image {index}"

    def class_numbers(self):
        return self.classes.tolist()

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        patches = np.random.default_rng(index).integers(0, 200, (16, 3), dtype=np.uint8)
        patches[:, 1] = 0
        patches[self.places[index]] = 250, 255, 80 * self.classes[index]
        rows = patches.reshape(4, 4, 3).repeat(8, axis=0).repeat(8, axis=1)
        return rows, int(self.classes[index])

    def marks(self, index):
        mask = np.zeros((4, 4), bool)
        mask.reshape(-1)[self.places[index]] = True
        return mask.repeat(8, axis=0).repeat(8, axis=1)


class WithoutMarks(MarkedPatches):
    marks = None


class ReadsTheMark(nn.Module):
    """Answers with the class of the mark if its patch is kept, else with class 0. Its score is red or, blind, the place."""

    def __init__(self, config, sign=1.0, is_blind=False):
        super().__init__()
        self.config, self.sign, self.is_blind = config, sign, is_blind
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images, budget=None, maps=False, choose=select_patches):
        patches = nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
        stages = []
        for keep in budget.keep:
            scores = self.sign * patches[..., 0]
            if self.is_blind:
                scores = torch.arange(float(patches.shape[1])).expand(len(images), -1)
            stages.append(StageMaps(scores, scores, scores))
            if keep < patches.shape[1]:
                patches = gather_tokens(patches, choose(scores, keep))
        marked = patches[..., 1] > 0.5
        classes = (patches[..., 2] * 255 / 80).round().long()
        answer = torch.where(marked, classes, 0).amax(dim=1)
        logits = nn.functional.one_hot(answer, 4).float()
        return GFTOutput(logits, stages) if maps else logits


@pytest.fixture(scope="module")
def measure(tiny_config):
    def run(model, images, budget=BUDGET):
        static, _ = learn_places(model, tiny_config, images, PLAIN)
        found = measure_rules(model, tiny_config, [budget], images, PLAIN, static)
        return found, budget_controls(budget.id, 100, found.rights[0], found.recalls[0], None)

    return run


@pytest.fixture(scope="module")
def by_sight(measure, tiny_config):
    return measure(ReadsTheMark(tiny_config), MarkedPatches())


def top1(found):
    return {rule.rule: rule.top1 for rule in found.rules}


def test_a_score_that_sees_the_mark_wins_and_random_patches_lose(by_sight):
    measured, found = by_sight
    assert measured.full.all() and measured.full.shape == (1, IMAGES)
    accuracy = top1(found)
    assert (accuracy[OWN], accuracy[ORACLE], accuracy[LEAST]) == (1, 1, 0)
    assert accuracy[RANDOM] == pytest.approx(6 / 16, abs=0.06)
    assert measured.rights[0][RANDOM].shape == (len(SEEDS), IMAGES)
    assert accuracy[STATIC] == pytest.approx(6 / 16, abs=0.12)
    assert accuracy[CENTRE] == pytest.approx(6 / 16, abs=0.12)
    assert (found.gain.value, found.gain.interval) == (1, (1, 1))
    test = {test.against: test for test in found.tests}
    assert set(test) == {RANDOM, STATIC, LEAST, CENTRE}
    assert test[RANDOM].difference.value == pytest.approx(1 - accuracy[RANDOM])
    assert len(test[RANDOM].p) == len(SEEDS) and test[RANDOM].largest_p == max(test[RANDOM].p) < 1e-9
    low, high = (100 * bound for bound in test[RANDOM].difference.interval)
    points = 100 * (1 - accuracy[RANDOM])
    assert found.verdict.startswith(
        f"On these 200 images the selection at 12-6 is worth {points:.1f} points ({low:.1f} to {high:.1f}) over random patches: "
    )


def test_recall_of_the_mark_is_the_accuracy_of_a_network_that_reads_it(by_sight):
    for rule in by_sight[1].rules:
        assert rule.recall == pytest.approx(rule.top1), rule.rule


def test_an_inverted_score_costs_what_it_should(measure, tiny_config):
    _, found = measure(ReadsTheMark(tiny_config, sign=-1), MarkedPatches())
    assert top1(found)[OWN] == 0 and top1(found)[LEAST] == 1
    assert found.gain.value < -0.3
    assert re.search(
        r"costs 3\d\.\d points \([23]\d\.\d to [34]\d\.\d\) against random patches: 0 of 200 right", found.verdict
    )


def test_a_blind_score_makes_no_difference(measure, tiny_config):
    _, found = measure(ReadsTheMark(tiny_config, is_blind=True), MarkedPatches())
    assert top1(found)[OWN] == pytest.approx(6 / 16, abs=0.12)
    assert "makes no measurable difference" in found.verdict and "p = " in found.verdict
    low, high = found.gain.interval
    assert low < 0 < high


def test_static_places_find_a_mark_that_is_nearly_always_at_one_place(measure, tiny_config):
    images = MarkedPatches(often_at=3)
    _, found = measure(ReadsTheMark(tiny_config), images)
    assert top1(found)[STATIC] > (images.places == 3).mean() >= 0.85
    places, count = learn_places(ReadsTheMark(tiny_config), tiny_config, images, PLAIN)
    assert count == IMAGES
    assert places.argmax(axis=1).tolist() == [3, 3]
    assert np.sort(places, axis=1).tolist() == [list(range(16))] * 2


def test_data_without_marks_has_no_oracle_and_no_gain(measure, tiny_config):
    measured, found = measure(ReadsTheMark(tiny_config), WithoutMarks())
    assert marks_of(WithoutMarks()) is None
    assert ORACLE not in top1(found) and found.gain is None and measured.recalls == [{}]
    assert all(rule.recall is None for rule in found.rules)
    assert "does not know where its marks are" in gain_text(found.to_json(), False)
    assert "of the mark kept" not in rule_table(found.to_json())[0]


def test_every_answer_is_that_of_the_image_alone(tiny_model, tiny_config):
    """One image at a time, with choices put together here: neither the batch nor the loop over rules changes an answer."""
    images, budget = Subset(MarkedPatches(), tuple(range(70))), TokenBudget((6, 6), 16)
    static, _ = learn_places(tiny_model, tiny_config, images, PLAIN)
    found = measure_rules(tiny_model, tiny_config, [budget], images, PLAIN, static).rights[0]
    first, centre = torch.from_numpy(static[0]), torch.from_numpy(centre_first((4, 4)))
    for index in range(len(images)):
        pixels, label = images[index]
        x = torch.from_numpy(PLAIN.batch([pixels]))
        random = [torch.from_numpy(random_places([index], 16, seed)[0]) for seed in SEEDS]
        ranks = {
            OWN: [lambda s, p, n: s],
            LEAST: [lambda s, p, n: -s],
            STATIC: [lambda s, p, n: first[p]],
            CENTRE: [lambda s, p, n: centre[p]],
            RANDOM: [lambda s, p, n, at=at: at[p] for at in random],
        }
        for name, draws in ranks.items():
            for draw, rank in enumerate(draws):
                with torch.no_grad():
                    answer = tiny_model(x, budget, choose=Following(rank)).argmax(dim=1).item()
                assert found[name][draw, index] == (answer == label), (name, index)


def test_static_places_are_mean_standardised_scores(tiny_model, tiny_config):
    images = Subset(MarkedPatches(), tuple(range(66)))
    with torch.no_grad():
        x = torch.from_numpy(PLAIN.batch([images[index][0] for index in range(66)]))
        stages = tiny_model(x, tiny_config.full_budget, maps=True).stages
    expected = []
    for stage in stages:
        scores = stage.scores.double()
        expected.append(((scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)).mean(0))
    places, _ = learn_places(tiny_model, tiny_config, images, PLAIN)
    assert np.array_equal(places.argsort(axis=1), torch.stack(expected).argsort(dim=1).numpy())


def test_only_stages_that_drop_patches_get_static_places(tiny_config):
    assert tiny_config.selecting_stages(BUDGET) == [0, 1]
    assert tiny_config.selecting_stages(TokenBudget((6, 6), 16)) == [0]
    assert tiny_config.selecting_stages(TokenBudget((16, 6), 16)) == [1]
    last = dataclasses.replace(tiny_config, stages=(1, 3))
    assert last.selecting_stages(BUDGET) == [0]
    assert last.selecting_stages(TokenBudget((16, 6), 16)) == []


def test_several_draws_have_one_accuracy_with_an_interval_over_images():
    rights = np.zeros((3, 100), bool)
    rights[:, :50] = True
    rights[0, 50:56] = True
    found = rule_accuracy(RANDOM, rights)
    assert found.right == (56, 50, 50)
    assert found.top1 == pytest.approx(0.52)
    assert 0.40 < found.interval[0] < 0.45 and 0.58 < found.interval[1] < 0.64
    assert rule_accuracy(OWN, rights[:1]).interval == pytest.approx((0.4623, 0.6533), abs=1e-3)


def test_the_table_has_every_rule_and_test(by_sight):
    titles, rows = rule_table(by_sight[1].to_json())
    assert [row[0] for row in rows] == [OWN, RANDOM, LEAST, STATIC, CENTRE, ORACLE]
    assert {len(row) for row in rows} == {len(titles)}
    assert [bool(row[-1]) for row in rows] == [False, True, True, True, True, False]
    assert rows[1][-1] == "< 0.001"


def test_a_budget_without_a_choice_that_matters_is_refused(tiny_config):
    with pytest.raises(ConfigError, match="16-16: keeps every patch, so nothing is selected; .*--budget 50%,50%"):
        require_dropping(tiny_config.full_budget, tiny_config)
    last = dataclasses.replace(tiny_config, stages=(1, 3))
    with pytest.raises(ConfigError, match="16-6: drops patches in the last block only"):
        require_dropping(TokenBudget((16, 6), 16), last)
    with pytest.raises(ConfigError, match="1 number for a model of 2 stages"):
        require_dropping(TokenBudget((6,), 16), tiny_config)


def test_a_selection_in_the_last_block_alone_changes_no_logits(tiny_config, make_model):
    """Why such a budget is refused."""
    model = make_model(dataclasses.replace(tiny_config, stages=(1, 3)))
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits = [model(x, TokenBudget((16, 6), 16), choose=Following(ranked(weight))) for weight in (1, -1)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("name", "why"), [("gft_base_published", "do not depend on the selection"), ("vit_tiny", "without stages")]
)
def test_models_without_a_selection_are_refused(name, why):
    config = preset(name)
    with pytest.raises(ConfigError, match=f"here: .*{why}"):
        require_selection(config, "here")
    info = CheckpointInfo(config, tuple(map(str, range(config.num_classes))), PLAIN)
    with pytest.raises(ConfigError, match=f"checkpoint somewhere: .*{why}"):
        controls(Checkpoint(info, nn.Identity(), "", Path("somewhere")))


def test_options_are_checked():
    with pytest.raises(ConfigError, match="threads must be 0"):
        ControlOptions(threads=-1)


def test_broken_logits_and_missing_images_are_errors(tiny_config):
    class Broken(ReadsTheMark):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * float("nan")

    images = Subset(MarkedPatches(), (0, 1))
    static = torch.arange(16).repeat(2, 1)
    with pytest.raises(CheckFailed, match="here at 16-16: logits of 2 of 2 images"):
        measure_rules(Broken(tiny_config), tiny_config, [BUDGET], images, PLAIN, static, where="here")

    class Unreadable(MarkedPatches):
        def __getitem__(self, index):
            raise DataError(f"image {index}: damaged")

    problems = []
    with pytest.raises(DataError, match="none of the images can be read"):
        measure_rules(
            ReadsTheMark(tiny_config),
            tiny_config,
            [BUDGET],
            Subset(Unreadable(), (0, 1)),
            PLAIN,
            static,
            (),
            problems.append,
        )
    assert problems == ["image 0: damaged", "image 1: damaged"]
    with pytest.raises(DataError, match="static places"):
        learn_places(ReadsTheMark(tiny_config), tiny_config, Subset(Unreadable(), (0,)), PLAIN)


def test_the_program_of_the_page_runs(capsys):
    page = (Path(__file__).parents[1] / "docs/controls.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    exec(compile(program.replace("images=64", "images=8"), "docs/controls.md", "exec"), {})
    assert re.fullmatch(r"On these 8 images the selection at 72-72-72 .*\.\n", capsys.readouterr().out)


def test_the_page_lists_every_rule():
    page = (Path(__file__).parents[1] / "docs/controls.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| ([a-z][^|]*?) \|", page.partition("## The figures")[0], re.MULTILINE)[1:]
    assert names == [OWN, RANDOM, LEAST, STATIC, CENTRE, ORACLE, "all, S pixels"]
    assert LOWER not in names


def test_a_checkpoint_on_data_with_marks_has_an_oracle(tiny_model, tiny_info, monkeypatch):
    images = Subset(MarkedPatches(), tuple(range(20)))
    monkeypatch.setattr("gft_edge.data.for_model.open_images", lambda *_: Subset(images, tuple(range(20))))
    monkeypatch.setattr("gft_edge.control_rules.open_images", lambda *_: images)
    info = dataclasses.replace(tiny_info, labels=MarkedPatches.labels)
    checkpoint = Checkpoint(info, tiny_model, "", Path("somewhere"))
    found = controls(checkpoint, ControlOptions("typefaces", budgets=("50%,25%",)))
    assert found.has_marks and found.images == 20
    (at,) = found.budgets
    recalls = {rule.rule: rule.recall for rule in at.rules}
    assert list(recalls) == [OWN, RANDOM, LEAST, STATIC, CENTRE, ORACLE, LOWER]
    assert recalls.pop(LOWER) is None and recalls[ORACLE] == 1
    assert all(0 <= recall < 1 for rule, recall in recalls.items() if rule != ORACLE)
    titles, rows = rule_table(at.to_json())
    assert titles[4] == "of the mark kept" and rows[5][4] == "100%"
    assert gain_text(at.to_json(), True).startswith(("normalised gain G = ", "no normalised gain G: the oracle is not"))
