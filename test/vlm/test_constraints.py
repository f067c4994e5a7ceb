import json

import pytest
from fake_vlm import FakeFeatures, FakeModel

pytest.importorskip("llguidance")
from edge_perception.core.sampling import GREEDY
from edge_perception.errors import RequestError
from edge_perception.vlm.answering import Constraint, Limits, Question, Vocabulary, complete
from edge_perception.vlm.constraints import constrain_to_choices, constrain_to_schema

VOCABULARY = FakeModel().vocabulary


def write(constraint: Constraint, number: int = 42) -> tuple[str, str]:
    model = FakeModel()
    source = model.begin(FakeFeatures(number, 224), Question("number?"), GREEDY)
    completion = complete(model, source, Limits(200), constraint=constraint)
    return completion.text.strip(), completion.reason


def test_answer_is_one_of_the_choices() -> None:
    assert write(constrain_to_choices(VOCABULARY, ("no", "yes"))) == ("no", "end")


def test_model_keeps_its_word_where_it_is_a_choice() -> None:
    assert write(constrain_to_choices(VOCABULARY, ("7", "42", "423"))) == ("42", "end")


@pytest.mark.parametrize("choice", ['say "x"', "naïve 图", "a|b", "back\\slash", "tab\there"])
def test_choices_are_taken_to_the_letter(choice: str) -> None:
    assert write(constrain_to_choices(VOCABULARY, (choice,))) == (choice, "end")


def test_answer_is_json_by_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "free": {"type": "boolean"},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["free", "count"],
        "additionalProperties": False,
    }
    text, reason = write(constrain_to_schema(VOCABULARY, schema))
    assert reason == "end"
    assert json.loads(text).keys() == {"free", "count"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "thing"},  # no such type
        {"type": "integer", "minimum": 5, "maximum": 2},  # nothing between
        {"allOf": [{"type": "string"}, {"type": "integer"}]},  # nothing is both
        {"enum": []},
        {"$ref": "http://nowhere/schema"},  # nothing is fetched
        {"not": {}},  # not known
        {"type": "string", "pattern": "("},  # no regular expression
        {"description": "x" * 70_000},
    ],
)
def test_schema_that_cannot_be_met_is_refused(schema: dict) -> None:
    with pytest.raises(RequestError, match=r"constrained as asked|too long|cannot be read"):
        constrain_to_schema(VOCABULARY, schema)


def nested(depth: int) -> dict:
    schema: dict = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("depth", [600, 1500], ids=["for llguidance", "for JSON's own writer"])
def test_schema_that_is_too_deep_is_refused(depth: int) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        constrain_to_schema(VOCABULARY, nested(depth))


def test_vocabulary_wider_than_the_tokenizer_allows_no_padding() -> None:
    wide = Vocabulary(VOCABULARY.tokenizer_json, 300, VOCABULARY.end_tokens)
    mask = constrain_to_choices(wide, ("yes",)).mask()
    assert mask.shape == (300,)
    assert set(mask.nonzero()[0]) == {ord("y"), ord(" ")}
