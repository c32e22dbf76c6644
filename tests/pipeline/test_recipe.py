"""Recipes: what is refused and how it is said, what counts as the same run."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sherl_cache.pipeline.recipe import Recipe, load_recipe, parse_recipe, shipped_recipes
from sherl_cache.storage.errors import RecipeError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epohs=3", "unknown key train.epohs; did you mean train.epochs?"),
        ("trian.epochs=3", "unknown key trian; did you mean train?"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1, not 0"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("late.mode=half", "late.mode: input should be 'frozen' or 'full', not 'half'"),
        ("train.epochs.more=1", "train.epochs is a value, not a section"),
        ("train.epochs", "give it as key=value"),
        ("train=[", "is not a YAML value"),
        ("objective=[]", "objective: tuple should have at least 1 item"),
        ("objective.weight=0", "objective.0.weight: input should be greater than 0"),
        ("objective=[{}, {weight: -1}]", "objective.1.weight: input should be greater than 0"),
        ("train.precision=float16", "train.precision: input should be 'float32' or 'bfloat16'"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    document = ("--set", override)
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe("sherl", (document[1],))


def test_two_mistakes_are_both_named() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"train": {"epohs": 3}, "laet": {}}, "my.yaml")
    assert "train.epohs" in str(caught.value)
    assert "laet" in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean sherl-paper"):
        load_recipe("sherl-papr")


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_survives_its_own_yaml(name: str) -> None:
    recipe = load_recipe(name)
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), name) == recipe


def test_flags_win_over_set_over_file(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: 2, learning_rate: 1e-4}\nseed: 5\n")
    recipe = load_recipe(str(path), ("train.epochs=3", "seed=6"), **{"seed": 7, "data.seed": None})
    assert (recipe.train.epochs, recipe.seed, recipe.train.learning_rate) == (3, 7, 1e-4)


def test_options_of_a_method_stay_raw() -> None:
    recipe = load_recipe("sherl", ("fusion.reduction=4", "fusion.encoder={reduction: 2}"))
    assert recipe.fusion.options == {"reduction": 4, "encoder": {"reduction": 2}}


@given(st.sampled_from([("data", "threads", 3), ("data", "read_budget", 10**9), ("train", "checkpoint_steps", 7)]))
def test_speed_knobs_do_not_change_the_run(knob: tuple[str, str, int]) -> None:
    section, key, value = knob
    assert load_recipe("sherl", (f"{section}.{key}={value}",)).run_name("f") == load_recipe("sherl").run_name("f")


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.seed=1",
        "train.epochs=9",
        "late.mode=frozen",
        "fusion.reduction=4",
        "tuner={name: lora}",
        "tuner={name: lora, rank: 4}",
        "data.window=2",
        "dropout.head=0.2",
        "objective.weight=2",
        "objective=[{}, {name: barlow}]",
        "train.micro_batch_examples=4",
        "train.precision=bfloat16",
        "train.compile=true",
    ],
)
def test_what_moves_numbers_changes_the_run(override: str) -> None:
    assert load_recipe("sherl", (override,)).run_name("f") != load_recipe("sherl").run_name("f")


def test_late_blocks_train_unless_a_tuner_trains_on_them() -> None:
    assert Recipe().late_mode == "full"
    assert load_recipe("lora").late_mode == "frozen"
    assert load_recipe("sherl", ("late.mode=null",)).run_name("f") == load_recipe("sherl").run_name("f")
    assert load_recipe("lora", ("late.mode=frozen",)).run_name("f") == load_recipe("lora").run_name("f")
    assert load_recipe("lora", ("tuner.rank=8",)) == load_recipe("lora")
    assert "tuner" not in load_recipe("sherl").identity()
    assert load_recipe("lora", ("tuner=null",)).tuner == Recipe().tuner


def test_another_store_is_another_run() -> None:
    recipe = Recipe()
    assert recipe.run_name("one") != recipe.run_name("two")


def test_batches_are_cut_in_one_way() -> None:
    recipe = load_recipe("sherl", ("data.batch_tokens=512",))
    assert (recipe.data.batch_examples, recipe.data.batch_tokens) == (None, 512)
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), "again") == recipe
    assert recipe.run_name("f") != load_recipe("sherl").run_name("f")
    for both in (("data.batch_tokens=512", "data.batch_examples=32"), ("data.batch_examples=null",)):
        with pytest.raises(RecipeError, match="batch_examples or by batch_tokens"):
            load_recipe("sherl", both)


def test_one_objective_is_a_list_of_one() -> None:
    """In both forms, and after a passage through YAML."""
    one = load_recipe("sherl", ("objective={name: classification, weight: 0.5, label_smoothing: 0.1}",))
    listed = load_recipe("sherl", ("objective=[{name: classification, weight: 0.5, label_smoothing: 0.1}]",))
    assert one == listed == parse_recipe(yaml.safe_load(one.to_yaml()), "again")
    assert one.run_name("f") == listed.run_name("f")
    assert (one.objective[0].weight, one.objective[0].options) == (0.5, {"label_smoothing": 0.1})
    schema = Recipe.model_json_schema()["properties"]["objective"]
    assert {part.get("type", "mapping") for part in schema["anyOf"]} == {"mapping", "array"}
