"""Blind face degradation as the four papers do it: blur, down-sampling, noise, JPEG and back up.

Every draw is recorded and can be replayed exactly.

>>> from refbfr_core.degradation import Degradation
>>> lq, records = Degradation.preset("refldm-severe")(images, seed=0)
"""

from refbfr_core.degradation.apply import Degradation, apply_record, replay, run_stages, stage_pictures
from refbfr_core.degradation.draws import DegradationRecord, draw, image_seeds
from refbfr_core.degradation.presets import PRESETS
from refbfr_core.degradation.ranges import DegradationRanges

__all__ = [
    "PRESETS",
    "Degradation",
    "DegradationRanges",
    "DegradationRecord",
    "apply_record",
    "draw",
    "image_seeds",
    "replay",
    "run_stages",
    "stage_pictures",
]
