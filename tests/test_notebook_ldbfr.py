"""Figures of notebook 08: codes as a vocabulary, and what attention and injection do with them."""

from __future__ import annotations

import pytest
import tiny_ldbfr
import torch

from refbfr_core.errors import ConfigError
from refbfr_core.images import from_network, to_network
from refbfr_core.metrics import Interval
from refbfr_core.models import encode_latents
from refbfr_core.models.dual_cross_attention import DualCrossAttention
from refbfr_core.models.hq_injection import resample_condition
from refbfr_core.models.vq_restorer import decode_feature, encode_feature
from refbfr_core.notebook import code_figures as words
from refbfr_core.notebook import ldbfr_figures as figures

BLOCK = tiny_ldbfr.SIDE // tiny_ldbfr.FEATURES[1]


@pytest.fixture(scope="module")
def vq():
    return tiny_ldbfr.condition_vq()


@pytest.fixture(scope="module")
def codes():
    return torch.randint(tiny_ldbfr.CODES - 4, (5, 4, 4), generator=torch.Generator().manual_seed(0))


def texts(ax):
    return [each.get_text() for each in ax.texts]


def test_a_face_is_written_in_the_nearest_codes(vq):
    pictures = tiny_ldbfr.faces(5)
    codes = words.written(vq, pictures)
    assert codes.shape == (5, 4, 4) and codes.dtype == torch.int64
    with torch.no_grad():
        feature = encode_feature(vq, to_network(pictures[3:4]))[0].flatten(1).T
    distances = torch.cdist(feature, vq.quantize.embedding.weight.detach())
    chosen = distances.gather(1, codes[3].reshape(-1, 1)).squeeze(1)
    assert torch.allclose(chosen, distances.min(dim=1).values, atol=1e-5)
    assert len(codes.unique()) > 1 and torch.equal(words.written(vq, pictures[3:4])[0], codes[3])


def test_codes_are_spoken_by_the_decoder_alone(vq, codes):
    pictures = words.spoken(vq, codes)
    assert pictures.shape == (5, 3, 64, 64) and 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    with torch.no_grad():
        features = vq.quantize.embedding.weight[codes[2]].permute(2, 0, 1)[None]
        expected = from_network(decode_feature(vq, features))[0]
    assert torch.allclose(pictures[2], expected, atol=1e-6)
    assert not torch.equal(words.spoken(vq, words.with_code(codes[2], (1, 2), 31)[None])[0], pictures[2])


def test_uses_are_counted_at_every_place():
    codes = torch.tensor([[[0, 1], [2, 2]], [[0, 3], [2, 0]]])
    counts = words.use_counts(codes, 5)
    assert counts.shape == (5, 2, 2) and bool((counts.sum(0) == 2).all())
    assert counts[0].tolist() == [[2, 0], [0, 1]] and counts[2].tolist() == [[0, 0], [2, 1]] and not counts[4].any()
    assert words.usual_place(counts)[:4].tolist() == [[0, 0], [0, 1], [1, 0], [0, 1]]


def test_effective_codes_count_what_is_used_evenly():
    assert words.effective_codes(torch.full((8, 1, 1), 3)) == pytest.approx(8)
    assert words.effective_codes(torch.tensor([7, 0, 0])[:, None, None]) == pytest.approx(1)
    assert words.effective_codes(torch.tensor([5, 5, 0])[:, None, None]) == pytest.approx(2)
    assert 1 < words.effective_codes(torch.tensor([9, 1, 0])[:, None, None]) < 2


def test_another_code_at_one_place_leaves_the_map_alone(codes):
    before = codes[0].clone()
    out = words.with_code(codes[0], torch.tensor([3, 1]), 31)
    assert torch.equal(codes[0], before) and out[3, 1] == 31
    assert int((out != before).sum()) == 1


def test_patches_are_cut_where_a_code_is_at_home(vq, codes):
    counts = words.use_counts(codes, tiny_ldbfr.CODES)
    patches = words.code_patches(vq, codes, counts)
    assert patches.shape == (tiny_ldbfr.CODES, 3, 2 * BLOCK, 2 * BLOCK)
    unused = counts.flatten(1).sum(1) == 0
    assert unused.any() and bool((patches[unused] == 1).all())
    code = int(counts.flatten(1).sum(1).argmax())
    row, column = words.usual_place(counts)[code].tolist()
    user = int((codes[:, row, column] == code).nonzero()[0])
    face = words.spoken(vq, codes)[user]
    own = face[:, BLOCK * row : BLOCK * (row + 1), BLOCK * column : BLOCK * (column + 1)]
    half = BLOCK // 2
    assert torch.equal(patches[code][:, half:-half, half:-half], own)


def test_the_sheet_begins_with_the_most_used_code():
    patches = torch.stack([torch.full((3, 4, 4), value) for value in (0.1, 0.2, 0.3)])
    out = words.sheet(patches, torch.tensor([2, 0, 9])[:, None, None], columns=2)
    assert [round(float(out[0, y, x]), 1) for y, x in ((0, 0), (0, 6), (6, 0))] == [0.3, 0.1, 0.2]


def test_share_maps_are_percentages_on_one_range():
    shares = {"mild": torch.tensor([[0.0, 0.25], [0.5, 1.0]]), "severe": torch.full((2, 2), 0.75)}
    left, right = words.share_map_figure(shares).axes
    assert texts(left) == ["0", "25", "50", "100"] and texts(right) == ["75"] * 4
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0, 1)
    assert left.get_title() == "mild"


def test_numbers_stand_in_their_places():
    (ax,) = words.numbered_figure(torch.rand(3, 8, 8), torch.arange(4).reshape(2, 2)).axes
    found = {each.get_position(): each.get_text() for each in ax.texts}
    assert found == {(0.5, 0.5): "0", (1.5, 0.5): "1", (0.5, 1.5): "2", (1.5, 1.5): "3"}
    assert ax.images[0].get_clim() == (0, 1)


def test_changed_places_are_counted(codes):
    other = words.with_code(codes[0], (0, 0), 31)[None]
    assert words.changed(torch.cat([codes[:1], other]), codes[:1].expand(2, -1, -1)).tolist() == [0, 1 / 16]
    with pytest.raises(ConfigError, match="shapes"):
        words.changed(codes, codes[:1])


def test_what_comes_back_of_a_change():
    change = torch.zeros(4, 3, 8, 8)
    change[:, :, 2, 2] = 0.5
    elsewhere = torch.zeros_like(change[0])
    elsewhere[:, 6, 6] = 0.5
    back = torch.stack([change[0], 0.25 * change[0], elsewhere, -change[0] + elsewhere])
    assert words.survives(change, back).tolist() == pytest.approx([1, 0.25, 0, -1])
    for wrong in (change[:2], change[0]):
        with pytest.raises(ConfigError):
            words.survives(change, wrong)
    with pytest.raises(ConfigError, match="every picture"):
        words.survives(torch.zeros_like(change), back)


def test_outlines_touch_only_the_edges_of_their_blocks():
    picture = torch.full((3, 16, 16), 0.5)
    places = torch.tensor([[True, False], [False, False]])
    out = words.outlined(picture, places)
    touched = (out != picture).any(0)
    assert int(touched.sum()) == 4 * 7 and touched[:8, :8].sum() == 28
    assert torch.equal(words.outlined(picture, torch.zeros(2, 2, dtype=torch.bool)), picture)


def test_places_around_points():
    points = torch.tensor([[0.30, 0.60], [float("nan"), 0.1]])
    assert words.places_around(points, 4, reach=0.0).nonzero().tolist() == [[2, 1]]
    # 0.06 to the left of 0.30 lies in the first column.
    assert words.places_around(points, 4, reach=0.06).nonzero().tolist() == [[2, 0], [2, 1]]
    assert not words.places_around(points[1:], 4).any()


def test_the_channel_matrix_is_the_modules_own():
    f_lq = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    for scaled in (True, False):
        dcam = DualCrossAttention(8, 2, channel_scale=scaled)
        matrix = figures.channel_matrix(f_lq, scaled)
        assert torch.equal(matrix, dcam.look(f_lq, f_lq, ("channel",)).channel_map)
        assert torch.allclose(matrix.sum(-1), torch.ones(2, 8))
    sharp, soft = (figures.matrix_statistics(figures.channel_matrix(f_lq, scaled)) for scaled in (False, True))
    assert sharp["largest"] > soft["largest"] and sharp["effective"] < soft["effective"]


def test_statistics_of_known_matrices():
    eye = torch.eye(4)[None]
    expected = {"diagonal": 1, "largest": 1, "itself": 1, "effective": 1}
    assert figures.matrix_statistics(eye) == pytest.approx(expected)
    expected = {"diagonal": 0, "largest": 1, "itself": 0, "effective": 1}
    assert figures.matrix_statistics(eye.roll(1, 2)) == pytest.approx(expected)
    uneven = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [1.0, 0.0, 0.0]]])
    found = figures.matrix_statistics(uneven)
    assert found["diagonal"] == pytest.approx(1 / 3) and found["effective"] == pytest.approx((2 + 2**1.5 + 1) / 3)
    left, right, *_ = figures.matrix_figure({"one": eye[0], "other": uneven[0]}).axes
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0, 1) and left.get_title() == "one"


def test_biases_lie_beside_each_other_by_channel():
    shifted = [Interval(value, value - 1, value + 2, 12) for value in (3.0, 0.0, -4.0)]
    none = [Interval(0.0, -0.5, 0.5, 12)] * 3
    figure = figures.bias_figure({"mild": {"A": none, "B": shifted}, "severe": {"A": none, "B": none}})
    left, right = figure.axes
    found = [tuple(map(float, bars.lines[0].get_xydata()[0])) for bars in left.containers[3:]]
    assert [x for x, _ in found] == [3, 0, -4] and [y for _, y in found] == pytest.approx([0.78, 1, 1.22])
    (segment,) = left.containers[3].lines[2][0].get_segments()
    assert list(segment[:, 0]) == [2, 5]
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["red", "green", "blue"]
    assert left.get_xlim() == right.get_xlim() and left.get_ylim()[0] > left.get_ylim()[1]


def test_arms_have_a_mark_for_every_severity():
    gap = Interval(-0.5, -0.75, -0.25, 30)
    own = {"B": {"mild": gap, "severe": None}, "C": {"mild": None, "severe": gap}}
    figure = figures.arm_interval_figure({"ids": own, "psnr": own, "lpips": own}, dict.fromkeys(own_scores, "x"))
    first, second, third, empty = figure.axes
    ((x, y),) = first.containers[0].lines[0].get_xydata()
    assert (x, y) == pytest.approx((-0.5, -0.11))
    ((_, y),) = first.containers[1].lines[0].get_xydata()
    assert y == pytest.approx(1.11) and len(first.containers) == 2
    assert [each.get_text() for each in first.get_yticklabels()] == ["B", "C"] and not empty.axison
    assert first.get_ylim()[0] > first.get_ylim()[1] and third.get_xlabel() == "x"
    # Both severities are explained, although neither is drawn for every arm.
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["mild", "severe"]


own_scores = ("ids", "psnr", "lpips")


def test_shuffled_numbers_are_written_where_they_went():
    small = torch.arange(16.0).reshape(4, 2, 2)
    axes = figures.shuffle_figure({"f": small, "P": resample_condition(small[None], 4)[0]}).axes
    assert len(axes) == 5 and texts(axes[1]) == ["4", "5", "6", "7"]
    assert texts(axes[4])[:6] == ["0", "4", "1", "5", "8", "12"]
    assert len({ax.images[0].get_clim() for ax in axes}) == 1


def test_latents_are_shown_by_the_output_decoder():
    vqo, pictures = tiny_ldbfr.output_vq(), tiny_ldbfr.faces(2)
    with torch.no_grad():
        latents = encode_latents(vqo, pictures)
    rounded, smooth = (figures.latent_pictures(vqo, latents, quantize) for quantize in (True, False))
    assert rounded.shape == pictures.shape and not torch.equal(rounded, smooth)
    assert 0 <= float(rounded.min()) <= float(rounded.max()) <= 1


def test_deviation_and_difference_as_grey_pictures():
    pictures = torch.full((2, 3, 4, 4), 0.5)
    pictures[0, :, 0, 0], pictures[1, :, 0, 0] = 0.4, 0.6
    out = figures.spread(pictures, full=0.4)
    assert out.shape == (3, 4, 4) and float(out[0, 0, 0]) == pytest.approx(0.02**0.5 / 0.4) and not out[:, 1:].any()
    assert float(figures.spread(pictures, full=0.01).max()) == 1
    gap = figures.difference(pictures[0], pictures[1], full=0.8)
    assert float(gap[2, 0, 0]) == pytest.approx(0.25) and not gap[:, 1:].any()


def test_half_widths_as_text():
    assert figures.half_width(Interval(21.5, 21.0, 22.5, 9)) == "21.50 ± 0.75"
    assert figures.half_width(Interval(-21.5, -22.0, -20.0, 9), 1) == "-21.5 ± 1.0"
    assert figures.half_width(Interval(-1e-9, -0.1, 0.1, 9), 1) == "0.0 ± 0.1"
    assert figures.half_width(None) == "–"
