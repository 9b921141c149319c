"""One mistake at a time in IResNet or its conversion, and the parity comparison that notices it."""

from __future__ import annotations

from collections.abc import Callable

import parity_arcface as parity
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refbfr_core.models.iresnet import IResNet
from refbfr_core.weights import convert


@pytest.fixture(scope="module")
def recorded() -> parity.Recorded:
    return parity.read()


def activations(recorded: parity.Recorded) -> None:
    parity.compare_activations(parity.load(recorded), recorded)


def embedding(recorded: parity.Recorded) -> None:
    parity.compare_embedding(parity.load(recorded), recorded)


def guidance(recorded: parity.Recorded) -> None:
    parity.compare_guidance(parity.load(recorded), recorded)


def _changed(patch: pytest.MonkeyPatch, change: Callable[[IResNet], None]) -> None:
    """Let every loaded network be changed."""
    load = parity.load

    def loaded(*args: object) -> IResNet:
        network = load(*args)
        change(network)
        return network

    patch.setattr(parity, "load", loaded)


# --- traps ------------------------------------------------------------------------------------------------------------


def taps_a_block_early(patch: pytest.MonkeyPatch) -> None:
    """conv2_2 read as the first block of the stage."""
    _changed(patch, lambda network: setattr(network, "taps", ("prelu", "layer1.0", "layer2.0")))


def taps_a_stage_late(patch: pytest.MonkeyPatch) -> None:
    """conv2_2 counted as VGG's: the second stage."""
    _changed(patch, lambda network: setattr(network, "taps", ("prelu", "layer2.1", "layer3.1")))


def stem_before_its_activation(patch: pytest.MonkeyPatch) -> None:
    """conv1_1 tapped after the batch norm, before PReLU."""

    def change(network: IResNet) -> None:
        tapped, seen = network.tapped, []
        network.bn1.register_forward_hook(lambda _, __, output: seen.append(output))

        def early(crops: Tensor) -> tuple[list[Tensor], Tensor]:
            taps, vector = tapped(crops)
            return [seen.pop(), *taps[1:]], vector

        network.tapped = early

    _changed(patch, change)


def blue_first(patch: pytest.MonkeyPatch) -> None:
    """OpenCV's order of colours."""
    _changed(patch, lambda network: network.register_forward_pre_hook(lambda _, args: (args[0].flip(1),)))


def norm_epsilon(patch: pytest.MonkeyPatch) -> None:
    """The epsilon of other recognisers' batch norms."""

    def change(network: IResNet) -> None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eps = 1e-3

    _changed(patch, change)


def activation_after_the_addition(patch: pytest.MonkeyPatch) -> None:
    """The blocks of an ordinary ResNet."""

    def change(network: IResNet) -> None:
        for _, block in network.blocks():
            block.register_forward_hook(lambda module, _, output: F.relu(output))

    _changed(patch, change)


def stride_in_the_first_convolution(patch: pytest.MonkeyPatch) -> None:
    """Every shape stays what it was."""

    def change(network: IResNet) -> None:
        for _, block in network.blocks():
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride

    _changed(patch, change)


def channels_last_flattening(patch: pytest.MonkeyPatch) -> None:
    """(row, column, channel) into the linear layer instead of (channel, row, column)."""

    def change(network: IResNet) -> None:
        def mixed(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (args[0].unflatten(1, (512, 7, 7)).permute(0, 2, 3, 1).flatten(1),)

        network.fc.register_forward_pre_hook(mixed)

    _changed(patch, change)


def unit_length_inside(patch: pytest.MonkeyPatch) -> None:
    """The network normalises its own output, which PGDiff's loss on raw vectors must not see."""
    _changed(patch, lambda network: network.register_forward_hook(lambda _, __, output: F.normalize(output)))


def frozen_scale_taken_for_one(patch: pytest.MonkeyPatch) -> None:
    """The conversion leaves out the one weight that training never changed."""
    _changed(patch, lambda network: nn.init.ones_(network.features.weight))


def shortcut_after_the_norm(patch: pytest.MonkeyPatch) -> None:
    """The shortcut begins behind the block's first norm, as in other pre-activation networks."""

    def change(network: IResNet) -> None:
        for _, block in network.blocks():

            def forward(x: Tensor, block: nn.Module = block) -> Tensor:
                x = block.bn1(x)
                shortcut = x if block.downsample is None else block.downsample(x)
                return block.bn3(block.conv2(block.prelu(block.bn2(block.conv1(x))))) + shortcut

            block.forward = forward

    _changed(patch, change)


def batch_statistics(patch: pytest.MonkeyPatch) -> None:
    """Forgetting eval mode."""
    _changed(patch, lambda network: network.train())


def shuffled_blocks(patch: pytest.MonkeyPatch) -> None:
    """The conversion swaps the norms of a block: names and shapes all fit."""
    converted = convert.convert_arcface_iresnet

    def swapped(state: dict[str, Tensor]) -> IResNet:
        names = {"bn2": "bn3", "bn3": "bn2"}
        renamed = {}
        for name, tensor in state.items():
            parts = name.split(".")
            if name.startswith("layer") and parts[2] in names:
                parts[2] = names[parts[2]]
            renamed[".".join(parts)] = tensor
        return converted(renamed)

    patch.setattr(convert, "convert_arcface_iresnet", swapped)


CASES = [
    (taps_a_block_early, guidance),
    (taps_a_stage_late, guidance),
    (stem_before_its_activation, guidance),
    (blue_first, embedding),
    (norm_epsilon, embedding),
    (norm_epsilon, activations),
    (activation_after_the_addition, activations),
    (stride_in_the_first_convolution, embedding),
    (channels_last_flattening, embedding),
    (unit_length_inside, embedding),
    (frozen_scale_taken_for_one, embedding),
    (shortcut_after_the_norm, embedding),
    (batch_statistics, embedding),
    (shuffled_blocks, embedding),
]


@pytest.mark.parametrize(("trap", "compare"), CASES, ids=lambda each: each.__name__)
def test_a_sprung_trap_is_noticed(trap, compare, recorded, monkeypatch):
    trap(monkeypatch)
    with pytest.raises(AssertionError, match="is off by"):
        compare(recorded)


@pytest.mark.parametrize("compare", {compare: None for _, compare in CASES}, ids=lambda each: each.__name__)
def test_without_a_trap_the_comparison_passes(compare, recorded):
    compare(recorded)


@torch.no_grad()
def test_unit_length_does_not_show_in_the_distances(recorded, monkeypatch):
    # Why the raw embedding is compared as well: an angle is the same whatever the lengths.
    unit_length_inside(monkeypatch)
    network = parity.load(recorded)
    high = 1 - F.cosine_similarity(*network(recorded.pictures.double()).split(1))
    parity.close(high, recorded.arrays["d_high"], parity.DOUBLE, "d_high")
