"""Stage II of DiffMAC (Gao et al., 2024, Fig. 2): the bottleneck, and the modulation that its Z conditions."""

from __future__ import annotations

from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from refbfr_core.errors import ConfigError
from refbfr_core.models.bottleneck import BottleneckOutput, ManifoldBottleneck
from refbfr_core.models.modulation import FeatureModulation


class SecondStage(ModelMixin, ConfigMixin):
    """All that Stage II has learned: a `FeatureModulation`, and a `ManifoldBottleneck` before it.

    Args:
        modulation_config: arguments of the modulation.
        bottleneck_config: arguments of the bottleneck, or None: then Z = R ("2AdaIN" of Table 3).
        source: what R is: "stage-one" for the moments of X_D1, "input" for those of X_LQ (the paper's no1 rows).
        label: the row of Table 3, such as "0.001_id".
    """

    @register_to_config
    def __init__(
        self,
        modulation_config: dict[str, Any],
        bottleneck_config: dict[str, Any] | None = None,
        source: str = "stage-one",
        label: str = "",
    ) -> None:
        super().__init__()
        if source not in ("stage-one", "input"):
            raise ConfigError(f"R comes from 'stage-one' or from the 'input', not from {source!r}.")
        self.modulation = FeatureModulation(**modulation_config)
        self.bottleneck = ManifoldBottleneck(**bottleneck_config) if bottleneck_config else None

    @property
    def compensation(self) -> str:
        """Of the bottleneck: "identity", "noise" or "none"; "off" without a bottleneck."""
        return self.bottleneck.config.compensation if self.bottleneck else "off"

    def forward(
        self,
        moments: Tensor,
        identity: Tensor | None = None,
        noise: Tensor | None = None,
        share: Tensor | float | None = None,
    ) -> BottleneckOutput | None:
        """The bottleneck's output for R (B, 8, h, w), see `ManifoldBottleneck.forward`; None without a bottleneck.

        Raises ConfigError for a lambda where there is no bottleneck.
        """
        if self.bottleneck is None:
            if share is not None:
                raise ConfigError("this second stage has no bottleneck (2AdaIN), so there is no lambda to set.")
            return None
        return self.bottleneck(moments, identity, noise, share)
