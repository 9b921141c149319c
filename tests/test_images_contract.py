"""The image contract: what is refused, what the message says, and the conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refbfr_core.errors import ImageContractError, RefbfrError
from refbfr_core.images import (
    MAX_REFERENCES,
    check_images,
    check_references,
    from_network,
    from_uint8,
    stack_references,
    to_network,
    to_uint8,
)


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(shape or (2, 3, 8, 6))


def test_a_good_batch_passes_unchanged() -> None:
    images = picture()
    assert check_images(images) is images


def test_contract_errors_are_value_errors_and_package_errors() -> None:
    with pytest.raises(ImageContractError) as caught:
        check_images(None)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RefbfrError)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((1, 3, 4, 4), np.float32), ["numpy.ndarray", "from_uint8"]),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["uint8", "from_uint8"]),
        (torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), ["float64", ".float()", "[0.5, 0.5]"]),
        (torch.full((1, 3, 4, 4), 0.5, dtype=torch.bfloat16), ["bfloat16", ".float()"]),
        (torch.zeros(3, 4, 4), ["(3, 4, 4)", "x[None]"]),
        (torch.zeros(2, 5, 3, 4, 4), ["(2, 5, 3, 4, 4)", "flatten(0, 1)"]),
        (torch.zeros(1, 4, 4, 3), ["channels come last", "permute(0, 3, 1, 2)"]),
        (torch.zeros(1, 1, 4, 4), ["grey", "expand"]),
        (torch.zeros(1, 4, 4, 5), ["alpha", "[:, :3]"]),
        (torch.zeros(0, 3, 4, 4), ["(0, 3, 4, 4)", "at least one image"]),
        (torch.zeros(1, 3, 0, 4), ["(1, 3, 0, 4)", "empty"]),
        (torch.full((1, 3, 4, 4), 200.0), ["[200, 200]", "divide by 255"]),
        (torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4), ["[-1, 1]", "from_network"]),
        (torch.linspace(0, 1.2, 48).reshape(1, 3, 4, 4), ["[0, 1.2]", "clamp(0, 1)"]),
        (torch.full((1, 3, 4, 4), float("nan")), ["NaN"]),
        (torch.full((1, 3, 4, 4), float("inf")), ["infinity"]),
    ],
)
def test_a_broken_contract_names_what_came_and_the_cure(wrong: object, words: list[str]) -> None:
    with pytest.raises(ImageContractError) as caught:
        check_images(wrong, "lq")
    message = str(caught.value)
    assert message.startswith("lq ")
    assert "expected" in message
    for word in words:
        assert word in message


def test_one_nan_among_good_values_is_found() -> None:
    images = picture()
    images[1, 2, 3, 4] = float("nan")
    with pytest.raises(ImageContractError, match="NaN"):
        check_images(images)


def test_overshoot_of_float_arithmetic_is_not_a_range_mistake() -> None:
    images = torch.tensor([-1e-7, 1 + 1e-6, 0.5]).repeat(16).reshape(1, 3, 4, 4)
    assert check_images(images) is images
    with pytest.raises(ImageContractError):
        check_images(images + 1e-3)


def test_references_without_mask_are_all_used() -> None:
    references, mask = check_references(picture(2, 4, 3, 8, 6), lq=picture())
    assert references.shape == (2, 4, 3, 8, 6)
    assert mask.dtype == torch.bool and mask.shape == (2, 4) and bool(mask.all())


def test_a_person_may_have_no_reference_at_all() -> None:
    given = torch.tensor([[True, False], [False, False]])
    _, mask = check_references(picture(2, 2, 3, 8, 6), given)
    assert torch.equal(mask, given)


@pytest.mark.parametrize(
    ("references", "mask", "words"),
    [
        (picture(4, 3, 8, 6), None, ["(4, 3, 8, 6)", "references[None]"]),
        (picture(2, 2, 4, 8, 6), None, ["(B, R, 3, H, W)"]),
        (picture(2, 0, 3, 8, 6), None, ["references=None"]),
        (picture(0, 2, 3, 8, 6), None, ["empty batch"]),
        (picture(2, 30, 3, 8, 6), None, ["30 references", f"at most {MAX_REFERENCES}"]),
        (picture(3, 2, 3, 8, 6), None, ["3 people", "2 images", "expand"]),
        (picture(2, 2, 3, 16, 12), None, ["16×12", "8×6", "interpolate"]),
        (picture(2, 2, 3, 8, 6) * 2 - 1, None, ["references lies in", "from_network"]),
        ([picture(3, 8, 6)], None, ["builtins.list"]),
        (picture(2, 2, 3, 8, 6), torch.ones(2, 2), ["float32", "mask.bool()"]),
        (picture(2, 2, 3, 8, 6), torch.ones(2, 3, dtype=torch.bool), ["(2, 3)", "(2, 2)"]),
        (picture(2, 2, 3, 8, 6), [[True, True]] * 2, ["a list", "bool"]),
    ],
)
def test_broken_references_are_refused_with_the_cure(references: object, mask: object, words: list[str]) -> None:
    with pytest.raises(ImageContractError) as caught:
        check_references(references, mask, lq=torch.zeros(2, 3, 8, 6))
    for word in words:
        assert word in str(caught.value)


def test_thirty_references_pass_when_asked_for() -> None:
    references, mask = check_references(picture(1, 30, 3, 4, 4), max_references=30)
    assert references.shape[1] == mask.shape[1] == 30


def test_stacking_pads_and_masks() -> None:
    a, b, c = picture(1, 3, 4, 4), picture(3, 4, 4), picture(1, 3, 4, 4)
    references, mask = stack_references([[a, b], [], [c]])
    assert references.shape == (3, 2, 3, 4, 4)
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    assert torch.equal(references[0, 1], b)
    assert torch.equal(references[2, 0], c[0])
    assert not references[~mask].any()
    check_references(references, mask)


@pytest.mark.parametrize(
    ("people", "words"),
    [
        ([[], []], "references=None"),
        ([[torch.zeros(3, 4, 4), torch.zeros(3, 8, 8)]], "4×4, 8×8"),
        ([[torch.zeros(2, 3, 4, 4)]], "reference 0 of person 0 holds 2"),
        ([[torch.zeros(3, 4, 4) + 7]], "reference 0 of person 0 lies in"),
    ],
)
def test_stacking_refuses_what_does_not_fit(people: list[list[torch.Tensor]], words: str) -> None:
    with pytest.raises(ImageContractError, match=words.replace("(", r"\(")):
        stack_references(people)


def test_bytes_round_halves_to_even() -> None:
    levels = torch.tensor([0.5, 1.5, 2.5, 254.5, 0.49, 255.0]) / 255
    pixels = to_uint8(levels.repeat(3).reshape(1, 3, 1, 6))
    assert pixels.shape == (1, 1, 6, 3) and pixels.dtype == torch.uint8
    assert pixels[0, 0, :, 0].tolist() == [0, 2, 2, 254, 0, 255]


def test_all_bytes_survive_the_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels)


def test_read_only_arrays_are_copied() -> None:
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    pixels.setflags(write=False)
    images = from_uint8(pixels)
    images += 1
    assert pixels.max() == 0


@pytest.mark.parametrize("wrong", [np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2, 2, 3), np.float32), [[1]]])
def test_bytes_of_another_kind_are_refused(wrong: object) -> None:
    with pytest.raises(ImageContractError, match="expected uint8 RGB"):
        from_uint8(wrong)


def test_network_range_round_trip_and_clamp() -> None:
    images = picture()
    assert torch.equal(to_network(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(from_network(to_network(images)), images)
    assert from_network(torch.tensor([-3.0, 3.0])).tolist() == [0.0, 1.0]
