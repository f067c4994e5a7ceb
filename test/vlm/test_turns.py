import threading
import time

from edge_perception.vlm.turns import DetectorTurns

PATIENCE_S = 30.0


def give_way_in_thread(turns: DetectorTurns) -> threading.Thread:
    thread = threading.Thread(target=turns.give_way)
    thread.start()
    return thread


def test_model_waits_for_the_detector_to_end() -> None:
    turns = DetectorTurns(longest_wait_s=PATIENCE_S)
    turns.begin()
    thread = give_way_in_thread(turns)
    thread.join(0.05)
    assert thread.is_alive()
    turns.end()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert turns.waited_s > 0


def test_detector_that_never_ends_is_not_waited_for_forever() -> None:
    turns = DetectorTurns(longest_wait_s=0.01)
    turns.begin()
    thread = give_way_in_thread(turns)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_idle_detector_is_not_waited_for() -> None:
    turns = DetectorTurns(longest_wait_s=PATIENCE_S)
    turns.begin()
    turns.end()
    thread = give_way_in_thread(turns)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_frame_that_is_nearly_due_is_waited_for() -> None:
    turns = DetectorTurns(longest_wait_s=PATIENCE_S, lead_s=60.0)
    turns.begin()
    time.sleep(0.002)
    turns.begin()  # one every 2 ms, so the next is due well within the lead
    turns.end()
    thread = give_way_in_thread(turns)
    thread.join(0.05)
    assert thread.is_alive()
    turns.begin()
    turns.end()
    turns.lead_s = 0.0
    turns.end()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_waiting_switched_off_never_waits() -> None:
    turns = DetectorTurns(longest_wait_s=0.0)
    turns.begin()
    thread = give_way_in_thread(turns)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
