"""What lies where in a scan: learned from masks, drawn in the scanner's own geometry, judged without dropped misses."""

from __future__ import annotations

from headct.tasks.segmentation.classes import Classes, read_classes
from headct.tasks.segmentation.drawing import Drawn, draw_into
from headct.tasks.segmentation.fitting import Fitted, TrainSettings, fit
from headct.tasks.segmentation.judging import Judged, judge_folders, judge_segmenter
from headct.tasks.segmentation.masks import Masks, gathered
from headct.tasks.segmentation.measuring import Agreement, Judging, compared
from headct.tasks.segmentation.segmenter import Segmenter
from headct.tasks.segmentation.training import Schedule
from headct.tasks.segmentation.windows import Sliding

__all__ = [
    "Agreement",
    "Classes",
    "Drawn",
    "Fitted",
    "Judged",
    "Judging",
    "Masks",
    "Schedule",
    "Segmenter",
    "Sliding",
    "TrainSettings",
    "compared",
    "draw_into",
    "fit",
    "gathered",
    "judge_folders",
    "judge_segmenter",
    "read_classes",
]
