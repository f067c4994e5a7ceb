import time

import numpy as np
import pytest
from fake_vlm import FakeModel, draw_number

from edge_perception.core.answers import Request
from edge_perception.errors import DeviceMemoryError
from edge_perception.vlm.answerer import Answerer, AnswerSettings
from edge_perception.vlm.inbox import Asked
from edge_perception.vlm.vision_cache import Picture, VisionCache


def picture(number: int = 5) -> Picture:
    return Picture(draw_number(number), number * 1000, "front", time.monotonic_ns())


def answerer(model: FakeModel | None = None, threshold: float = 8.0, **settings) -> Answerer:
    made = model or FakeModel()
    return Answerer(made, VisionCache(threshold), AnswerSettings(**settings))


def ask(prompt: str = "What is this?", **fields) -> Asked:
    return Asked(Request(prompt, **fields))


def test_answer_tells_what_was_seen_and_when() -> None:
    answer = answerer().answer(ask(id="q"), picture(77))
    assert (answer.id, answer.text, answer.finish_reason) == ("q", "this is frame 77", "end")
    assert (answer.stamp_ns, answer.frame_id) == (77_000, "front")
    assert answer.tokens == len("this is frame 77")
    assert answer.ttft_ms > 0
    assert answer.stale_ms > 0
    assert answer.image_side_px == 224


def test_unchanged_picture_is_encoded_once() -> None:
    made = answerer()
    assert not made.answer(ask(), picture(5)).features_cached
    assert made.answer(ask("number?"), picture(5)).features_cached
    assert not made.answer(ask(), picture(6)).features_cached
    assert made.model.encoded == [224, 224]


def test_region_is_what_is_looked_at() -> None:
    pixels = np.concatenate((draw_number(3), draw_number(9)), axis=1)
    both = Picture(pixels, 0, "", time.monotonic_ns())
    answer = answerer().answer(ask("number?", region=(160, 0, 320, 120)), both)
    assert answer.text == "9"


@pytest.mark.parametrize(
    ("request_fields", "told"),
    [
        ({"region": (900, 0, 950, 10)}, "outside the image"),
        ({"prompt": "x" * 5000}, "does not fit"),
        ({"schema": {"type": "thing"}}, "constrained"),
        ({"schema": {"type": "integer", "minimum": 5, "maximum": 2}}, "constrained"),
    ],
)
def test_request_that_cannot_be_met_is_answered_with_an_error(request_fields, told) -> None:
    if "schema" in request_fields:
        pytest.importorskip("llguidance")
    answer = answerer().answer(ask(**request_fields), picture())
    assert answer.finish_reason == "error"
    assert told in answer.error
    assert answer.text == ""


def test_choice_is_the_whole_answer() -> None:
    pytest.importorskip("llguidance")
    answer = answerer().answer(ask("number?", choices=("4", "5")), picture(5))
    assert (answer.text, answer.finish_reason) == ("5", "end")


def test_prompt_may_ask_for_fewer_tokens_but_not_for_more() -> None:
    made = answerer(max_tokens=6)
    assert made.answer(ask(max_tokens=4), picture()).text == "this"
    assert made.answer(ask(max_tokens=400), picture()).tokens == 6


def test_deadline_lowers_the_resolution() -> None:
    made = answerer()
    made.pace.add_encoding(224, 100_000)
    made.pace.add_encoding(112, 10)
    made.pace.add_answer(112, 1, 1)
    assert made.answer(ask(deadline_ms=500_000), picture(1)).image_side_px == 224
    answer = made.answer(ask(deadline_ms=50_000), picture(2))
    assert (answer.image_side_px, answer.text) == (112, "this is frame 2")


def test_deadline_cuts_the_answer_and_says_so() -> None:
    made = answerer()
    made.pace.add_answer(224, 1, 10_000)
    answer = made.answer(ask(deadline_ms=60_000), picture(2))
    assert (answer.finish_reason, answer.text) == ("deadline", "this i")


def test_deadline_that_nears_ends_the_writing() -> None:
    model = FakeModel()
    made = answerer(model)
    asked = ask(deadline_ms=3_600_000)
    left = [4]

    def on_token() -> None:
        left[0] -= 1
        if left[0] == 0:  # an hour passes
            asked.arrived_ns -= 3_600_000 * 10**6

    model.on_token = on_token
    answer = made.answer(asked, picture(2))
    assert (answer.finish_reason, answer.text) == ("deadline", "this")


def test_encoding_that_takes_too_long_is_told_before_the_deadline_passes() -> None:
    model = FakeModel()
    made = answerer(model)
    made.pace.add_encoding(224, 1)
    made.pace.add_answer(224, 60_000, 1)
    asked = ask(deadline_ms=120_000)
    encode = model.encode_image

    def slow(*given):
        asked.arrived_ns -= 100_000 * 10**6  # a hundred seconds pass
        return encode(*given)

    model.encode_image = slow
    answer = made.answer(asked, picture(2))
    assert (answer.finish_reason, answer.text, answer.image_side_px) == ("deadline", "", 224)


def test_deadline_that_allows_no_token_is_answered_at_once() -> None:
    made = answerer()
    made.pace.add_encoding(112, 60_000)
    answer = made.answer(ask(deadline_ms=1000), picture(2))
    assert (answer.finish_reason, answer.text, made.model.encoded) == ("deadline", "", [])


def test_warm_up_measures_every_resolution() -> None:
    made = answerer(FakeModel(encode_s=0.01, token_s=0.001))
    made.warm_up()
    assert made.pace.token_ms >= 1
    assert all(made.pace.first_token_ms(side, encoded=False) > 1 for side in (112, 224))


def test_short_memory_lowers_the_resolution_for_good() -> None:
    made = answerer(FakeModel(memory_px=112))
    assert made.answer(ask(), picture()).image_side_px == 112
    assert made.answer(ask(), picture(8)).image_side_px == 112
    assert made.memory_failures == 1


def test_memory_that_ends_while_writing_begins_again_smaller() -> None:
    model = FakeModel()
    left = [3]

    def on_token() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise DeviceMemoryError("out of memory")

    model.on_token = on_token
    told: list[str] = []
    answer = answerer(model).answer(ask(), picture(5), on_text=told.append)
    assert (answer.text, answer.image_side_px) == ("this is frame 5", 112)
    assert (told[-1].strip(), told.count(told[0])) == (answer.text, 2), "begun twice, ended once"


def test_memory_too_short_for_the_smallest_picture_is_fatal() -> None:
    with pytest.raises(DeviceMemoryError, match="even for pictures of 112 px"):
        answerer(FakeModel(memory_px=10)).answer(ask(), picture())


def test_old_frame_makes_a_stale_answer() -> None:
    old = Picture(draw_number(1), 5, "front", time.monotonic_ns() - 10**9)
    assert answerer(max_stale_ms=500).answer(ask(), old).stale
    assert not answerer(max_stale_ms=5000).answer(ask(), old).stale


def test_resolution_may_be_limited() -> None:
    assert answerer(max_image_side=200).answer(ask(), picture()).image_side_px == 112
    assert answerer(max_image_side=50).answer(ask(), picture()).image_side_px == 112
