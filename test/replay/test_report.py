"""The report: its figures, the rule of unknown percentiles, its page and its files."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_perception.cli.report import _vlm_line
from edge_perception.core.answers import Answer
from edge_perception.errors import BagError
from edge_perception.replay import pictures
from edge_perception.replay.bag_writer import BagWriter
from edge_perception.replay.figures import make_report
from edge_perception.replay.page import FrameTimes, Media, number, render_page
from edge_perception.replay.playback import SentMessage
from edge_perception.replay.report import read_recording, write_report
from edge_perception.replay.run_files import load_run
from edge_perception.replay.video import CameraSource

TOPIC = "/image/compressed"
INTERVAL_NS = 33_000_000
FIRST_NS = 1_700_000_000_000_000_000
SHIFT_NS = 5_000_000_000_000
LATENCY_NS = 20_000_000
MODEL = {"name": "tiny", "license": "Apache-2.0"}
COUNTERS = {
    "nodes": {
        "camera": {"received": "6", "rejected": "1", "superseded": "2"},
        "detector": {"dropped": "1", "failed": "0"},
    }
}


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(
    folder: Path, sent: int, processed: int, *, shift_ns: int = SHIFT_NS, class_name: str = "mug"
) -> None:
    """Write the files of a run whose first ``processed`` frames were found after 20 ms."""
    messages = [
        SentMessage(
            topic=TOPIC,
            sequence=index + 1,
            recorded_stamp_ns=FIRST_NS + index * INTERVAL_NS,
            stamp_ns=FIRST_NS + index * INTERVAL_NS + shift_ns,
            due_monotonic_ns=index * INTERVAL_NS,
            published_monotonic_ns=index * INTERVAL_NS + 1000 * index,
        )
        for index in range(sent)
    ]
    results = messages[:processed]
    write_lines(folder / "player.jsonl", [asdict(message) for message in messages])
    write_lines(
        folder / "ledger.jsonl",
        [
            {
                "stamp_ns": m.stamp_ns,
                "arrival_ns": m.stamp_ns + LATENCY_NS,
                "end_to_end_ns": LATENCY_NS,
                "stages_ns": {
                    "receive": LATENCY_NS - 16_000_000 - shift_ns + SHIFT_NS,
                    "infer": 15_000_000,
                    "deliver": 1_000_000,
                },
            }
            for m in results
        ],
    )
    found = {"xyxy": [10, 10, 60, 60], "score": 0.9, "class": class_name}
    write_lines(
        folder / "detections.jsonl",
        [
            {
                "stamp_ns": m.stamp_ns,
                "detections": [found],
                "arrival_monotonic_ns": m.due_monotonic_ns + LATENCY_NS,
            }
            for m in results
        ],
    )
    (folder / "counters.json").write_text(json.dumps(COUNTERS))


def write_bag(path: Path, count: int) -> None:
    jpeg = pictures.encode_jpeg(np.full((96, 128, 3), 90, np.uint8))
    with BagWriter(path) as bag:
        for index in range(count):
            stamp_ns = FIRST_NS + index * INTERVAL_NS
            bag.write_image(stamp_ns, jpeg)
            bag.write_ground_truth(stamp_ns, np.array([[10, 10, 60, 60]], np.float32), ["mug"])


def report_of(folder: Path, sent: int, processed: int, **changes: Any) -> dict[str, Any]:
    write_run(folder, sent, processed, **changes)
    return make_report(load_run(folder, TOPIC), {}, model=MODEL, source={})


def test_report_holds_what_its_schema_promises(tmp_path: Path) -> None:
    report = json.loads(json.dumps(report_of(tmp_path, 10, 7)))
    assert report["schema"] == "edge_perception/report/1"
    assert report["model"]["name"] == "tiny"
    assert {"cpu", "cores", "gpu", "os"} <= set(report["machine"])
    assert report["frames"] == {
        "sent": 10,
        "received": 8,
        "processed": 7,
        "dropped": 3,
        "lost_before_camera": 2,
        "rejected": 1,
        "replaced_by_newer": 3,
        "failed": 0,
    }
    assert report["fps"] == pytest.approx(1e9 / INTERVAL_NS, abs=0.01)
    assert report["latency_ms"]["end_to_end"]["p50"] == 20.0
    assert report["latency_ms"]["infer"]["p50"] == 15.0
    for summary in report["latency_ms"].values():
        assert set(summary) == {"n", "p50", "p90", "p99", "p99_9", "max"}
    assert report["player"]["late_ms"]["max"] == 0.009


@pytest.mark.parametrize(
    ("processed", "unknown", "reason"),
    [
        (0, {"p50", "p90", "p99", "p99_9", "max"}, "no sample at all"),
        (9, {"p90", "p99", "p99_9"}, "p90 needs ten"),
        (10, {"p99", "p99_9"}, "ten carry p90"),
        (99, {"p99", "p99_9"}, "p99 needs a hundred"),
        (100, {"p99_9"}, "a hundred carry p99"),
        (9_999, {"p99_9"}, "p99.9 needs ten thousand"),
        (10_000, set(), "ten thousand carry all"),
    ],
)
def test_percentiles_that_too_few_samples_carry_are_null(
    tmp_path: Path, processed: int, unknown: set[str], reason: str
) -> None:
    report = report_of(tmp_path, max(1, processed), processed)
    for summary in (report["latency_ms"]["end_to_end"], report["latency_ms"]["infer"]):
        if summary["n"] or not processed:
            assert {name for name, value in summary.items() if value is None} == unknown, reason


def test_recorded_stamps_are_timed_by_the_players_own_ledger(tmp_path: Path) -> None:
    report = report_of(tmp_path, 10, 10, shift_ns=0)
    assert report["latency_ms"]["end_to_end"]["p50"] == 20.0
    assert report["latency_ms"]["receive"]["p50"] == 4.0
    assert report["latency_ms"]["end_to_end"]["n"] == 10


def test_counts_that_no_node_told_are_null(tmp_path: Path) -> None:
    write_run(tmp_path, 3, 3)
    (tmp_path / "counters.json").write_text('{"nodes": {}}')
    frames = make_report(load_run(tmp_path, TOPIC), {}, model=MODEL, source={})["frames"]
    assert frames["received"] is None
    assert frames["lost_before_camera"] is None
    assert frames["sent"] == 3


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("player.jsonl", "{"),
        ("player.jsonl", ""),
        ("ledger.jsonl", "not json"),
        ("ledger.jsonl", "{}"),
        ("detections.jsonl", '{"stamp_ns": 1}'),
        ("counters.json", "[]"),
    ],
)
def test_damaged_run_files_are_told(tmp_path: Path, file: str, content: str) -> None:
    write_run(tmp_path, 3, 3)
    (tmp_path / file).write_text(content)
    with pytest.raises(BagError, match=r"cannot be read|no image was sent"):
        load_run(tmp_path, TOPIC)


def test_missing_run_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="player's ledger"):
        load_run(tmp_path, TOPIC)


def test_report_is_written_with_all_its_files(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.mcap", 30)
    write_run(tmp_path, 30, 25)
    out = tmp_path / "out"
    report = write_report(tmp_path, read_recording(str(tmp_path / "a.mcap")), MODEL, out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["accuracy"]["map50_95"] == 1.0
    assert report["accuracy"]["images"] == 25
    assert report["source"] == {"name": "a.mcap", "topic": TOPIC, "images": 30, "fps": 30.3}
    assert (out / "contact_sheet.jpg").read_bytes().startswith(b"\xff\xd8")
    assert (out / "annotated.webp").read_bytes().startswith(b"RIFF")
    assert (out / "report.html").stat().st_size > 10_000


def test_report_of_a_run_without_any_result_is_written_too(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.mcap", 3)
    write_run(tmp_path, 3, 0)
    recording = read_recording(str(tmp_path / "a.mcap"))
    report = write_report(tmp_path, recording, MODEL, tmp_path)
    assert report["frames"]["dropped"] == 3
    assert report["fps"] is None
    assert "No frames to draw" in (tmp_path / "report.html").read_text()


def test_report_of_frames_that_cannot_be_shown_is_written_too(tmp_path: Path) -> None:
    write_run(tmp_path, 3, 3)
    with BagWriter(tmp_path / "a.mcap") as bag:
        for index in range(3):
            bag.write_image(FIRST_NS + index * INTERVAL_NS, b"no picture")
    recording = read_recording(str(tmp_path / "a.mcap"))
    report = write_report(tmp_path, recording, MODEL, tmp_path)
    assert report["frames"]["processed"] == 3
    assert (tmp_path / "contact_sheet.jpg").read_bytes().startswith(b"\xff\xd8")


def test_source_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = CameraSource("/dev/video0")
    monkeypatch.setattr("edge_perception.replay.report.open_source", lambda _: nullcontext(camera))
    with pytest.raises(BagError, match="live source"):
        read_recording("/dev/video0")


class References(HTMLParser):
    """Collects what a page loads from elsewhere, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.outside += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "poster") and not (value or "").startswith("data:")
        ]


def page_of(folder: Path, **changes: Any) -> str:
    report = {**report_of(folder, 10, 10), **changes}
    media = Media(b"jpeg", b"jpeg", b"webp", 4 / 3)
    return render_page(report, media, FrameTimes([0.0, 1.0], [20.0, None]))


def test_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert References(page).outside == []
    assert "url(" not in page


def test_page_escapes_names_that_came_from_outside(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    accuracy = report_of(tmp_path, 3, 3)["accuracy"] | {"truths": 1, "per_class": {hostile: 0.5}}
    page = page_of(
        tmp_path,
        accuracy=accuracy,
        model={"name": hostile},
        source={"name": hostile, "images": 1, "fps": 30.0},
    )
    assert "script" not in References(page).tags
    assert page.count("&lt;script&gt;") >= 3


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (1.25, "1.2"), (0.0, "0.0"), (1234.56, "1234.6")]
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def write_conversation(folder: Path) -> None:
    """Two answers about the first frame, one about the second, and a caption of the third."""
    on_wire = [FIRST_NS + SHIFT_NS + index * INTERVAL_NS for index in range(3)]
    told = [
        ("answer", Answer("1", "Is there a mug?", "yes", "end", on_wire[0], ttft_ms=40.0)),
        ("answer", Answer("2", "How many mugs are there?", "3", "end", on_wire[0], ttft_ms=60.0)),
        ("answer", Answer("3", "Is there a mug?", "no <b>", "end", on_wire[1])),
        ("caption", Answer("", "Describe.", "A mug.", "end", on_wire[2], model="tiny-vlm")),
    ]
    rows = [{"kind": kind, "message": answer.to_json()} for kind, answer in told]
    write_lines(folder / "conversation.jsonl", rows)


def test_report_tells_what_was_said_and_whether_it_was_right(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag.mcap", 5)
    write_run(tmp_path, 5, 5)
    write_conversation(tmp_path)
    report = write_report(tmp_path, read_recording(str(tmp_path / "bag.mcap")), MODEL, tmp_path)
    told = report["vlm"]
    assert (told["answers"], told["captions"], told["model"]) == (3, 1, "tiny-vlm")
    assert told["accuracy"]["judged"] == 3
    assert told["accuracy"]["by_kind"]["presence"] == {"judged": 2, "right": 0.5}
    assert told["ttft_ms"]["p50"] == 50.0
    line = _vlm_line(told)
    assert "1 captions, 3 answers, 33.3% right of 3 judged, first token 50.0 ms" in line
    page = (tmp_path / "report.html").read_text()
    assert "How many mugs are there? 3 (wrong: 1)" in page
    assert "A mug." in page
    assert "no &lt;b&gt;" in page


def test_damaged_conversation_is_named(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag.mcap", 2)
    write_run(tmp_path, 2, 2)
    (tmp_path / "conversation.jsonl").write_text('{"kind": "answer", "message": "nonsense"}\n')
    with pytest.raises(BagError, match="conversation"):
        write_report(tmp_path, read_recording(str(tmp_path / "bag.mcap")), MODEL, tmp_path)
