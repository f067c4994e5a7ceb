import json

import pytest

from edge_perception.core.answers import Answer, Request, parse_request
from edge_perception.errors import RequestError

LONGEST = 4096


def test_plain_text_is_the_question() -> None:
    assert parse_request("  Is the way free?\n", LONGEST) == Request("Is the way free?")


def test_json_carries_every_field() -> None:
    message = {
        "prompt": "Which?", "id": 7, "region": [0, 1, 20, 30], "max_tokens": 5,
        "deadline_ms": 250, "choices": ["yes", "no"],
    }  # fmt: skip
    assert parse_request(json.dumps(message), LONGEST) == Request(
        "Which?", "7", (0, 1, 20, 30), 5, 250, None, ("yes", "no")
    )


def test_empty_prompt_with_an_id_cancels() -> None:
    assert parse_request('{"id": "a", "prompt": " "}', LONGEST).cancels
    assert parse_request('{"id": "a"}', LONGEST).cancels
    assert not parse_request('{"id": "a", "prompt": "x"}', LONGEST).cancels


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty prompt"),
        ('{"prompt": " "}', "empty prompt"),
        ("x" * (LONGEST + 1), "too long"),
        ("é" * (LONGEST // 2 + 1), "too long"),  # bytes count, not characters
        ("{" * 1_000_000, "too long"),
        ("{broken", "no JSON"),
        ("{" + '"a":{' * 500, "no JSON"),
        ('{"prompt": NaN}', "no JSON"),
        ("caf\ufffd", "not UTF-8"),
        ('{"prompt": "\\ud800"}', "surrogates"),
        ('{"prompt": "x", "promt": 1}', "unknown fields"),
        ('{"prompt": 3}', "field prompt"),
        ('{"prompt": "x", "max_tokens": 0}', "max_tokens"),
        ('{"prompt": "x", "max_tokens": true}', "field max_tokens"),
        ('{"prompt": "x", "max_tokens": 2.5}', "field max_tokens"),
        ('{"prompt": "x", "deadline_ms": 0}', "deadline_ms"),
        ('{"prompt": "x", "deadline_ms": -5}', "deadline_ms"),
        ('{"prompt": "x", "region": [0, 0, 5]}', "region"),
        ('{"prompt": "x", "region": [5, 0, 5, 9]}', "region"),
        ('{"prompt": "x", "region": [0, 0, "a", 9]}', "region"),
        ('{"prompt": "x", "region": [0, -1, 5, 9]}', "region"),
        ('{"prompt": "x", "region": [0, 0, 1e999, 9]}', "region"),
        (f'{{"prompt": "x", "region": [0, 0, 5, 1{"0" * 400}]}}', "region"),
        ('{"prompt": "x", "choices": ["a", ""]}', "choices"),
        ('{"prompt": "x", "choices": [1]}', "choices"),
        ('{"prompt": "x", "choices": ["a"], "schema": {}}', "one of them"),
        ('{"prompt": "x", "schema": "string"}', "field schema"),
        ('{"prompt": "x", "id": "' + "i" * 200 + '"}', "id"),
        ('["prompt"]', None),  # begins with no brace: a question like any other
    ],
)
def test_message_that_is_no_request_is_refused(text: str, told: str | None) -> None:
    if told is None:
        assert parse_request(text, LONGEST).prompt == text
        return
    with pytest.raises(RequestError, match=told):
        parse_request(text, 2 * LONGEST if "a" * 3 in text else LONGEST)


def test_refusal_tells_the_id_that_could_be_read() -> None:
    with pytest.raises(RequestError) as caught:
        parse_request('{"id": "q7", "prompt": "x", "max_tokens": -1}', LONGEST)
    assert caught.value.request_id == "q7"


def test_answer_survives_its_message() -> None:
    answer = Answer(
        "q", "What?", "two plants", "end", stamp_ns=12_000_000_034, frame_id="front",
        stale_ms=31.5, ttft_ms=20.0, tokens=3, tokens_per_s=50.0,
        grounded=(0, 2), grounded_stamp_ns=12_000_000_000,
    )  # fmt: skip
    message = answer.to_json()
    assert json.loads(message)["stamp"] == {"sec": 12, "nanosec": 34}
    assert Answer.from_json(message) == answer


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stamp": 5}', '{"stamp": {"sec": 1}}', "null"])
def test_foreign_message_is_no_answer(text: str) -> None:
    with pytest.raises(RequestError, match="not an answer"):
        Answer.from_json(text)
