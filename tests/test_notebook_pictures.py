"""Grids, sliders and frame strips: they show what came in, in few bytes, with words for those who do not see it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.notebook import blank_figure, compare, frame_strip, histograms, image_grid, paths, scatter
from refbfr_core.notebook.encoding import jpeg_bytes, png_bytes, require_alt, side_by_side, to_pixels
from refbfr_core.notebook.frames import evenly_spaced

ALT = "A plain test picture: red on the left, blue on the right."


def half_red_half_blue(size: int = 32) -> torch.Tensor:
    picture = torch.zeros(3, size, size)
    picture[0, :, : size // 2] = 1.0
    picture[2, :, size // 2 :] = 1.0
    return picture


def noise(size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def embedded_pictures(text: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


# ---------------------------------------------------------------- pixels


def test_pixels_keep_channel_order_and_are_never_stretched():
    dim = half_red_half_blue() * 0.5
    pixels = to_pixels(dim)
    assert pixels.shape == (32, 32, 3)
    assert pixels[0, 0].tolist() == [128, 0, 0] and pixels[0, -1].tolist() == [0, 0, 128]


def test_masks_are_grey():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    pixels = to_pixels(mask)
    assert (pixels[:4] == 255).all() and (pixels[4:] == 0).all()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((3, 8, 8), dtype=np.float32),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.full((3, 8, 8), -0.5),
        torch.full((3, 8, 8), 255.0),
        torch.zeros(2, 3, 8, 8),
        torch.zeros(8, 8, 3),
        torch.full((3, 8, 8), float("nan")),
    ],
    ids=["array", "bytes", "network range", "0-255", "two pictures", "channels last", "nan"],
)
def test_pictures_that_break_the_contract_are_refused(bad):
    with pytest.raises(ImageContractError):
        to_pixels(bad)


def test_jpeg_size_is_bounded_even_for_noise():
    pixels = to_pixels(noise(512))
    for bound in (60_000, 10_000, 2_500):
        data = jpeg_bytes(pixels, max_bytes=bound)
        assert len(data) <= bound
        Image.open(io.BytesIO(data)).verify()
    with pytest.raises(ConfigError, match="too small"):
        jpeg_bytes(pixels, max_bytes=100)


def test_still_picture_has_all_tiles_and_shortens_long_labels():
    tiles = [to_pixels(half_red_half_blue(64)), to_pixels(torch.ones(3, 64, 64))]
    sheet = np.asarray(side_by_side(tiles, ["a very long label that cannot fit over so small a tile", "b"]))
    assert sheet.shape[1] == 64 + 4 + 64
    assert sheet[40, 5].tolist() == [255, 0, 0] and sheet[40, 60].tolist() == [0, 0, 255]


def test_palette_keeps_flat_colours_and_stays_close_elsewhere():
    picture = torch.cat([torch.ones(3, 64, 32), torch.zeros(3, 64, 32), noise(64)], dim=2)
    pixels = to_pixels(picture)
    small = np.asarray(Image.open(io.BytesIO(png_bytes(Image.fromarray(pixels), full_colour_up_to=0))).convert("RGB"))
    assert (small[:, :32] >= 253).all() and (small[:, 32:64] <= 2).all()
    assert np.abs(small.astype(int) - pixels).mean() < 12
    exact = np.asarray(Image.open(io.BytesIO(png_bytes(Image.fromarray(pixels), full_colour_up_to=10**6))))
    assert (exact == pixels).all()


@pytest.mark.parametrize("alt", [None, "", "   ", "figure", 3])
def test_alternative_text_is_required(alt):
    with pytest.raises(ConfigError, match="alternative text"):
        require_alt(alt, "a figure")


# ---------------------------------------------------------------- grids


def drawn(figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_grid_shows_the_true_brightness_of_every_cell():
    """Two flat greys must stay two greys; a display that stretches each picture would make them equal."""
    figure = image_grid([[torch.full((3, 16, 16), 0.25)], [torch.full((3, 16, 16), 0.75)]])
    shown = drawn(figure)
    seen = {int(value) for value in np.unique(shown[..., 0]) if (shown[..., 0] == value).mean() > 0.1}
    assert {64, 191} <= seen


def test_grid_accepts_all_nestings_and_labels():
    batch = torch.stack([half_red_half_blue(16)] * 6)
    assert len(image_grid(batch).axes) == 6
    assert len(image_grid(batch, wrap=4).axes) == 8
    assert (
        len(image_grid(batch.reshape(2, 3, 3, 16, 16), row_labels=["a", "b"], column_labels=["1", "2", "3"]).axes) == 6
    )
    figure = image_grid([[batch[0], None], [batch[1]]], captions=[["first", None], ["second"]])
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == ["first", "", "second", ""]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([], {}),
        ([[None]], {}),
        (torch.zeros(3, 8, 8), {}),
        (torch.zeros(2, 3, 8, 8), {"row_labels": ["a", "b"]}),
        (torch.zeros(2, 3, 8, 8), {"column_labels": ["a"]}),
        (torch.zeros(2, 2, 3, 8, 8), {"wrap": 2}),
    ],
    ids=["no rows", "only gaps", "no batch axis", "row labels", "column labels", "wrap of a table"],
)
def test_grid_refuses_what_it_cannot_draw(rows, options):
    with pytest.raises(ConfigError):
        image_grid(rows, **options)


def test_grid_names_the_cell_that_is_wrong():
    with pytest.raises(ImageContractError, match="row 0, column 1"):
        image_grid([[torch.zeros(3, 8, 8), torch.full((3, 8, 8), 2.0)]])


def test_blank_figure_belongs_to_no_pyplot_list():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    _, axes = blank_figure(2, 3)
    assert [len(row) for row in axes] == [3, 3] and plt.get_fignums() == before
    with pytest.raises(ConfigError):
        blank_figure(0, 1)


# ---------------------------------------------------------------- slider


def test_slider_is_self_contained_and_small():
    slider = compare(noise(128), noise(128, seed=1), alt=ALT, labels=("input", 'restored "A" & B'))
    text = slider.html
    assert len(text) < 200_000
    assert "http" not in text and "<script" not in text and "<style" not in text
    assert len(embedded_pictures(text)) == 2
    assert "restored &quot;A&quot; &amp; B" in text and f'aria-label="{ALT}"' in text


def test_slider_bundle_has_a_still_picture_with_alternative_text():
    bundle, metadata = compare(half_red_half_blue(), torch.ones(3, 32, 32), alt=ALT)._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert still.width >= 2 * 32 and metadata["image/png"]["alt"] == bundle["text/plain"] == ALT


def test_same_pictures_give_the_same_bytes():
    assert compare(noise(64), noise(64, 1), alt=ALT) == compare(noise(64), noise(64, 1), alt=ALT)


def test_slider_refuses_bad_input():
    good = half_red_half_blue()
    with pytest.raises(ImageContractError, match="equal sizes"):
        compare(good, half_red_half_blue(64), alt=ALT)
    with pytest.raises(ConfigError, match="two names"):
        compare(good, good, alt=ALT, labels=("only one",))
    with pytest.raises(ConfigError, match="width"):
        compare(good, good, alt=ALT, width=3)
    with pytest.raises(ConfigError, match="alternative text"):
        compare(good, good, alt="")


# A document small enough to read: just what the two scripts touch.
_FAKE_DOCUMENT = """
function Node(tag) {
  this.tag = tag; this.style = {}; this.dataset = {}; this.children = []; this.attributes = {}; this.listeners = {};
}
Node.prototype.appendChild = function (child) { this.children.push(child); child.parent = this; };
Node.prototype.setAttribute = function (name, value) { this.attributes[name] = value; };
Node.prototype.addEventListener = function (name, action) { this.listeners[name] = action; };
Node.prototype.all = function (tag) {
  return this.children.reduce(function (found, c) { return found.concat(c.tag === tag ? [c] : [], c.all(tag)); }, []);
};
Node.prototype.querySelector = function (tag) { return this.all(tag)[0]; };
Node.prototype.querySelectorAll = function (tag) { return this.all(tag); };
Node.prototype.closest = function (tag) { return this.tag === tag ? this : this.parent && this.parent.closest(tag); };
Object.defineProperty(Node.prototype, 'firstElementChild', { get: function () { return this.children[0]; } });
var document = { createElement: function (tag) { return new Node(tag); } };
function page(labels) {
  var figure = new Node('figure'), table = new Node('table');
  figure.dataset.side = 320; figure.appendChild(table);
  labels.forEach(function (label, i) {
    var img = new Node('img'); img.src = 'picture ' + i; img.alt = label; img.dataset.label = label;
    table.appendChild(img);
  });
  return figure;
}
"""


def run_script(markup: str, labels: list[str], moves: str) -> dict:
    """Run the script of a slider or strip in node on a fake document; `moves` returns the report."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the sliders' script cannot be run here")
    script = html.unescape(re.search(r'onload="([^"]*)"', markup).group(1))
    program = (
        f"{_FAKE_DOCUMENT} var figure = page({json.dumps(labels)}), pictures = figure.all('img');"
        f"function load() {{ {script} }} load.call(pictures[pictures.length - 1]); load.call(pictures[0]);"
        f"console.log(JSON.stringify((function () {{ {moves} }})()));"
    )
    done = subprocess.run([node, "-e", program], capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)


def test_slider_script_builds_one_labelled_range_that_moves_the_divider():
    markup = compare(half_red_half_blue(), torch.ones(3, 32, 32), alt=ALT, labels=("input", "restored")).html
    report = run_script(
        markup,
        ["input", "restored"],
        "var inputs = figure.all('input'), over = figure.all('img')[3]; var start = over.style.clipPath;"
        "inputs[0].value = 80; inputs[0].listeners.input();"
        "return {count: inputs.length, type: inputs[0].type, name: inputs[0].attributes['aria-label'], start: start,"
        "moved: over.style.clipPath, spoken: inputs[0].attributes['aria-valuetext'],"
        "table: figure.all('table')[0].style.display};",
    )
    assert (
        report["count"] == 1
        and report["type"] == "range"
        and "input" in report["name"]
        and "restored" in report["name"]
    )
    assert report["start"] == "inset(0 50% 0 0)" and report["moved"] == "inset(0 20% 0 0)"
    assert report["spoken"] == "80 percent input" and report["table"] == "none"


# ---------------------------------------------------------------- frames


def test_strip_holds_every_frame_and_bounds_their_sum():
    frames = torch.stack([noise(128, seed) for seed in range(12)])
    strip = frame_strip(frames, [f"t = {i}" for i in range(12)], alt=ALT, max_bytes=120_000)
    assert len(strip.frames) == 12 and sum(map(len, strip.frames)) <= 120_000
    assert len(embedded_pictures(strip.html)) == 12 and "<script" not in strip.html


def test_strip_shows_frames_in_order():
    frames = [torch.full((3, 16, 16), level) for level in (0.0, 0.5, 1.0)]
    strip = frame_strip(frames, ["dark", "grey", "light"], alt=ALT)
    means = [picture.mean() for picture in embedded_pictures(strip.html)]
    assert means == pytest.approx([0, 128, 255], abs=2)
    still = np.asarray(Image.open(io.BytesIO(strip.still)))
    assert still[-1, 8].max() < 5 and still[-1, -8].min() > 250


def test_strip_script_changes_frame_and_label():
    frames = torch.stack([noise(16, seed) for seed in range(4)])
    labels = ["a", "b", "c", "d"]
    report = run_script(
        frame_strip(frames, labels, alt=ALT).html,
        labels,
        "var input = figure.all('input')[0], stage = figure.all('img')[4]; var first = stage.src;"
        "input.value = '2'; input.listeners.input();"
        "return {first: first, then: stage.src, text: figure.all('span')[0].textContent, max: input.max,"
        "count: figure.all('input').length, button: figure.all('button').length};",
    )
    expected = {"first": "picture 0", "then": "picture 2", "text": "c", "max": 3, "count": 1, "button": 1}
    assert report == expected


def test_live_strip_follows_its_slider():
    pytest.importorskip("ipywidgets")
    strip = frame_strip([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)], ["dark", "light"], alt=ALT)
    box = strip.live()
    picture, controls = box.children
    assert picture.value == strip.frames[0]
    controls.children[1].index = 1
    assert picture.value == strip.frames[1]


def test_strip_refuses_bad_input():
    one, other = torch.zeros(3, 16, 16), torch.zeros(3, 8, 8)
    with pytest.raises(ConfigError, match="2 to 64"):
        frame_strip([one], ["a"], alt=ALT)
    with pytest.raises(ConfigError, match=r"\[::2\]"):
        frame_strip([one] * 100, ["a"] * 100, alt=ALT)
    with pytest.raises(ConfigError, match="labels"):
        frame_strip([one, one], ["a"], alt=ALT)
    with pytest.raises(ImageContractError, match="differ in size"):
        frame_strip([one, other], ["a", "b"], alt=ALT)
    with pytest.raises(ConfigError, match="too small"):
        frame_strip([one, one], ["a", "b"], alt=ALT, max_bytes=10)


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(5, 9, [0, 1, 2, 3, 4]), (10, 1, [9]), (10, 2, [0, 9]), (11, 6, [0, 2, 4, 6, 8, 10])],
)
def test_evenly_spaced(count, wanted, expected):
    assert evenly_spaced(count, wanted) == expected


# ---------------------------------------------------------------- plots


def test_scatter_draws_every_point_once_and_classes_apart():
    ax = blank_figure()[1][0][0]
    points, labels = torch.rand(30, 2), torch.arange(30) % 3
    scatter(ax, points, labels, title="three")
    drawn = [collection.get_offsets() for collection in ax.collections]
    assert [len(part) for part in drawn] == [10, 10, 10] and ax.get_title() == "three"
    assert len({tuple(collection.get_facecolor()[0]) for collection in ax.collections}) == 3
    np.testing.assert_allclose(drawn[1], points[1::3].numpy(), rtol=1e-6)


def test_paths_go_from_start_to_end():
    ax = blank_figure()[1][0][0]
    steps = torch.rand(5, 2, 2)
    paths(ax, steps)
    assert len(ax.lines) == 6
    np.testing.assert_allclose(np.stack(ax.lines[3].get_data(), 1), steps[:, 1].numpy(), rtol=1e-6)


def test_histograms_share_their_bins_and_have_equal_area():
    ax = blank_figure()[1][0][0]
    histograms(ax, {"few": [0.0, 1.0], "many": np.linspace(0, 1, 500)}, bins=10)
    areas = [sum(bar.get_width() * bar.get_height() for bar in bars) for bars in ax.containers]
    assert areas == pytest.approx([1.0, 1.0])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["few", "many"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: scatter(ax, torch.zeros(3, 3)),
        lambda ax: scatter(ax, torch.zeros(3, 2), torch.zeros(2)),
        lambda ax: paths(ax, torch.zeros(1, 3, 2)),
        lambda ax: histograms(ax, {}),
        lambda ax: histograms(ax, {"a": []}),
    ],
    ids=["three axes", "labels", "one step", "no group", "empty group"],
)
def test_plots_refuse_bad_input(draw):
    with pytest.raises(ConfigError):
        draw(blank_figure()[1][0][0])
