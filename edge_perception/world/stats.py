"""What a data set holds: how hidden, how small and how balanced its boxes are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

_SMALL_PX2, _MEDIUM_PX2 = 32**2, 96**2


@dataclass(frozen=True)
class DatasetStats:
    """Figures over the boxes that count (not ``iscrowd``).

    ``occluded_share``: boxes hidden by a quarter or more. ``median_box_share``: of the picture's
    area. ``size_shares``: small, medium, large by COCO's box areas.
    """

    frames: int
    boxes: int
    ignored: int
    occluded_share: float
    median_box_share: float
    boxes_per_frame: float
    size_shares: tuple[float, float, float]
    class_counts: dict[str, int]

    def table(self) -> str:
        """The figures as lines of text."""
        small, medium, large = self.size_shares
        lines = [
            f"frames               {self.frames}",
            f"boxes                {self.boxes} ({self.boxes_per_frame:.1f} a frame)",
            f"ignored              {self.ignored}",
            f"occluded by >= 1/4   {self.occluded_share:.1%}",
            f"median box           {self.median_box_share:.2%} of the picture",
            f"small/medium/large   {small:.0%} / {medium:.0%} / {large:.0%}",
        ]
        return "\n".join(
            [*lines, *(f"  {name:<18} {count}" for name, count in self.class_counts.items())]
        )


def dataset_stats(document: dict[str, Any]) -> DatasetStats:
    """The figures of a parsed ``instances.json``."""
    counted = [a for a in document["annotations"] if not a["iscrowd"]]
    names = {category["id"]: category["name"] for category in document["categories"]}
    areas = np.array([a["bbox"][2] * a["bbox"][3] for a in counted] or [0.0])
    hidden = np.array([a["occlusion"] for a in counted] or [0.0])
    picture = document["images"][0]["width"] * document["images"][0]["height"]
    counts = Counter(names[a["category_id"]] for a in counted)
    small, large = float((areas < _SMALL_PX2).mean()), float((areas > _MEDIUM_PX2).mean())
    return DatasetStats(
        frames=len(document["images"]),
        boxes=len(counted),
        ignored=len(document["annotations"]) - len(counted),
        occluded_share=float((hidden >= 0.25).mean()),
        median_box_share=float(np.median(areas)) / picture,
        boxes_per_frame=len(counted) / len(document["images"]),
        size_shares=(small, 1 - small - large, large),
        class_counts={name: counts.get(name, 0) for name in names.values()},
    )
