"""``edge-perception world ...``: data sets, bags and previews of the rendered world."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its sub-commands."""
    world = commands.add_parser("world", help="render data sets, bags and previews from seeds")
    actions = world.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_dataset(actions)
    _add_bag(actions)
    stats = actions.add_parser("stats", help="print what a data set holds")
    stats.add_argument("folder", type=Path, help="the data set's folder")
    stats.set_defaults(run=_stats)
    preview = actions.add_parser("preview", help="draw a contact sheet with boxes")
    _add_source(preview)
    preview.add_argument("--frames", type=int, default=12)
    preview.add_argument("--plain", action="store_true", help="draw no boxes")
    preview.add_argument("--out", type=Path, required=True, help="PNG file")
    preview.set_defaults(run=_preview)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=("train", "held-out"), default="held-out")
    parser.add_argument("--seed", type=int, default=0)


def _add_dataset(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dataset = actions.add_parser("dataset", help="write a COCO data set (resumable)")
    _add_source(dataset)
    dataset.add_argument("--frames", type=int, required=True)
    dataset.add_argument("--views-per-scene", type=int, default=8)
    dataset.add_argument("--workers", type=int, default=1, help="processes")
    dataset.add_argument("--out", type=Path, required=True, help="folder")
    dataset.set_defaults(run=_dataset)


def _add_bag(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bag = actions.add_parser("bag", help="write an MCAP bag with ground truth")
    _add_source(bag)
    bag.add_argument("--layout", choices=("table", "aisle"), help="default: drawn from the seed")
    bag.add_argument("--seconds", type=float, default=10.0)
    bag.add_argument("--fps", type=float, default=30.0)
    bag.add_argument("--quality", type=int, default=70, help="JPEG quality, 1 to 100")
    bag.add_argument("--out", type=Path, required=True, help="MCAP file")
    bag.set_defaults(run=_bag)


def _dataset(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from edge_perception.world.dataset import DatasetPlan, write_dataset
    from edge_perception.world.spec import Split

    plan = DatasetPlan(Split(options.split), options.frames, options.seed, options.views_per_scene)
    start = time.monotonic()
    with tqdm(total=plan.frames, unit="frame", mininterval=1.0) as bar:
        for frames in write_dataset(plan, options.out, workers=options.workers):
            bar.update(frames)
    elapsed = time.monotonic() - start
    print(f"{plan.frames} frames in {elapsed:.1f} s, {plan.frames / elapsed:.1f} a second")
    return _stats(argparse.Namespace(folder=options.out))


def _stats(options: argparse.Namespace) -> int:
    from edge_perception.errors import ConfigError
    from edge_perception.world.stats import dataset_stats

    path = options.folder / "instances.json"
    if not path.exists():
        raise ConfigError(
            "No data set there", expected="a folder with instances.json", got=str(path)
        )
    print(dataset_stats(json.loads(path.read_text())).table())
    return 0


def _preview(options: argparse.Namespace) -> int:
    import cv2

    from edge_perception.world.dataset import SEEDS_A_DATASET, scene_views
    from edge_perception.world.frames import render_frames
    from edge_perception.world.preview import contact_sheet, draw_boxes
    from edge_perception.world.renderer import Renderer
    from edge_perception.world.scenes import make_scene
    from edge_perception.world.spec import Split

    pictures = []
    with Renderer() as renderer:
        for index in range(options.frames):
            scene = make_scene(options.seed * SEEDS_A_DATASET + index, Split(options.split))
            view, moment = next(scene_views(scene, 1))
            frame = next(render_frames(renderer, view, [moment]))
            pictures.append(frame.rgb if options.plain else draw_boxes(frame))
    cv2.imwrite(str(options.out), cv2.cvtColor(contact_sheet(pictures), cv2.COLOR_RGB2BGR))
    return 0


def _bag(options: argparse.Namespace) -> int:
    import numpy as np
    from tqdm import tqdm

    from edge_perception.replay.bag_writer import BagWriter
    from edge_perception.world.dataset import encode_jpeg
    from edge_perception.world.frames import render_frames
    from edge_perception.world.renderer import Renderer
    from edge_perception.world.scenes import make_scene
    from edge_perception.world.spec import CLASS_NAMES, Split

    scene = make_scene(
        options.seed, Split(options.split), layout=options.layout, duration_s=options.seconds
    )
    camera = scene.intrinsics
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    times = np.arange(round(options.seconds * options.fps)) / options.fps
    out = BagWriter(options.out, frame_id="camera_optical_frame", namespace="/camera")
    with Renderer() as renderer, out as bag:
        for frame in tqdm(render_frames(renderer, scene, times), total=len(times), unit="frame"):
            stamp_ns = _FIRST_STAMP_NS + round(frame.time_s * 1e9)
            counted = ~frame.ignored
            names = [CLASS_NAMES[i] for i in frame.class_ids[counted]]
            bag.write_image(stamp_ns, encode_jpeg(frame, options.quality))
            bag.write_camera_info(stamp_ns, (camera.height, camera.width), matrix)
            tracks = [str(i) for i in frame.instance_ids[counted]]
            bag.write_ground_truth(stamp_ns, frame.boxes_xyxy[counted], names, tracks)
    return 0


_FIRST_STAMP_NS = 1_700_000_000_000_000_000
"""A fixed date (November 2023), so that a bag's bytes do not depend on when it was written."""
