"""An interrupted training says how to resume it, and resumes."""

import json
import signal

import pytest

RECIPE = """
[model]
preset = "gft_typeface"
image_size = 32
[data]
train_images = 40
eval_images = 16
num_workers = 0
[train]
steps = 6
batch_size = 4
warmup_steps = 1
checkpoint_every = {every}
"""


@pytest.fixture
def train(gft_edge, tmp_path, monkeypatch):
    """Runs ``train``, with a signal before the given step."""

    def run(*arguments, every=2, stop_before=None, number=signal.SIGINT):
        (tmp_path / "recipe.toml").write_text(RECIPE.format(every=every))

        def track(items, title, total):
            for item in items:
                if item == stop_before:
                    signal.raise_signal(number)
                yield item

        monkeypatch.setattr("gft_edge.cli.console.track", track)
        return gft_edge("train", "--config", tmp_path / "recipe.toml", "--out", tmp_path / "run", *arguments)

    return run


def _last(done):
    return done.err.splitlines()[-1]


def _steps(tmp_path):
    return [json.loads(line)["step"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_stopped_and_resumed(train, tmp_path, number, code, word):
    done = train(stop_before=5, number=number)
    assert (done.code, done.out) == (code, "")
    assert _last(done).startswith(f"gft-edge train: {word}; --resume")
    assert _last(done).endswith("step 4")
    assert _steps(tmp_path) == [1, 2, 3, 4, 5]
    again = train()
    assert again.code == 2
    assert "a training saved at step 4; resume it with --resume" in again.err
    assert train("--resume").code == 0
    assert _steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_stopped_before_the_first_state(train, tmp_path):
    done = train(every=0, stop_before=3)
    assert done.code == 130
    assert "no state was saved yet; --resume starts from the beginning" in _last(done)
    again = train(every=0)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "restart it with --resume" in again.err
    resumed = train("--resume", every=0)
    assert resumed.code == 0
    assert "no state was saved yet; the training starts from the beginning" in resumed.err
    assert _steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_folders_of_others_are_not_started_in(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    assert "not empty" in train().err
    assert "state.pt does not exist" in train("--resume").err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_another_recipe_is_refused_with_what_differs(train):
    assert train().code == 0
    done = train("--resume", "--set", "train.lr=0.5", "--set", "data.eval_images=8")
    assert done.code == 2
    assert "data.eval_images is 8, was 16; train.lr is 0.5, was 0.001" in _last(done)


def test_a_recipe_of_the_package_is_found_by_its_name(gft_edge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("image-folder", "image-folder.toml", "recipes/image-folder.toml"):
        done = gft_edge("train", "--config", name, "--out", "run", "--set", "data.name=gone")
        assert (done.code, done.err.count("\n")) == (2, 2)
        assert f"recipe {name}: no such file here; using the recipe of that name in the package" in done.err
        assert "data gone: no such folder" in done.err
    for name in ("folder", "other/image-folder.toml"):
        done = gft_edge("train", "--config", name, "--out", "run")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"recipe {name}: cannot be read" in done.err


def test_a_folder_of_images_needs_no_recipe(gft_edge, animals, tmp_path):
    small = ("--set", "model.image_size=32", "--set", "model.budget=12,8,4", "--set", "train.steps=2")
    done = gft_edge("train", "--data", animals, "--out", tmp_path / "run", *small, "--json")
    assert done.code == 0
    lines = done.err.splitlines()
    assert lines[0].startswith("recipe image-folder of the package (no GPU here): 2 steps of 16 for ")
    estimate = next(number for number, line in enumerate(lines) if line.startswith("about "))
    assert estimate < next(number for number, line in enumerate(lines) if line.startswith("step "))
    assert done.json["steps"] == 2
    assert gft_edge("evaluate", tmp_path / "run", "--data", animals, "--images", 8).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "scenes"), ("scenes", "folders of images", "--config")),
        (("--data", "/nowhere"), ("/nowhere", "no such folder")),
        ((), ("--data --config", "required")),
        (("--data", "a", "--config", "b"), ("--config", "not allowed with", "--data")),
    ],
)
def test_what_is_trained_on_must_be_clear(gft_edge, tmp_path, arguments, words):
    done = gft_edge("train", *arguments, "--out", tmp_path / "run")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert all(word in done.err for word in words)
    assert not (tmp_path / "run").exists()
