"""Writes a run's report: report.json, report.html, a contact sheet and an animation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_perception.core.image import UInt8Array
from edge_perception.errors import BagError
from edge_perception.replay import messages, pictures
from edge_perception.replay.conversation import (
    Conversation,
    conversation_report,
    highlights,
    load_conversation,
)
from edge_perception.replay.figures import make_report
from edge_perception.replay.messages import LabelledBoxes
from edge_perception.replay.page import FrameTimes, Media, render_page
from edge_perception.replay.run_files import PlayedFrame, Run, load_run
from edge_perception.replay.source import TimedMessage
from edge_perception.replay.sources import open_source

_TILES = 9
_HERO_SCALE = 2
_HIGHLIGHTS = 9
# Twelve seconds: a page with more would be slow to load, and encoding it slow to wait for.
_MOST_ANIMATED = 120


@dataclass(frozen=True)
class Recording:
    """What a report needs of a source: truth by recorded stamp in ns, and timing.

    ``where`` opens it again; ``fps`` is None for fewer than two images.
    """

    where: str
    image_topic: str
    images: int
    fps: float | None
    truths: Mapping[int, LabelledBoxes]


def write_report(
    folder: Path, recording: Recording, model: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Write the report of a run and return its figures.

    Args:
        folder: where player and profiler wrote their ledgers.
        recording: what was played.
        model: facts about the model, as they shall stand in the report.
        out: folder for report.json, report.html, contact_sheet.jpg and annotated.webp.

    Raises:
        BagError: the source or the run's files cannot be read.
    """
    run = load_run(folder, recording.image_topic)
    source = {
        "name": Path(recording.where).name,
        "topic": recording.image_topic,
        "images": recording.images,
        "fps": recording.fps,
    }
    report = make_report(run, recording.truths, model=model, source=source)
    talk = load_conversation(folder, run, recording.truths)
    if talk is not None:
        report["vlm"] = conversation_report(talk, run)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page = render_page(report, _make_media(recording, run, talk, out), _frame_times(run))
    (out / "report.html").write_text(page, encoding="utf-8")
    return report


def read_recording(where: str) -> Recording:
    """Read the truth and the image times of a source; of several cameras, the first.

    Raises:
        BagError: the source cannot be read, or has no end.
    """
    times_ns: list[int] = []
    truths: dict[int, LabelledBoxes] = {}
    with open_source(where) as source:
        if source.live:
            raise BagError(
                "a live source cannot be reported on", got=where, mend="Record it: ros2 bag record."
            )
        topic = next(t for t, kind in source.topics.items() if kind in messages.IMAGE_TYPES)
        for message in source.messages():
            if message.topic == topic:
                times_ns.append(message.recorded_ns)
            elif message.msgtype == messages.DETECTIONS:
                boxes = messages.deserialize_detections(message.cdr)
                truths[boxes.stamp_ns] = boxes
    span_ns = times_ns[-1] - times_ns[0] if times_ns else 0
    fps = round((len(times_ns) - 1) * 1e9 / span_ns, 2) if span_ns else None
    return Recording(where, topic, len(times_ns), fps, truths)


def _frame_times(run: Run) -> FrameTimes:
    start_ns = run.frames[0].sent.due_monotonic_ns
    latencies = [frame.end_to_end_ns for frame in run.frames]
    return FrameTimes(
        [(frame.sent.due_monotonic_ns - start_ns) / 1e9 for frame in run.frames],
        [None if latency is None else latency / 1e6 for latency in latencies],
    )


def _make_media(recording: Recording, run: Run, talk: Conversation | None, out: Path) -> Media:
    tiles = [picture for picture, _ in _annotated(recording, _spread(run, _TILES), _HERO_SCALE)]
    hero = max(run.frames, key=_interest)
    heroes = [p for p, _ in _annotated(recording, [hero], _HERO_SCALE, captions=False)]
    heroes = heroes or [pictures.nothing_to_show()]
    sheet = pictures.encode_jpeg(pictures.contact_sheet(tiles or heroes))
    (out / "contact_sheet.jpg").write_bytes(sheet)
    animation = out / "annotated.webp"
    every = max(1, round((recording.fps or 0) / pictures.ANIMATION_FPS))
    frames = run.frames[: recording.images : every][:_MOST_ANIMATED]
    shown = (picture for picture, _ in _annotated(recording, frames, 1, captions=False))
    has_animation = pictures.write_animation(animation, shown, pictures.ANIMATION_FPS)
    return Media(
        hero_jpeg=pictures.encode_jpeg(heroes[0]),
        sheet_jpeg=sheet,
        animation_webp=animation.read_bytes() if has_animation else None,
        aspect=heroes[0].shape[1] / heroes[0].shape[0],
        spoken_of=[] if talk is None else list(_spoken_of(recording, talk)),
    )


def _spoken_of(recording: Recording, talk: Conversation) -> Iterator[tuple[bytes, list[str]]]:
    """Yield pictures of what was asked and told about, with the words."""
    chosen = highlights(talk, _HIGHLIGHTS)
    lines = {frame.sent.recorded_stamp_ns: said for frame, said in chosen}
    frames = [frame for frame, _ in chosen]
    for picture, frame in _annotated(recording, frames, 1, captions=False):
        yield pictures.encode_jpeg(picture), lines[frame.sent.recorded_stamp_ns]


def _spread(run: Run, count: int) -> list[PlayedFrame]:
    """Choose processed frames evenly over the run."""
    processed = [frame for frame in run.frames if frame.found is not None]
    if len(processed) <= count:
        return processed
    return [processed[round((k + 0.5) * len(processed) / count)] for k in range(count)]


def _interest(frame: PlayedFrame) -> float:
    """Rank frames for the page's head: many different things, found surely."""
    if frame.found is None:
        return -1.0
    shown = frame.found.scores >= pictures.SHOWN_SCORE
    names = {n for n, show in zip(frame.found.class_names, shown, strict=True) if show}
    return len(names) + float(frame.found.scores[shown].sum()) / 10


def _annotated(
    recording: Recording,
    frames: list[PlayedFrame] | tuple[PlayedFrame, ...],
    scale: int,
    captions: bool = True,
) -> Iterator[tuple[UInt8Array, PlayedFrame]]:
    """Yield the frames' pictures in recorded order; a dropped frame keeps the last boxes known."""
    wanted = {frame.sent.recorded_stamp_ns: frame for frame in frames}
    names = {n for f in frames if f.found for n in f.found.class_names}
    names |= {n for truth in recording.truths.values() for n in truth.class_names}
    colours = pictures.class_colours(names)
    found: LabelledBoxes | None = None
    for frame, message in _recorded(recording, wanted):
        pixels = pictures.decode_picture(message)
        if pixels is None:
            continue
        found = frame.found or found
        caption = _caption(frame) if captions else ""
        yield pictures.annotate(pixels, found, colours, scale=scale, caption=caption), frame


def _recorded(
    recording: Recording, wanted: Mapping[int, PlayedFrame]
) -> Iterator[tuple[PlayedFrame, TimedMessage]]:
    with open_source(recording.where) as source:
        for message in source.messages():
            if message.topic != recording.image_topic:
                continue
            frame = wanted.get(messages.read_stamp_ns(message.cdr))
            if frame is not None:
                yield frame, message


def _caption(frame: PlayedFrame) -> str:
    latency_ns = frame.end_to_end_ns
    if latency_ns is None:
        return f"frame {frame.sent.sequence}"
    return f"frame {frame.sent.sequence}   {latency_ns / 1e6:.1f} ms"
