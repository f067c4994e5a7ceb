"""``edge-perception plan``: does a model fit on a device beside the detector, and how fast is it.

Predicted from data sheets and published efficiencies; nothing is run and no weight is read. Exits
with 1 where it does not fit.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_perception.errors import ConfigError
from edge_perception.planner.memory import KV_BYTES, SCHEMES, WeightScheme, scheme_named

if TYPE_CHECKING:
    from edge_perception.planner.devices import DeviceProfile, Efficiency
    from edge_perception.planner.plan import FrameRing

_HEADS = {"fp16": "fp16", "int8": "int8-g64", "int4": "int4-g64"}


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="predict memory and latency of a model on a device",
        description=__doc__,
        epilog="Models and devices have their names from config/models and config/devices; one"
        " that is not known is answered with all that are.",
    )
    parser.add_argument("--model", required=True, help="name, or a checkpoint's folder")
    parser.add_argument("--device", required=True, help="name, or a profile's .yaml")
    parser.add_argument("--detector", type=Path, metavar="MANIFEST", help="of the detector beside")
    parser.add_argument("--weights", choices=SCHEMES, default="int4-g128")
    parser.add_argument("--head", choices=_HEADS, default="fp16", help="lm_head's weights")
    parser.add_argument("--kv", choices=KV_BYTES, default="fp16", help="keys and values")
    parser.add_argument("--context", type=int, default=4096, help="tokens that the cache holds")
    parser.add_argument("--prompt", type=int, default=512, help="tokens, an image's among them")
    parser.add_argument("--frame", default="1920x1080", help="camera frames, WIDTHxHEIGHT px")
    parser.add_argument("--slots", type=int, default=6, help="frames that the ring holds")
    parser.add_argument("--decode-efficiency", type=float, metavar="SHARE", help="of bandwidth")
    parser.add_argument("--prefill-efficiency", type=float, metavar="SHARE", help="of FP16 peak")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the plan; 0 where it fits, else 1."""
    from edge_perception.planner.devices import load_device
    from edge_perception.planner.models import load_planned_model
    from edge_perception.planner.plan import PlanRequest, format_plan, load_detector, make_plan

    device = load_device(options.device)
    weights = scheme_named(options.weights)
    request = PlanRequest(
        model=load_planned_model(options.model),
        device=device,
        efficiency=_efficiency(options, device, weights),
        weights=weights,
        head=scheme_named(_HEADS[options.head]),
        kv_format=options.kv,
        context=options.context,
        prompt_tokens=options.prompt,
        detector=None if options.detector is None else load_detector(options.detector),
        ring=_ring(options.frame, options.slots),
    )
    plan = make_plan(request)
    print(format_plan(plan))
    if options.json is not None:
        options.json.write_text(json.dumps(plan.to_json(), indent=1) + "\n", encoding="utf-8")
    return 0 if plan.fits else 1


def _efficiency(
    options: argparse.Namespace, device: DeviceProfile, weights: WeightScheme
) -> Efficiency:
    """Published shares, with what the command line names in their place."""
    from edge_perception.planner.devices import Efficiency, Share, load_efficiency

    given = (options.decode_efficiency, options.prefill_efficiency)
    decode, prefill = (None if x is None else Share(x, "given on the command line") for x in given)
    if decode is not None and prefill is not None:
        return Efficiency(decode, prefill)
    published = load_efficiency(device, weights.precision)
    return replace(
        published, decode=decode or published.decode, prefill=prefill or published.prefill
    )


def _ring(frame: str, slots: int) -> FrameRing:
    from edge_perception.planner.plan import FrameRing

    width, _, height = frame.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ConfigError("--frame", expected="WIDTHxHEIGHT, such as 1920x1080", got=frame)
    return FrameRing(int(width), int(height), slots)
