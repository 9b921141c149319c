"""Traits: identity and view numbers turned into geometry, colours and choices, once per picture.

Positions on the head are coordinates ``(a, b)`` of the azimuthal map (see :mod:`.fields`): ``a`` grows to the right of
the picture, ``b`` upwards, (0, 0) is the middle of the face. Everything is a ``(B, 1, 1, 1)`` tensor; colours are
``(B, 3, 1, 1)`` in linear light.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .fields import degrees, smooth, srgb_to_linear
from .identity import Numbers

# Published swatches of the Monk Skin Tone scale (Monk, 2019), sRGB.
MONK_SCALE = ("f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420")
_IRIS = ("4a2a14", "6b4423", "8a6a32", "6d7b45", "4f7d5c", "5b8aa0", "6f9ec4", "8794a0")
_HAIR = ("100d0c", "1d1410", "33211a", "4d2f1f", "6e4529", "96683a", "c79a55", "e2c486", "8a3a1c", "b5562a")


def _palette(codes: tuple[str, ...], position: Tensor) -> Tensor:
    """Colour at ``position`` in [0, 1] along a list of sRGB codes, linear light: ``(B, 3, 1, 1)``."""
    rows = [[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in codes]
    table = srgb_to_linear(torch.tensor(rows, device=position.device))
    x = position.flatten().clamp(0, 1) * (len(codes) - 1)
    low = x.floor().long().clamp(max=len(codes) - 2)
    return torch.lerp(table[low], table[low + 1], (x - low)[:, None])[:, :, None, None]


def colour(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV (each (B, 1, 1, 1), hue in turns) to linear-light RGB ``(B, 3, 1, 1)``."""
    offsets = torch.tensor([5.0, 3.0, 1.0], device=hue.device).view(1, 3, 1, 1)
    k = torch.remainder(offsets + 6 * hue, 6)
    return srgb_to_linear(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))


def rgb_row(r: float, g: float, b: float, like: Tensor) -> Tensor:
    """Constant colour ``(1, 3, 1, 1)`` on the device of ``like``."""
    return torch.tensor([r, g, b], device=like.device).view(1, 3, 1, 1)


def _skin(i: Numbers, t: SimpleNamespace) -> None:
    t.tone = i.chance("skin_tone")
    skin = _palette(MONK_SCALE, t.tone)
    # The swatches are flat samples under white light; living skin is warmer, most where it is fair or very dark.
    warmth = torch.cat([1.15 + 0.05 * i("skin_hue"), 0.81 - 0.01 * i("skin_hue"), 0.66 - 0.08 * i("skin_hue")], 1)
    t.skin = skin * warmth * 0.86 + 0.010 * (1 - t.tone) + rgb_row(0.012, 0.005, 0.002, skin) * t.tone
    t.flush = i("skin_red", 0.25, 1.0) * (1 - 0.65 * t.tone)
    t.gloss = i("skin_gloss", 0.35, 1.0)
    t.freckles = smooth(i("freckles"), 0.25, 1.0) * (1 - smooth(t.tone, 0.5, 0.75))
    t.freckle_scale = i("freckle_size", 4.0, 6.5)
    t.under_eye = i("under_eye", 0.05, 0.45)
    lips_natural = t.skin * torch.tensor([0.86, 0.50, 0.50], device=skin.device).view(1, 3, 1, 1)
    painted = colour(0.97 + 0.035 * i("lip_colour"), 0.55 + 0.25 * i("lip_dark"), 0.66 - 0.2 * i("lip_dark"))
    t.lipstick = smooth(-t.masc, 0.15, 0.3) * smooth(i("lip_colour"), -0.2, 0.2) * 0.75
    t.lips = torch.lerp(lips_natural * (1 - 0.25 * i("lip_dark")), painted, t.lipstick)


def _hair(i: Numbers, t: SimpleNamespace) -> None:
    tone = i.chance("hair_tone")
    # Fair hair is kept rarer on darker skin, as in people, without excluding it.
    tone = torch.where(
        t.tone > 0.45, tone * (1 - 0.75 * smooth(t.tone, 0.45, 0.8) * (i.chance("hair_warmth") > 0.12)), tone
    )
    base = _palette(_HAIR, tone)
    grey = smooth(i.chance("hair_grey") * 0.7 + 0.75 * t.age, 0.85, 1.15)
    silver = torch.lerp(torch.full_like(base, 0.16), torch.full_like(base, 0.52), i.chance("hair_warmth"))
    t.hair = torch.lerp(base * (1 + 0.15 * i("hair_warmth")), silver, grey)
    t.grey = grey
    t.brow_colour = torch.lerp(t.hair, t.skin * 0.22, i("brow_dark", 0.25, 0.7))

    u, male, old = i.chance("hair_style"), t.masc > 0, t.age > 0.45
    # style numbers: 0 bald, 1 buzz, 2 short, 3 short with fringe, 4 tied back with a knot, 5 bob, 6 long, 7 afro
    male_style = torch.bucketize(u, torch.tensor([0.10, 0.24, 0.55, 0.80, 0.80, 0.84, 0.91], device=u.device))
    female_style = torch.bucketize(u, torch.tensor([0.015, 0.05, 0.16, 0.27, 0.46, 0.66, 0.90], device=u.device))
    t.style = torch.where(male, male_style, female_style)
    t.style = torch.where(male & old & (u < 0.24), torch.zeros_like(t.style), t.style)

    def pick(*values: float) -> Tensor:
        return torch.tensor(values, device=u.device)[t.style]

    t.hair_on = pick(0, 1, 1, 1, 1, 1, 1, 1)
    t.thickness = pick(0, 0.025, 0.085, 0.10, 0.06, 0.13, 0.12, 0.30) * (1 + 0.3 * i("hair_volume"))
    t.hair_top = pick(0, 0, 0.5, 0.35, 0.1, 0.25, 0.25, 0.35) * (1 + 0.8 * i("hair_volume"))
    t.fringe = pick(0, 0, 0, 1, 0, 0, 0, 0) + pick(0, 0, 0, 0, 0, 1, 1, 0) * smooth(i("fringe"), 0.1, 0.25)
    t.fringe_line = 0.40 + 0.10 * i("fringe")
    t.cover_ears = pick(0, 0, 0, 0, 0, 1, 1, 0.4)
    t.length = pick(0.3, 0.3, 0.3, 0.35, 0.3, 0.85, 1.75, 0.5) + pick(0, 0, 0, 0, 0, 0.2, 0.35, 0.05) * i("hair_length")
    t.curtain = pick(0, 0, 0, 0, 0, 1, 1, 0)
    t.knot = pick(0, 0, 0, 0, 1, 0, 0, 0)
    t.curl = torch.maximum(
        pick(0, 0, 0, 0, 0, 0, 0, 1), smooth(i("hair_wave"), 0.1, 0.9) * pick(0, 0.2, 0.7, 0.7, 0.1, 0.8, 0.9, 0)
    )
    recede = smooth(i("hair_recession") * 0.6 + t.age * 1.1, 0.35, 1.2) * torch.where(male, 1.0, 0.15)
    t.top_line = 0.755 + 0.07 * i("hair_line") + 0.10 * recede
    t.temple = 0.03 + 0.22 * recede
    t.side_line = 1.13 + 0.05 * i("hair_line")
    t.part = i("hair_part", -0.45, 0.45)
    t.sideburn = i("sideburn", -0.22, 0.05)
    t.hair_gloss = i("hair_gloss", 0.15, 0.6)

    v = i.chance("beard_style")
    # beard numbers: 0 none, 1 stubble, 2 moustache, 3 goatee, 4 full
    t.beard = torch.where(
        male & (t.masc > 0.1),
        torch.bucketize(v, torch.tensor([0.30, 0.55, 0.64, 0.78], device=v.device)),
        torch.zeros_like(t.style),
    )

    def beard(*values: float) -> Tensor:
        return torch.tensor(values, device=v.device)[t.beard]

    t.beard_density = beard(0, 0.26, 0.9, 0.9, 0.95) * (1 + 0.25 * i("beard_density"))
    t.beard_cheek, t.beard_lip, t.beard_chin = beard(0, 1, 0, 0, 1), beard(0, 1, 1, 0.9, 1), beard(0, 1, 0, 1, 1)
    t.beard_volume = beard(0, 0, 0.015, 0.03, 0.05) * (1 + 0.7 * i("beard_density"))


def _features(i: Numbers, t: SimpleNamespace) -> None:
    m = t.masc
    t.eye_a, t.eye_b = i("eye_spacing", 0.360, 0.450), 0.06 + 0.035 * i("eye_height")
    t.eye_w, t.eye_open0 = i("eye_size", 0.155, 0.210), i("eye_open", 0.054, 0.092)
    t.eye_tilt, t.lid_crease = degrees(7.0) * i("eye_tilt"), i("lid_crease", 0.0, 1.0)
    t.lash = 0.35 + 0.3 * i.chance("lash") + 0.35 * smooth(-m, 0.0, 0.4)
    t.brow_b = t.eye_b + 0.225 + 0.04 * i("brow_height") - 0.02 * m
    t.brow_w, t.brow_t = 0.215 + 0.025 * i("brow_length"), 0.038 + 0.014 * i("brow_thickness") + 0.009 * m
    t.brow_arch, t.brow_tilt = 0.030 + 0.030 * i("brow_arch") - 0.008 * m, degrees(8) * i("brow_tilt")
    t.nose_base = -0.33 + 0.045 * i("nose_length") - 0.015 * t.age
    t.nose_w, t.nose_bridge = i("nose_width", 0.115, 0.205), i("nose_bridge", 0.045, 0.085)
    t.nose_h, t.nose_tip = i("nose_height", 0.13, 0.235), i("nose_tip", 0.06, 0.105)
    t.nose_hump, t.nose_side = 0.028 * i("nose_hump"), 0.012 * i("nose_side")
    t.mouth_b, t.mouth_w0 = (
        -0.645 + 0.045 * i("mouth_height") - 0.3 * (t.nose_base + 0.33),
        i("mouth_width", 0.235, 0.345),
    )
    t.lip_up, t.lip_lo = i("lip_upper", 0.026, 0.078) - 0.010 * t.age, i("lip_lower", 0.042, 0.096) - 0.012 * t.age
    t.cupid, t.mouth_corner = i("cupid_bow", 0.05, 0.45), 0.016 * i("mouth_corner")
    t.iris = _palette(_IRIS, torch.where(t.tone > 0.5, i.chance("iris_colour") * 0.28, i.chance("iris_colour")))
    t.iris = t.iris * i("iris_light", 0.65, 1.15) * (1 - 0.45 * smooth(t.tone, 0.4, 0.8))
    t.iris_ring = i("iris_ring", 0.2, 0.75)
    t.ear_size, t.ear_out, t.ear_b = i("ear_size", 0.85, 1.2), i("ear_out", 0.10, 0.22), -0.03 + 0.05 * i("ear_height")


def _motion(v: Numbers, t: SimpleNamespace) -> None:
    t.yaw, t.pitch, t.roll = degrees(40) * v("yaw"), degrees(16) * v("pitch"), degrees(10) * v("roll")
    t.smile = v("smile", -0.45, 1.0)
    t.gap = 0.10 * smooth(v("mouth_open"), 0.25, 1.0) + 0.03 * smooth(t.smile, 0.55, 0.9)
    t.teeth = v("teeth", 0.4, 1.0)
    t.brow_raise, t.brow_frown = 0.045 * v("brow_raise"), smooth(v("brow_frown"), 0.2, 1.0)
    t.eye_open = (
        t.eye_open0
        * (1 - 0.18 * t.smile.clamp(min=0) + 0.16 * v("brow_raise"))
        * (1 - 0.85 * smooth(v("lids"), 0.90, 0.97))
    )
    t.gaze_x, t.gaze_y = degrees(20) * v("gaze_x"), degrees(10) * v("gaze_y")
    t.mouth_w = t.mouth_w0 * (1 + 0.16 * t.smile)
    t.sway = 0.05 * v("hair_sway")


def traits_of(identity: Numbers, view: Numbers) -> SimpleNamespace:
    """All traits of a batch of pictures. ``identity`` and ``view`` hold one row a picture."""
    t = SimpleNamespace(i=identity, v=view)
    t.masc, t.age = identity("masculinity"), identity.chance("age") ** 1.4
    _skin(identity, t)
    _features(identity, t)
    _hair(identity, t)
    _motion(view, t)
    return t
