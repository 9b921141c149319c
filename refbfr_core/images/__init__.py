"""The image contract, its checks, conversions, and image files.

Every public door of the package passes images as `torch.float32`, RGB, `(B, 3, H, W)`, in [0, 1], and references as
`(B, R, 3, H, W)` with an optional boolean mask `(B, R)`. Networks work in [-1, 1] inside; `to_network` and
`from_network` are the only two ways across.
"""

from refbfr_core.images.contract import (
    MAX_REFERENCES,
    check_images,
    check_references,
    from_network,
    from_uint8,
    stack_references,
    to_network,
    to_uint8,
)
from refbfr_core.images.files import read_image, write_image

__all__ = [
    "MAX_REFERENCES",
    "check_images",
    "check_references",
    "from_network",
    "from_uint8",
    "read_image",
    "stack_references",
    "to_network",
    "to_uint8",
    "write_image",
]
