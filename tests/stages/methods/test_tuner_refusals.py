"""What no tuner can do, refused by the key that asks for it."""

import pytest
from model_cases import loaded_model, stage_two_of
from tuner_cases import make

from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.storage.errors import RecipeError

pytestmark = pytest.mark.usefixtures("norms_in_float64")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"ops": ["qery"]}, r"tuner\.ops: no op 'qery'.*did you mean query\?.*the late layers have query, key"),
        ("lora", {"ops": ["ffn"]}, r"tuner\.ops: no op 'ffn' that this tuner can tune"),
        ("lora", {"ops": ["cross_query"]}, r"tuner\.ops: no op 'cross_query'"),
        ("adapter", {"ops": ["query"]}, r"tuner\.ops: no op 'query'.*the late layers have attention, ffn"),
        ("lora", {"layers": [0]}, r"tuner\.layers: 0 is no late layer; these are 3"),
        ("lora", {"rank": 0}, r"tuner\.rank: .*0"),
        ("u_prefix", {"ops": ["ffn"], "heads": 5}, r"tuner\.heads: 5 does not divide the width 32 of encoder\.3\.ffn"),
        ("u_prompt", {"ops": ["block"], "joint": True}, r"tuner\.joint: encoder\.3\.block"),
        ("lorra", {}, r"tuner\.name: no tuner named 'lorra' \(did you mean lora\?\)"),
    ],
)
def test_impossible_options_are_refused_by_key(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make("bert", name, drawn=False, **options)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"tuner": "lora", "mode": "full"}, r"late\.mode: full trains the late layers themselves"),
        ({"tuner": "lora", "late": 0, "mode": "frozen"}, r"tuner\.name: lora tunes late layers, and late\.blocks is 0"),
        ({"tuner_options": {"rank": 4}}, r"tuner\.name: options without a tuner; there are adapter"),
    ],
)
def test_recipes_that_leave_nothing_to_tune_are_refused(recipe: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        stage_two_of(loaded_model("bert"), StageTwoRecipe(**recipe))


def test_layers_and_ops_may_be_chosen() -> None:
    model = make("bert", "lora", late=2, ops=["key"], layers=[3])
    assert [op.name for op, _ in model.tuner.placed] == ["encoder.3.key"]
