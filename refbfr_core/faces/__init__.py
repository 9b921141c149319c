"""Drawn faces, datasets of them on disk, and alignment of photographs."""

from .identity import IDENTITY_NAMES, SPLITS, Identities
from .landmarks import GROUPS as LANDMARK_GROUPS
from .toy import Rendering, ToyFaces
from .view import VIEW_NAMES, Views

__all__ = ["IDENTITY_NAMES", "LANDMARK_GROUPS", "SPLITS", "VIEW_NAMES", "Identities", "Rendering", "ToyFaces", "Views"]
