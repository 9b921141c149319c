"""The perceptual network of the published method: an lpips trunk with its learned channel weights, for guidance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.models.perceptual import LPIPS_EPS, PerceptualDistance, check_network_images, weighted_features

LPIPS_TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
"""The layers of VGG16 that LPIPS looks at; its channel weights were learned there."""
PDGRAD_TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_2")
"""The layers that PDGrad's section 4.1 names (as conv1_2, conv2_2, conv3_3, conv4_3, conv5_2), after their ReLU.

The last differs from LPIPS, whose weights the paper says it uses and which has none for that layer. With these taps the
weights learned at relu5_3 are used for relu5_2, which has as many channels, but different ones.
"""

# Smallest picture side in pixels that the poolings of a trunk leave anything of.
_LEAST_SIDES: Mapping[str, int] = MappingProxyType({"vgg": 16, "vgg16": 16, "alex": 31, "squeeze": 17})


class LPIPSFeatures(PerceptualDistance, nn.Module):
    """`guidance_features` of an lpips network: v_1 to v_5 of equation 12 for VGG16.

    With the default taps and normalisation, `perceptual_distance` is what the lpips network itself returns. The network
    is not copied; it is put into evaluation mode and its parameters are frozen.

    >>> features = LPIPSFeatures(refbfr_core.metrics.perceptual.load_lpips("vgg"))

    Parameters
    ----------
    network : an `lpips.LPIPS` with learned channel weights, for example from `load_lpips`.
    taps : which layers to look at, by name ("conv1_1", "relu1_1", ... "relu5_3"; VGG only), as many as there are
        channel weights; None for LPIPS's own. See `LPIPS_TAPS` and `PDGRAD_TAPS`.
    normalise : divide the features at every place by their length over the channels, as LPIPS does; False is
        equation 14 to the letter. The weights were learned on normalised features.

    Raises
    ------
    ConfigError : no lpips network, one without channel weights or with negative ones, taps that it does not have or
        that the weights do not fit. UnknownNameError : no layer of that name.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str] | None = None, normalise: bool = True) -> None:
        super().__init__()
        if not getattr(network, "lpips", False) or not hasattr(network, "lins"):
            raise ConfigError(
                f"a {type(network).__name__} came, expected an lpips.LPIPS network with its learned channel weights; "
                "make one with refbfr_core.metrics.perceptual.load_lpips()."
            )
        self.trunk = network.net.eval().requires_grad_(False)
        # The release "0.0" of LPIPS left out the scaling.
        self.scaling: nn.Module = network.scaling_layer if network.version == "0.1" else nn.Identity()
        self.normalise = normalise
        self.least_side = _LEAST_SIDES[network.pnet_type]
        squares = [lin.model[-1].weight.detach().flatten() for lin in network.lins]
        if any(bool((square < 0).any()) for square in squares):
            raise ConfigError("the channel weights of the lpips network hold negative values; a distance needs w >= 0.")
        self.layers = len(squares)
        for index, square in enumerate(squares):
            self.register_buffer(f"weight{index}", square.sqrt())
        self.taps: tuple[int, ...] | None = None
        self._sequence: list[nn.Module] = []
        if taps is not None:
            self._choose(tuple(taps), network.pnet_type, [len(square) for square in squares])

    def guidance_features(self, images: Tensor) -> list[Tensor]:
        """[v1, v2, ...] of images (B, 3, H, W) in [-1, 1], normalised and multiplied by the root of LPIPS's weights.

        Five for VGG16 and AlexNet, seven for SqueezeNet; float32.

        Raises
        ------
        ImageContractError : another shape, pictures too small for the trunk, or values that no picture in [-1, 1] has.
        """
        x = self.scaling(check_network_images(images, self.least_side))
        weights = [getattr(self, f"weight{index}") for index in range(self.layers)]
        if self.taps is None:
            taps = list(self.trunk(x))
        else:
            taps, wanted = [], set(self.taps)
            for index, layer in enumerate(self._sequence[: max(wanted) + 1]):
                x = layer(x)
                if index in wanted:
                    taps.append(x)
        return weighted_features(taps, weights, LPIPS_EPS if self.normalise else None)

    forward = guidance_features

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; a diffusers pipeline asks every component for it when it is moved."""
        return self.weight0.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weight0.device

    def _choose(self, taps: tuple[str, ...], trunk: str, channels: list[int]) -> None:
        """Find the named layers of a VGG trunk."""
        if trunk not in ("vgg", "vgg16"):
            raise ConfigError(f"layers can be chosen by name for VGG16 only, the trunk is {trunk!r}; use taps=None.")
        slices = itertools.takewhile(
            lambda part: part is not None, (getattr(self.trunk, f"slice{n}", None) for n in itertools.count(1))
        )
        # A plain list: the layers are registered once already, under the trunk. ReLUs work in place and would
        # overwrite what a convolution has given.
        self._sequence = [
            nn.ReLU() if isinstance(layer, nn.ReLU) else layer for part in slices for layer in part.children()
        ]
        places, widths = _named_layers(self._sequence)
        for name in taps:
            if name not in places:
                raise unknown_name("VGG16 layer", name, places)
        if [widths[name] for name in taps] != channels or sorted(places[n] for n in taps) != [places[n] for n in taps]:
            raise ConfigError(
                f"taps {taps} have {[widths[name] for name in taps]} channels, the learned weights {channels}; name "
                f"one layer of each stage, in order, as in {LPIPS_TAPS}."
            )
        self.taps = tuple(places[name] for name in taps)


def _named_layers(layers: Sequence[nn.Module]) -> tuple[dict[str, int], dict[str, int]]:
    """Places and channels of VGG's layers by the usual names: conv1_1, relu1_1, conv1_2, ... relu5_3."""
    places, widths = {}, {}
    stage, number, channels = 1, 0, 3
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.MaxPool2d):
            stage, number = stage + 1, 0
            continue
        kind = "relu"
        if isinstance(layer, nn.Conv2d):
            kind, number, channels = "conv", number + 1, layer.out_channels
        places[f"{kind}{stage}_{number}"], widths[f"{kind}{stage}_{number}"] = index, channels
    return places, widths
