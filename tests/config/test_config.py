from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from gft_edge.budget import NO_BUDGET, TokenBudget
from gft_edge.checkpoint import builtin_path
from gft_edge.config.model import PRESETS, GFTConfig, preset
from gft_edge.config.reader import load_dataclass, parse_scalar
from gft_edge.config.recipe import ModelSection, Recipe, load_recipe
from gft_edge.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture
def write(tmp_path):
    def write_recipe(text, name="recipe.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_recipe


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = preset(name)
    assert GFTConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_presets_keep_the_published_counts():
    assert preset("gft_base").budget.id == "147-98-49"
    assert preset("gft_base").stages == (3, 5, 7)
    assert (preset("gft_typeface").stages, preset("gft_typeface").num_patches) == ((2, 3, 4), 144)
    assert preset("gft_base_published").stages == (8, 8, 8)
    assert preset("gft_base").num_prefix_tokens == 1


@pytest.mark.parametrize("name", ["gft_base", "gft_small", "gft_tiny"])
def test_presets_at_448_differ_in_image_stages_and_budget_alone(name):
    large = preset(f"{name}_448")
    assert large == preset(name, image_size=448, stages=(2, 4, 6), budget=TokenBudget((255, 127, 63), 784))
    assert large.budget.align(64, large.num_prefix_tokens) == large.budget
    assert large.budget.keep[0] + large.num_prefix_tokens <= 511


def test_preset_scales_its_budget_with_the_image():
    assert preset("gft_base", image_size=448).budget == TokenBudget((588, 392, 196), 784)
    given = TokenBudget((100, 50, 20), 784)
    assert preset("gft_base", image_size=448, budget=given).budget == given


def test_unknown_preset_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown preset 'gft_bas' \(did you mean 'gft_base'\?\); there are: gft_base, "
    ):
        preset("gft_bas")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size must be a positive integer, found 0"),
        ({"depth": 12.0}, "depth must be a positive integer, found 12.0"),
        ({"num_classes": True}, "num_classes must be a positive integer, found True"),
        ({"patch_size": 10}, "image_size 224 is not a multiple of patch_size 10"),
        ({"image_size": 448}, "budget is for 196 patches, the image has 784"),
        ({"num_heads": 5}, "embed_dim 768 is not a multiple of num_heads 5"),
        ({"stages": (2, 4, 13)}, r"stages must be blocks 1 to 12, found \[2, 4, 13\]"),
        ({"stages": (0, 4, 6)}, "stages must be blocks 1 to 12"),
        ({"stages": (), "budget": NO_BUDGET}, "stages must name at least one block"),
        ({"num_prefix_tokens": 0}, "num_prefix_tokens must be a positive integer, found 0"),
        ({"num_prefix_tokens": True}, "num_prefix_tokens must be a positive integer, found True"),
        (
            {"score": "colum-mean"},
            r"unknown score 'colum-mean' \(did you mean 'column-mean'\?\); there are: column-mean, column-gala, row-gala, "
            "class-row, random",
        ),
        ({"variant": "published", "stages": (3, 3, 3), "score": "random"}, "has its own score and one class token"),
        (
            {"variant": "published", "stages": (3, 3, 3), "num_prefix_tokens": 2},
            "has its own score and one class token",
        ),
        ({"variant": "published"}, "stages of variant 'published' all stand after the same block"),
        ({"stages": (4, 2, 6)}, "stages must be increasing"),
        ({"stages": (2, 2, 6)}, "stages must be increasing"),
        ({"stages": (2, 4)}, "budget 147-98-49 has 3 counts for 2 stages"),
        ({"variant": "other"}, "variant must be one of 'focal', 'published', 'timm', 'transfg', found 'other'"),
        ({"stem": "other"}, "stem must be 'linear' or 'conv', found 'other'"),
        ({"num_heads": 5, "stages": (4, 2), "stem": "x"}, "num_heads 5; stages .*increasing.*; budget .*; stem must"),
    ],
)
def test_bad_configurations_are_refused_with_every_problem(changes, message):
    with pytest.raises(ConfigError, match=f"model configuration: .*{message}"):
        dataclasses.replace(preset("gft_base"), **changes)


def test_malformed_model_configuration_names_missing_and_unknown_keys():
    data = preset("gft_tiny").to_json()
    data["embed_dims"] = data.pop("embed_dim")
    del data["num_classes"]
    with pytest.raises(
        ConfigError, match=r"unknown key embed_dims \(did you mean 'embed_dim'\?\); missing key num_classes"
    ):
        GFTConfig.from_json(data)


def test_a_model_of_the_old_form_gets_one_line_with_the_remedies():
    data = preset("gft_tiny").to_json()
    del data["score"], data["num_prefix_tokens"]
    message = (
        "model: is a focal model of the old form, with attention layers between its blocks; this version selects inside "
        "the blocks; train it again, or give the weights of its backbone to gft-edge adopt"
    )
    with pytest.raises(ConfigError, match=message):
        GFTConfig.from_json(data)
    for name in ("gft_base_published", "vit_tiny"):
        data = preset(name).to_json()
        del data["score"], data["num_prefix_tokens"]
        assert GFTConfig.from_json(data) == preset(name), "other variants are as they were"


def test_baselines_have_no_score_and_no_tokens_of_their_own():
    with pytest.raises(ConfigError, match="has no stages: leave out score, num_prefix_tokens"):
        dataclasses.replace(preset("vit_tiny"), score="random", num_prefix_tokens=2)


def test_distilled_models_are_told_by_their_name():
    distilled = dataclasses.replace(preset("gft_tiny"), backbone="deit_tiny_distilled_patch16_224", num_prefix_tokens=2)
    assert distilled.is_distilled
    assert not preset("gft_tiny").is_distilled


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_load_and_fit_a_model(path):
    recipe = load_recipe(path)
    assert recipe.model.resolve(16).num_classes == 16
    assert load_dataclass(Recipe, recipe.to_json(), "again") == recipe


@pytest.mark.parametrize("path", sorted((builtin_path() / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_the_package_are_those_of_the_repository(path):
    """The wheel has no folder recipes/."""
    assert path.read_bytes() == (RECIPES[0].parent / path.name).read_bytes()


def test_there_are_shipped_recipes():
    assert RECIPES


def test_model_section_resolves_shares_on_the_image_it_asks_for():
    section = ModelSection("gft_tiny", image_size=448, stages=(3, 6), budget="50%,25%")
    config = section.resolve(7)
    assert (config.budget.id, config.num_patches, config.stages, config.num_classes) == ("392-196", 784, (3, 6), 7)


def test_model_section_chooses_score_and_tokens_before_the_patches(write):
    text = "[model]\npreset = 'gft_small'\nbackbone = 'vit_small_patch14_reg4_dinov2'\npatch_size = 14\n"
    recipe = load_recipe(write(text + "image_size = 112\nnum_prefix_tokens = 5\nscore = 'class-row'\n"))
    config = recipe.model.resolve(7)
    assert (config.score, config.num_prefix_tokens, config.num_patches) == ("class-row", 5, 64)
    with pytest.raises(ConfigError, match=r"unknown score 'clas-row' \(did you mean 'class-row'\?\)"):
        load_recipe(write("[model]\nscore = 'clas-row'\n")).model.resolve(7)
    with pytest.raises(ConfigError, match="has no stages: leave out score"):
        ModelSection("vit_tiny", score="random").resolve(7)


def test_empty_recipe_is_the_default(write):
    assert load_recipe(write("")) == Recipe()


def test_toml_and_json_mean_the_same(write):
    toml = write("[model]\npreset = 'gft_tiny'\nstages = [1, 2, 3]\n[train]\nlr = 1\nelastic = false\n")
    data = {"model": {"preset": "gft_tiny", "stages": [1, 2, 3]}, "train": {"lr": 1, "elastic": False}}
    recipe = load_recipe(toml)
    assert load_recipe(write(json.dumps(data), "recipe.json")) == recipe
    assert recipe.model.stages == (1, 2, 3)
    assert recipe.train.lr == 1.0
    assert isinstance(recipe.train.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstep = 5", r"unknown key train.step \(did you mean 'steps'\?\)"),
        ("[trian]\nsteps = 5", r"unknown key trian \(did you mean 'train'\?\)"),
        ("[train]\nqqq = 5", r"unknown key train.qqq$"),
        ("train = 5", "train.?: expected a table, found 5"),
        ("[train]\nsteps = 'many'", "train.steps must be of type int, found 'many'"),
        ("[train]\nsteps = 5.0", r"train.steps must be of type int, found 5\.0"),
        ("[train]\nsteps = true", "train.steps must be of type int, found True"),
        ("[train]\nlr = true", "train.lr must be of type float, found True"),
        ("[train]\nelastic = 1", "train.elastic must be of type bool, found 1"),
        (
            "[train]\nprecision = 'bf61'",
            r"train.precision must be one of 'fp32', 'bf16', 'fp16', found 'bf61' \(did you mean 'bf16'",
        ),
        ("[model]\nstages = 2", "model.stages must be a list, found 2"),
        ("[model]\nstages = [2, 'x']", r"model.stages\[1\] must be of type int, found 'x'"),
        ("[train]\nsteps = 0", "train: steps must be at least 1, found 0"),
        ("[train]\nlr = 0.0", "train: lr must be above 0"),
        ("[train]\nlabel_smoothing = 1.0", "label_smoothing must be 0 to below 1"),
        ("[train]\nelastic_start = 1.5", "elastic_start must be 0 to 1"),
        ("[train]\nelastic_samples = 3", "elastic_samples must be 1 or 2"),
        ("[train]\nsmallest_ratio = 0.0", "smallest_ratio must be above 0 and at most 1"),
        ("[train]\nseed = -1", "seed must not be negative"),
        ("[train]\nsteps = 0\nseed = -1", "steps must be at least 1.*; seed must not be negative"),
        (
            "[train]\nstep = 5\nlr = 'x'\n[data]\nnames = 'y'",
            "data.names .*; unknown key train.step.*; train.lr must be",
        ),
        ("[train", r"recipe .*recipe\.toml: "),
    ],
)
def test_bad_recipes_are_refused_with_every_problem(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(text))


@pytest.mark.parametrize(
    "setting",
    [
        "train.lr=NaN",
        "train.lr=Infinity",
        "train.min_lr=-1.0",
        "train.weight_decay=-1.0",
        "train.grad_clip=-1.0",
        "data.eval_images=0",
        "data.num_workers=-1",
    ],
)
def test_values_no_training_can_use_are_refused_when_the_recipe_is_read(write, setting):
    key = setting.split("=")[0].split(".")[1]
    with pytest.raises(ConfigError, match=f"{key} must"):
        load_recipe(write(""), [setting])


@pytest.mark.parametrize("setting", ["train.mixup=0.2", "train.cutmix=1.0"])
def test_mixup_needs_an_even_batch(write, setting):
    assert load_recipe(write(""), [setting, "train.batch_size=2"]).train.batch_size == 2
    with pytest.raises(ConfigError, match="batch_size must be even with mixup or cutmix"):
        load_recipe(write(""), [setting, "train.batch_size=1"])


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("train.lr=0.5", "train", "lr", 0.5),
        ("train.steps = 7", "train", "steps", 7),
        ("train.elastic=false", "train", "elastic", False),
        ("train.init=builtin", "train", "init", "builtin"),
        ("train.init=null", "train", "init", None),
        ("data.name=/some/folder=odd", "data", "name", "/some/folder=odd"),
        ("model.stages=[1,2,4]", "model", "stages", (1, 2, 4)),
        ("model.budget=75%,50%,25%", "model", "budget", "75%,50%,25%"),
    ],
)
def test_set_overrides_the_file_and_nothing_else(write, setting, section, key, value):
    path = write("[train]\nlr = 0.25\nsteps = 3\ninit = 'x'\n")
    recipe, plain = load_recipe(path, [setting]), load_recipe(path)
    changed = dataclasses.replace(getattr(plain, section), **{key: value})
    assert recipe == dataclasses.replace(plain, **{section: changed})
    assert recipe != plain


def test_the_last_set_wins(write):
    assert load_recipe(write(""), ["train.steps=5", "train.steps=6"]).train.steps == 6


@pytest.mark.parametrize("setting", ["steps=5", "train.steps", "a.b.c=5", ""])
def test_malformed_set_is_refused_with_an_example(write, setting):
    with pytest.raises(ConfigError, match=r"expected section\.key=value, for example train\.lr=0\.001"):
        load_recipe(write(""), [setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [("train.steps=many", "train.steps must be of type int"), ("train.stepz=5", "did you mean 'steps'")],
)
def test_set_is_checked_like_the_file(write, setting, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(""), [setting])


@pytest.mark.parametrize(("text", "name"), [("[]", "recipe.json"), ("train = 5", "recipe.toml")])
@pytest.mark.parametrize("settings", [[], ["train.steps=5"]], ids=["plain", "set"])
def test_values_in_place_of_tables_are_refused(write, text, name, settings):
    with pytest.raises(ConfigError, match="expected a table, found"):
        load_recipe(write(text, name), settings)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["recipe.toml", "recipe.json"])
def test_a_recipe_of_windows_is_read(tmp_path, encoding, name):
    text = "[train]\r\nsteps = 7\r\n" if name.endswith("toml") else '{"train": {"steps": 7}}'
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert load_recipe(tmp_path / name).train.steps == 7


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("r.toml", "a = " + "[" * 100_000, "nested too deeply"),
        ("r.json", "[" * 100_000, "nested too deeply"),
        ("r.toml", "a" + ".a" * 50_000 + " = 1", "a key of more than 32 parts"),
        ("r.toml", "[" + "'a'." * 50_000 + "a]\n", "a key of more than 32 parts"),
        ("r.toml", "[train]\nsteps = '" + "9" * 1_000_000 + "'", "train.steps must be of type int, found '999"),
        ("r.toml", "k" * 1_000_000 + " = 1", "unknown key kkk"),
    ],
    ids=["deep toml", "deep json", "long key", "long table", "long value", "long name"],
)
def test_endless_recipes_are_one_short_line(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError) as error:
        load_recipe(tmp_path / name)
    assert says in str(error.value)
    assert len(str(error.value).removeprefix(str(tmp_path))) < 500
    assert time.process_time() - start < 5


def test_an_endless_setting_is_a_text():
    assert parse_scalar("[" * 100_000) == "[" * 100_000


def test_dots_in_texts_and_comments_are_no_key(tmp_path):
    (tmp_path / "r.toml").write_text("# " + "." * 100 + "\n[data]\nname = '" + "a." * 100 + "' # " + "." * 99)
    assert load_recipe(tmp_path / "r.toml").data.name == "a." * 100


def test_missing_or_binary_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe .*none\.toml: cannot be read"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "binary.toml")


def test_step_in_backward_says_what_it_needs(write):
    needs = "step_in_backward needs elastic = false, accumulate = 1, grad_clip = 0, another precision than fp16"
    with pytest.raises(ConfigError, match=needs):
        load_recipe(write("[train]\nstep_in_backward = true\naccumulate = 2\nprecision = 'fp16'"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": (2,)}, "has no stages: leave out stages"),
        ({"patch_size": 16, "depth": 2}, "leave out patch_size, depth"),
        ({"budget": TokenBudget((4,), 16)}, "leave out budget"),
        ({"stem": "conv"}, "leave out stem"),
        ({"image_size": 0}, "image_size must be a positive integer"),
    ],
)
def test_a_baseline_is_its_backbone_as_it_is(changes, message):
    with pytest.raises(ConfigError, match=message):
        preset("resnet50", **changes)


def test_a_baseline_has_no_budget_to_ask_for():
    config = preset("vit_base")
    assert config.parse_budget("full") == config.parse_budget("all") == NO_BUDGET
    with pytest.raises(ConfigError, match="variant 'timm' has no stages; leave it out"):
        config.parse_budget("147,98,49")
    with pytest.raises(ConfigError, match="preset 'vit_base' has no stages; leave it out"):
        ModelSection("vit_base", budget="147,98,49").resolve(10)


def test_a_gft_needs_stages():
    with pytest.raises(ConfigError, match="stages must name at least one block"):
        preset("gft_base", stages=(), budget=NO_BUDGET)


def test_an_integer_too_large_for_a_number_is_a_problem_of_its_field():
    with pytest.raises(ConfigError, match=r"lr is too large for a number"):
        load_dataclass(Recipe, {"train": {"lr": 10**400}}, "recipe")
