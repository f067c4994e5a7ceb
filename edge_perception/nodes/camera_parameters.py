"""The parameters of the camera node."""

from __future__ import annotations

from edge_perception.gpu.transports import TRANSPORT_NAMES
from edge_perception.nodes.params import Declaration

PARAMETERS = (
    Declaration(
        "image_transport",
        "auto",
        "Which topic to read: raw (image), compressed (image/compressed), or auto: the first of"
        " the two that has a publisher.",
        choices=("auto", "raw", "compressed"),
        fixed=True,
    ),
    Declaration(
        "reliability",
        "best_effort",
        "Reliability asked of the publisher: best_effort fits any; reliable loses none but waits.",
        choices=("best_effort", "reliable"),
        fixed=True,
    ),
    Declaration(
        "share_frames",
        False,
        "Keep frames where other processes can read them, and publish handles on ~/frames.",
        fixed=True,
    ),
    Declaration(
        "frame_transport",
        "auto",
        "How frames reach their readers: auto probes this machine; a name is taken or refused.",
        choices=("auto", *TRANSPORT_NAMES),
        fixed=True,
    ),
    Declaration(
        "gpu_readers",
        False,
        "With frame_transport auto: keep frames on the GPU where the machine can, for models that"
        " run there. JPEGs are then decoded there too, where nvJPEG works.",
        fixed=True,
    ),
    Declaration(
        "slots",
        4,
        "Frames in the ring; at least two more than are read at the same time.",
        bounds=(4, 64),
        fixed=True,
    ),
    Declaration(
        "slot_bytes",
        0,
        "Bytes of one decoded frame, to take the ring's memory when the node is configured; 0 takes"
        " it with the first frame. Larger frames make a larger ring.",
        bounds=(0, 128 << 20),
        fixed=True,
    ),
    Declaration(
        "max_image_bytes",
        64 << 20,
        "Largest image taken, decoded, in bytes; larger ones are dropped and counted.",
        bounds=(1 << 10, 128 << 20),
    ),
)
