"""Teaching the score: targets against plain loops, what the losses reach, the gate at its start, trainings, the command."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gft_edge.benchmarks.experiments import twins
from gft_edge.benchmarks.experiments.teaching import command, training
from gft_edge.benchmarks.experiments.teaching.figures import figures, lead
from gft_edge.benchmarks.experiments.teaching.gates import add_gates
from gft_edge.benchmarks.experiments.teaching.measuring import from_texts, measure
from gft_edge.benchmarks.experiments.teaching.page import page
from gft_edge.benchmarks.experiments.teaching.plan import ARMS, PLAIN, TWIN, Plan, fitted
from gft_edge.benchmarks.experiments.teaching.study import open_study, results
from gft_edge.benchmarks.experiments.teaching.targets import TARGETS
from gft_edge.benchmarks.experiments.teaching.training import fine_tune, pruned_logits
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from gft_edge.config.model import preset
from gft_edge.control_checkpoint import measure_rules
from gft_edge.control_results import ORACLE, OWN, RANDOM
from gft_edge.data.datasets import open_images
from gft_edge.data.marks import marks_of
from gft_edge.data.scenes import LABELS
from gft_edge.distill.alignment import alignment_loss, trace
from gft_edge.distill.losses import standardised
from gft_edge.errors import CheckFailed, ConfigError, exit_code
from gft_edge.model.build import build_model
from gft_edge.model.scores import SCORES
from gft_edge.preprocess import PreprocessSpec

BUDGET = TokenBudget((16, 8), 64)
PLAN = Plan(
    data="scenes,share=0.1,distractors=1",
    size=64,
    stages=(1, 2),
    budgets=("16,8", "8,4"),
    steps=4,
    batch_size=3,
    warmup_steps=1,
    taught=2,
    images=20,
)


@pytest.fixture(scope="module")
def config():
    return preset("gft_scenes", image_size=64, embed_dim=32, depth=4, num_heads=2, stages=(1, 2), budget=BUDGET)


@pytest.fixture
def model(config, make_model):
    return make_model(config)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, 64, 64, generator=generator), torch.tensor([0, 5, 9])


@pytest.fixture(scope="module")
def checkpoint(config, make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teaching") / "tiny"
    save_checkpoint(folder, CheckpointInfo(config, LABELS, PreprocessSpec(64, 64)), make_model(config))
    return folder


@pytest.fixture
def study(checkpoint, tmp_path):
    return open_study(str(checkpoint), tmp_path / "study", PLAN)


# --- targets


def slow_pass(model, images, labels):
    """Inputs of the blocks and attention matrices, with their gradients, by matrices that are written out."""
    heads = model.config.num_heads
    x = model.embed(images).detach().requires_grad_()
    inputs, matrices = [], []
    for block in model.blocks:
        x.retain_grad()
        inputs.append(x)
        rows = block.attn.qkv(block.norm1(x)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = rows.unbind(0)
        matrix = (torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5).softmax(dim=3)
        matrix.retain_grad()
        matrices.append(matrix)
        x = x + block.attn.proj(torch.einsum("bhij,bhjd->bihd", matrix, v).flatten(2))
        x = x + block.mlp(block.norm2(x))
    F.cross_entropy(model.head(model.norm(x)[:, 0]), labels, reduction="sum").backward()
    model.zero_grad()
    return inputs, matrices


@pytest.fixture(scope="module")
def traced(config, make_model, batch):
    """Traces, and what the slow pass found, in float64."""
    model = make_model(config).double()
    images, labels = batch[0].double(), batch[1]
    return trace(model, images, labels), slow_pass(model, images, labels)


def slow_taylor(inputs, matrices, number):
    x, gradient = inputs[number - 1].detach(), inputs[number - 1].grad
    return [[abs(float(x[b, j] @ gradient[b, j])) for j in range(1, x.shape[1])] for b in range(len(x))]


def slow_gradient_attention(inputs, matrices, number):
    found = torch.zeros_like(matrices[0][:, 0, 0])
    for matrix in matrices[number:]:
        for head in range(matrix.shape[1]):
            found += torch.relu(-matrix[:, head] * matrix.grad[:, head]).sum(dim=1)
    return found[:, 1:].detach()


def slow_rollout(inputs, matrices, number):
    product = torch.eye(matrices[0].shape[-1], dtype=torch.float64)
    for matrix in matrices[number:]:  # the later block stands on the left
        product = (matrix.mean(dim=1) + torch.eye(matrix.shape[-1])) / 2 @ product
    return product[:, 0, 1:].detach()


SLOW = {
    "taylor": slow_taylor,
    "taylor-behind": lambda inputs, matrices, number: slow_taylor(inputs, matrices, number + 1),
    "gradient-attention": slow_gradient_attention,
    "rollout": slow_rollout,
}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_equals_its_slow_form(traced, config, name, number):
    traces, (inputs, matrices) = traced
    found = TARGETS[name](traces, number, config.num_heads, 1)
    expected = torch.as_tensor(SLOW[name](inputs, matrices, number), dtype=torch.float64)
    assert found.shape == (3, 64)
    assert float(found.min()) >= 0
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6 * float(expected.max()))


def test_the_trace_begins_at_the_first_selecting_block_and_leaves_the_model_as_it_was(config, make_model, batch):
    model = make_model(
        preset("gft_scenes", image_size=64, embed_dim=32, depth=4, num_heads=2, stages=(2, 3), budget=BUDGET)
    )
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert list(trace(model, *batch)) == [2, 3, 4]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "running means"
    assert not any(block._forward_pre_hooks or block.attn.attend._forward_hooks for block in model.blocks)


# --- alignment loss


def test_the_gradient_of_the_alignment_reaches_queries_and_keys_of_the_selecting_blocks_alone(model, batch):
    traces = trace(model, *batch)
    for number in model.config.stages:
        block = model.blocks[number - 1]
        alignment_loss(block, traces[number].tokens, TARGETS["taylor"](traces, number, 2, 1), 1.0).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {f"blocks.{place}.attn.qkv.{kind}" for place in (0, 1) for kind in ("weight", "bias")}
    for place in (0, 1):
        q, k, v = model.blocks[place].attn.qkv.weight.grad.chunk(3)
        assert q.abs().max() > 0
        assert k.abs().max() > 0
        assert not v.any()
        q, k, v = model.blocks[place].attn.qkv.bias.grad.chunk(3)
        assert k.abs().max() < 1e-4 * q.abs().max(), "one vector added to every key changes no ranking by columns"
        assert not v.any()


def test_the_alignment_is_zero_at_its_target_and_learns_another_one(model, batch):
    block = model.blocks[0]
    tokens = trace(model, *batch)[1].tokens
    q, k, _ = block.attn.project(block.norm1(tokens))
    scores = SCORES["column-mean"](q, k, 2, 1).detach()
    values = (scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True)
    assert torch.allclose(standardised(scores), values, atol=1e-4)
    own = (values / 0.7).softmax(dim=1)
    assert alignment_loss(block, tokens, 5 * own, 0.7).item() == pytest.approx(0, abs=1e-5)
    other = (-values).softmax(dim=1)
    first = alignment_loss(block, tokens, other, 1.0).item()
    expected = float((other * (other.log() - values.log_softmax(dim=1))).sum(dim=1).mean())
    assert first == pytest.approx(expected, rel=1e-3)
    optimizer = torch.optim.Adam([block.attn.qkv.weight], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        alignment_loss(block, tokens, other, 1.0).backward()
        optimizer.step()
    assert alignment_loss(block, tokens, other, 1.0).item() < 0.3 * first


def test_equal_scores_and_a_target_of_zeros_give_a_finite_loss(model, batch):
    block = model.blocks[0]
    with torch.no_grad():
        block.attn.qkv.weight.zero_()
    tokens = trace(model, *batch)[1].tokens
    loss = alignment_loss(block, tokens, torch.zeros(3, 64), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5), "both are uniform"
    assert torch.isfinite(block.attn.qkv.weight.grad).all()


# --- gate


@pytest.mark.parametrize("keep", [(64, 64), (16, 8), (4, 4)])
def test_a_gate_at_its_start_changes_no_bit(model, batch, config, keep):
    budget = TokenBudget(keep, 64)
    with torch.no_grad():
        before = model(batch[0], budget)
        gates = add_gates(model)
        assert torch.equal(model(batch[0], budget), before)
        for gate in gates:
            gate.fill_(0.5)
        assert not torch.allclose(model(batch[0], budget), before, atol=1e-3)
    assert len(gates) == 2


def test_the_loss_reaches_the_score_through_an_open_gate_alone(model, batch):
    add_gates(model)
    attn = model.blocks[0].attn
    z = model.blocks[0].norm1(model.embed(batch[0])).detach()

    def gradients(opening):
        model.zero_grad()
        with torch.no_grad():
            attn.gate.fill_(opening)
        attn.project(z)[2].square().sum().backward()
        return attn.qkv.weight.grad.chunk(3)

    assert all(part.abs().max() > 0 for part in gradients(0.5))
    q, k, v = gradients(0.0)
    assert not q.any()
    assert not k.any()
    assert v.abs().max() > 0
    assert attn.gate.grad.abs() > 0, "it opens"


def test_gates_are_trained_at_their_own_rate_and_left_out_of_a_last_block(config, make_model, study, tmp_path):
    last = preset("gft_scenes", image_size=64, embed_dim=32, depth=4, num_heads=2, stages=(2, 4), budget=BUDGET)
    assert len(add_gates(make_model(last))) == 1
    tuned, _ = fine_tune(study.start, ARMS["gate"], 0, PLAN, tmp_path / "s.pt")
    assert all(float(block.attn.gate.abs()) > 1e-3 for block in tuned.blocks[:2])


# --- training


class Stopped(Exception):
    pass


def stops_after(count):
    def track(items, title, total):
        for number, item in enumerate(items):
            if number == count:
                raise Stopped
            yield item

    return track


@pytest.mark.parametrize("arm", [PLAIN, TWIN, "taylor", "gate"])
def test_a_training_depends_on_its_seed_and_resumes_exactly(study, tmp_path, monkeypatch, arm):
    monkeypatch.setattr(training, "SAVE_EVERY", 2)

    def trained(seed, name, **options):
        return fine_tune(study.start, ARMS[arm], seed, PLAN, tmp_path / name, **options)

    whole, curve = trained(0, "whole")
    with pytest.raises(Stopped):
        trained(0, "cut", track=stops_after(3))
    resumed, again = trained(0, "cut")
    assert curve == again
    state, other = whole.state_dict(), trained(1, "other")[0].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.state_dict().items())
    assert not torch.equal(state["head.weight"], other["head.weight"])
    assert not whole.training


def test_the_twin_keeps_new_random_patches_in_every_image_and_step(config):
    kept = []

    class Fake:
        def __init__(self):
            self.config = config

        def __call__(self, pixels, budget, choose=None):
            if choose is None:
                kept.append(None)
                return
            scores = torch.zeros(len(pixels), 64)
            first = choose(scores, 16)
            choose(scores[:, :16], 8)
            kept.append((first, choose.positions))

    pixels = torch.zeros(5, 3, 64, 64)
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        pruned_logits(Fake(), ARMS[TWIN], pixels, BUDGET, seed, step)
    sets = [{tuple(row.tolist()) for row in first} for first, _ in kept]
    assert all(len(one) == 5 for one in sets), "images differ"
    assert len(set.union(*sets[:3])) == 15, "steps and seeds differ"
    assert torch.equal(kept[0][0], kept[3][0])
    assert kept[0][1].shape == (5, 8)
    pruned_logits(Fake(), ARMS[PLAIN], pixels, BUDGET, 0, 0)
    assert kept[-1] is None, "the model's own choice"


def test_every_arm_sees_the_same_images_and_a_bad_loss_stops_it(study, tmp_path, monkeypatch):
    seen = []
    original = training.pruned_logits

    def spy(model, arm, pixels, budget, seed, step):
        seen.append((pixels.sum().item(), budget.id))
        return original(model, arm, pixels, budget, seed, step)

    monkeypatch.setattr(training, "pruned_logits", spy)
    for arm in (PLAIN, "rollout"):
        fine_tune(study.start, ARMS[arm], 0, PLAN, tmp_path / arm)
    assert seen[:4] == seen[4:]
    assert {budget for _, budget in seen} <= {"16-8", "8-4"}
    monkeypatch.setattr(training, "pruned_logits", lambda *args: torch.full((3, 16), torch.nan))
    with pytest.raises(CheckFailed, match="plain.*step 0"):
        fine_tune(study.start, ARMS[PLAIN], 0, PLAN, tmp_path / "nan")


# --- measuring


def test_answers_and_recalls_are_those_of_controls(model, config):
    images = open_images(PLAN.data, "test", 70, 64)
    spec, budgets = PreprocessSpec(64, 64), [BUDGET, TokenBudget((4, 4), 64)]
    found = measure(model, budgets, images, spec, marks_of(images))
    assert "embed" not in vars(model), "embeds anew after measuring"
    expected = measure_rules(model, config, budgets, images, spec, np.zeros((2, 64), np.int64))
    for number, budget in enumerate(budgets):
        for rule, draws in ((OWN, 1), (RANDOM, 3), (ORACLE, 1)):
            right = from_texts(found[budget.id]["right"][rule])
            assert right.shape == (draws, 70)
            assert np.array_equal(right, expected.rights[number][rule])
            assert found[budget.id]["recall"][rule] == pytest.approx(expected.recalls[number][rule])


def test_a_larger_position_embedding_is_cut_out_in_its_middle(make_model):
    large = preset(
        "gft_scenes", image_size=96, embed_dim=32, depth=2, num_heads=2, stages=(1,), budget=TokenBudget((9,), 144)
    )
    weights = make_model(large).state_dict()
    plan = Plan(data=PLAN.data, size=64, stages=(1,), budgets=("8",))
    new, found = fitted(weights, large, plan, "x")
    for row in range(8):
        for column in range(8):
            old = 1 + (row + 2) * 12 + column + 2
            assert torch.equal(found["pos_embed"][0, 1 + row * 8 + column], weights["pos_embed"][0, old])
    build_model(new).load_state_dict(found)


# --- figures and page


def made_study():
    """Four images; own answers of three arms, two seeds."""

    def one(own, random, oracle="1111"):
        right = {OWN: [own], RANDOM: random, ORACLE: [oracle]}
        return {"budgets": {"8": {"right": right, "recall": {OWN: 0.5, RANDOM: 0.1, ORACLE: 1.0}}}, "curve": [0.5]}

    none = ["0000"] * 3
    runs = {
        PLAIN: {"0": one("1100", none), "1": one("1000", none)},
        TWIN: {"0": one("1111", ["1000", "0000", "0000"]), "1": one("0000", ["1100", "1000", "0000"])},
        "taylor": {"0": one("1110", none), "1": one("1110", none)},
        "gradient-attention": {"0": one("1111", none), "1": one("0111", none)},
    }
    start = {**one("1000", none), "full": "1110"}
    start["targets"] = {"8": {"right": {name: ["1110"] for name in TARGETS}, "recall": dict.fromkeys(TARGETS, 0.75)}}
    return {
        "plan": PLAN.to_json(),
        "budgets": ["8"],
        "patches": 64,
        "start": start,
        "runs": runs,
        "checkpoint": "c",
        "is_taught": False,
    }


def test_figures_of_a_study_worked_out_by_hand():
    study = made_study()
    found = figures(study)
    taylor = found["arms"]["taylor"]["8"]
    assert taylor["own"] == 0.75
    assert taylor["random"] == 0
    assert found["arms"][PLAIN]["8"]["own"] == 0.375
    assert found["arms"][PLAIN]["8"]["over_plain"] is None
    assert taylor["over_plain"]["value"] == 0.375
    assert taylor["over_plain"]["by_seed"] == [0.25, 0.5]
    assert taylor["gain"]["value"] == pytest.approx(0.75)
    over = lead(study["runs"], "taylor", "8")
    assert over.by_seed == pytest.approx((0.75 - 1 / 12, 0.75 - 3 / 12)), (
        "the twin with random patches, mean of its draws"
    )
    assert over.p == 1.0, "the largest: 1110 against 1100"
    assert found["met"]
    assert set(found["targets"]) == {"taylor"}
    assert found["targets"]["taylor"]["8"]["by_seed"] == [-0.25, 0.0]


def test_the_page_has_every_arm_budget_and_target():
    study = made_study()
    text = page({"tiny": {**study, "figures": figures(study)}})
    for title in ("score not taught", "random patches", "taught taylor", *TARGETS):
        assert f"| {title} |" in text
    assert "### 8 patches kept" in text
    assert "| taught taylor | 2 | 75.0% | 0.0% | 100.0% | 50% | 0.75" in text
    assert "+25.0, +50.0" in text
    assert "| training | to 4 |\n| --- | --- |\n| score not taught | 50.0% |" in text
    assert "`c`, was not taught a ranking before; it has 75.0% of the images right with every patch" in text
    assert "### Other targets against gradient-attention" in text
    assert "| taught taylor | 8 | -12.5 (" in text and "| -25.0, +0.0 | 1 |" in text


@pytest.mark.parametrize(
    ("interval", "by_seed", "better"),
    [([0.1, 0.5], [0.2, 0.3], "yes"), ([0.0, 0.5], [0.2, 0.3], ""), ([0.1, 0.5], [0.2, 0.0], "")],
)
def test_better_needs_the_interval_and_every_seed(interval, by_seed, better):
    study = made_study()
    found = figures(study)
    over = found["arms"]["taylor"]["8"]["over_plain"]
    over["interval"], over["by_seed"] = interval, by_seed
    row = next(
        line
        for line in page({"tiny": {**study, "figures": found}}).splitlines()
        if line.startswith("| taught taylor | 2 |")
    )
    assert row.split("|")[-2].strip() == better


@pytest.mark.parametrize(("recipe", "taught"), [({}, False), ({"align": 0.0}, False), ({"align": 1.0}, True)])
def test_the_page_says_whether_the_start_was_taught(checkpoint, tmp_path, recipe, taught):
    opened = load_checkpoint(str(checkpoint))
    info = dataclasses.replace(opened.info, provenance={"recipe": {"train": recipe}})
    save_checkpoint(tmp_path / "start", info, opened.model)
    plan = dataclasses.replace(PLAN, images=16)
    assert open_study(str(tmp_path / "start"), tmp_path / "out", plan).start.is_taught is taught


# --- the command


def main(*arguments):
    return exit_code(lambda: command.main("about", [str(argument) for argument in arguments]))


SMALL = ("--data", PLAN.data, "--size", 64, "--steps", 2, "--batch", 2, "--images", 16, "--seeds", 1)


def test_the_command_trains_measures_resumes_and_writes_a_page(checkpoint, tmp_path, capsys):
    out = tmp_path / "study"
    given = (
        checkpoint,
        "--out",
        out,
        *SMALL,
        "--stages",
        "1,2",
        "--budgets",
        "16,8",
        "--arms",
        "plain,twin,rollout,gate",
    )
    assert main(*given, "--page", tmp_path / "TEACHING.md") == 0
    printed = capsys.readouterr()
    assert "### 16-8 patches kept" in printed.out
    assert "rollout, seed 0" in printed.err
    written = json.loads((out / "results.json").read_text())
    assert set(written["runs"]) == {"plain", "twin", "rollout", "gate"}
    assert len(written["runs"]["gate"]["0"]["gates"]) == 2
    assert set(written["figures"]["leads"]) == {"plain", "rollout", "gate"}
    assert len(written["start"]["full"]) == 16
    assert (tmp_path / "TEACHING.md").read_text().startswith("# Teaching the score")
    assert not list(out.glob("*.pt"))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert main(*given) == 0
    assert "seed 0" not in capsys.readouterr().err, "nothing is trained twice"
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert main(*given[:-3], "8,4", *given[-2:]) == 2
    assert "another plan or checkpoint" in capsys.readouterr().err
    study = open_study(str(checkpoint), out, Plan(**{**written["plan"], "stages": (1, 2), "budgets": ("16,8",)}))
    assert results(study)["runs"] == written["runs"]


def test_the_twins_are_cut_in_the_first_block(checkpoint, tmp_path, capsys):
    given = [checkpoint, "--out", tmp_path / "twins", *SMALL, "--budgets", "8"]
    assert exit_code(lambda: twins.main([str(one) for one in given])) == 0
    assert "Chosen patches against the twin" in capsys.readouterr().out
    written = json.loads((tmp_path / "twins" / "results.json").read_text())
    assert written["plan"]["stages"] == [1]
    assert set(written["runs"]) == {"plain", "twin", "gradient-attention"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--arms", "plain,tailor"), "'tailor'.*taylor"),
        (("--arms", "twin"), "'plain'.*missing"),
        (("--size", "60"), "60 px.*multiple of 8 px up to 64 px"),
        (("--size", "96"), "96 px.*up to 64 px"),
        (("--stages", "first"), "--stages first"),
        (("--stages", "9"), "1 to 4"),
        (("--budgets", "64"), "keeps every patch"),
        (("--seeds", "0"), "--seeds must be 1"),
        (("--steps", "0"), "steps must be above 0"),
        (("--data", "typefaces"), "typefaces.*marks are not known"),
    ],
)
def test_bad_options_are_refused_in_one_line(checkpoint, tmp_path, capsys, changes, words):
    given = [checkpoint, "--out", tmp_path / "study", *SMALL, "--stages", "1", "--budgets", "8", *changes]
    assert main(*given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error)


def test_a_checkpoint_of_other_classes_is_refused(config, make_model, tmp_path, capsys):
    labels = tuple(f"class {number}" for number in range(16))
    save_checkpoint(tmp_path / "c", CheckpointInfo(config, labels, PreprocessSpec(64, 64)), make_model(config))
    assert main(tmp_path / "c", "--out", tmp_path / "o", *SMALL, "--budgets", "8") == 2
    assert "its classes are not those of" in capsys.readouterr().err


def test_more_taught_images_than_a_batch_are_refused():
    with pytest.raises(ConfigError, match="at most the batch of 4"):
        Plan(batch_size=4, taught=5)


def test_the_start_of_a_study_is_the_checkpoint(study, checkpoint):
    model, gates = study.start.model(ARMS[PLAIN])
    weights = load_checkpoint(checkpoint).model.state_dict()
    assert not gates
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
