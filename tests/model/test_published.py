"""The published variant against numbers from the published code, in float64."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint, num_parameters
from gft_edge.cli.main import main
from gft_edge.config.model import GFTConfig, preset
from gft_edge.model.build import build_model
from gft_edge.model.published import PublishedStage

VIT = GFTConfig("test_vit", 160, 4, variant="timm")
EXACT = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "published_gft_a.npz") as file:
        return dict(file)


def fill(module: torch.nn.Module, salt: str) -> None:
    for name, parameter in module.named_parameters():
        noise = np.random.RandomState(zlib.crc32((salt + name).encode())).standard_normal(tuple(parameter.shape))
        ones = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "smooth.weight"))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(float(ones) + 0.02 * noise))


@pytest.fixture(scope="module")
def published():
    model = build_model(preset("gft_base_published")).double().eval()
    fill(model, "a/")
    return model


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.RandomState(11).standard_normal((2, 3, 224, 224)))


@pytest.fixture(scope="module")
@torch.no_grad()
def output(published, images):
    return published(images, maps=True)


def test_parameters_are_as_many_as_published(published, golden):
    assert num_parameters(published) == golden["n_params"]


def test_logits_importance_and_selection_equal_the_published_ones(output, golden):
    np.testing.assert_allclose(output.logits, golden["logits"], **EXACT)
    local = None
    for stage, maps in enumerate(output.stages):
        np.testing.assert_allclose(maps.importance, golden[f"importance{stage}"], **EXACT)
        top = torch.from_numpy(golden[f"topk{stage}"])
        local = top if local is None else local.gather(1, top)
        assert torch.equal(maps.kept, local)


@torch.no_grad()
def test_stage_outputs_equal_the_published_ones(published, images, golden):
    vit = published.base_model
    x = vit.patch_embed(images)
    x = torch.cat((vit.cls_token.expand(2, -1, -1), x), 1) + vit.pos_embed
    for block in vit.blocks[:8]:
        x = block(x)
    x = x[:, 1:]
    for number, stage in enumerate(published.hierarchical_blocks):
        y = stage(x)
        np.testing.assert_allclose(y[..., :8], golden[f"tokens_out{number}_head8"], **EXACT)
        kept = torch.from_numpy(golden[f"topk{number}"])
        chosen = y.gather(1, kept[..., None].expand(-1, -1, y.shape[-1]))
        np.testing.assert_allclose(stage(x, kept), chosen, **EXACT)
        x = chosen


@torch.no_grad()
def test_one_stage_and_its_moving_average_equal_the_published_ones(golden):
    stage = PublishedStage(64, 4).double().eval()
    fill(stage, "a/stage.")
    x = torch.from_numpy(golden["stage_x"])
    assert np.array_equal(golden["stage_x"], np.random.RandomState(12).standard_normal((2, 196, 64)))
    np.testing.assert_allclose(stage(x), golden["stage_y"], **EXACT)
    np.testing.assert_allclose(stage.importance(x), golden["stage_importance"], **EXACT)
    stage.train()
    np.testing.assert_allclose(stage.importance(x), golden["stage_importance_train_step1"], **EXACT)
    np.testing.assert_allclose(stage.importance(1.5 * x + 0.1), golden["stage_importance_train_step2"], **EXACT)


@torch.no_grad()
def test_logits_do_not_depend_on_the_budget(small_state, make_model):
    model = make_model(small_state[0])
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    for keep in ((36, 36, 36), (20, 10, 2)):
        other = model(images, TokenBudget(keep, 36), maps=True)
        assert torch.equal(other.logits, logits)
        assert not torch.equal(other.stages[0].kept[:, :2], other.stages[1].kept[:, :2]) or keep[0] == 36


def test_stages_get_no_gradient_from_the_logits(published):
    model = build_model(
        preset("gft_base_published", image_size=32, embed_dim=64, num_heads=1, depth=3, stages=(2, 2), patch_size=16,
               budget=TokenBudget((3, 2), 4), num_classes=3)
    )  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    model(images).sum().backward()
    assert all(p.grad is None for p in model.hierarchical_blocks.parameters())
    assert model.classifier.weight.grad is not None
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(model.classifier(features), model(images))


@pytest.fixture(scope="module")
def small_state():
    """A published state dict of small sizes, with the stale buffers a trained one has."""
    config = preset(
        "gft_base_published", image_size=48, patch_size=8, embed_dim=64, num_heads=1, depth=9, num_classes=5
    )
    torch.manual_seed(3)
    state = build_model(config).state_dict()
    stale = {f"hierarchical_blocks.{i}.ema_grad": torch.zeros(16, n) for i, n in enumerate((36, 27, 18))}
    return config, state, stale


@pytest.mark.parametrize("form", ["bare", "stale", "nested", "parallel", "compiled", "lightning"])
def test_import_makes_a_checkpoint_of_the_same_weights(small_state, tmp_path, capsys, form):
    config, state, stale = small_state
    saved = {
        "bare": state,
        "stale": {**state, **stale},
        "nested": {"epoch": 3, "model_state_dict": {**state, **stale}},
        "parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "compiled": {
            "net": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
            "acc": np.float64(1),
        },
        "lightning": {"state_dict": {**{f"model.{n}": t for n, t in state.items()}, "loss.weight": torch.ones(5)}},
    }[form]
    torch.save(saved, tmp_path / "gft.pth")
    assert main(["import-published", str(tmp_path / "gft.pth"), "--out", str(tmp_path / "ckpt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 5
    checkpoint = load_checkpoint(tmp_path / "ckpt")
    assert checkpoint.info.model == config
    loaded = checkpoint.model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert "do not depend on the token budget" in (tmp_path / "ckpt/card.md").read_text()


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"junk", "cannot be read as a file of tensors"),
        (Evil(), "cannot be read as a file of tensors"),
        ([1, 2], "holds a list, not a state dict"),
        ({"a": torch.zeros(2)}, "not a state dict of the published GFT: missing"),
    ],
)
def test_import_refuses_what_is_no_published_state_dict(tmp_path, capsys, content, message):
    file = tmp_path / "x.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    assert main(["import-published", str(file), "--out", str(tmp_path / "ckpt")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert "code ran" not in captured.out
    assert not (tmp_path / "ckpt").exists()


def test_import_says_what_a_plain_vit_is_and_what_it_reads(tmp_path, capsys):
    plain = {name.removeprefix("network."): t for name, t in build_model(VIT).state_dict().items()}
    torch.save({"model": plain}, tmp_path / "x.pth")
    assert main(["import-published", str(tmp_path / "x.pth"), "--out", str(tmp_path / "ckpt")]) == 2
    message = capsys.readouterr().err
    assert "it looks like a plain timm ViT (embed dim 64, depth 6, 4 classes)" in message
    assert "reads only checkpoints of the published GFT code" in message
    assert message.count("\n") == 1


def test_import_refuses_weights_that_are_no_numbers(small_state, tmp_path, capsys):
    _, state, _ = small_state
    torch.save({**state, "classifier.bias": torch.full((5,), float("nan"))}, tmp_path / "x.pth")
    assert main(["import-published", str(tmp_path / "x.pth"), "--out", str(tmp_path / "ckpt")]) == 2
    assert "classifier.bias holds NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "ckpt").exists()


def test_import_takes_labels_of_a_file(small_state, tmp_path, capsys):
    _, state, _ = small_state
    torch.save(state, tmp_path / "x.pth")
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfant\r\nbee \r\ncat\r\ndog\r\nemu\r\n\r\n")
    command = ["import-published", str(tmp_path / "x.pth"), "--labels", str(tmp_path / "labels.txt"), "--out"]
    assert main([*command, str(tmp_path / "ckpt")]) == 0
    assert load_checkpoint(tmp_path / "ckpt").info.labels == ("ant", "bee", "cat", "dog", "emu")
    (tmp_path / "labels.txt").write_text("background\nant\nbee\ncat\ndog\nemu\n")
    capsys.readouterr()
    assert main([*command, str(tmp_path / "more")]) == 2
    assert "holds 6 names, the model has 5 classes; its first, 'background'" in capsys.readouterr().err


def test_import_names_a_tensor_that_does_not_fit(small_state, tmp_path, capsys):
    _, state, _ = small_state
    torch.save({**state, "classifier.bias": torch.zeros(4)}, tmp_path / "x.pth")
    assert main(["import-published", str(tmp_path / "x.pth"), "--out", str(tmp_path / "ckpt")]) == 2
    assert "classifier.bias is (4,), expected (5,)" in capsys.readouterr().err
