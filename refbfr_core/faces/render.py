"""From traits to a picture: intersect, paint, light, compose, filter down."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from .camera import Camera, intersect
from .eyes import eyeball_centres, paint_eyes
from .fields import NoiseBank, direction, edge, hill, look_up, smooth, texture_grid, unit
from .hair import strands
from .landmarks import landmarks_3d
from .mouth import paint_mouth
from .scene import body, glasses_on, paint_background, paint_body, paint_glasses
from .skin import paint_beard, paint_brows, paint_skin, rgb
from .surface import Surface


def _window(camera: Camera, points: Tensor, size: int, margin: float) -> tuple[slice, slice]:
    """Rows and columns that hold projected ``points`` ``(B, N, 3)`` of every picture of the batch, with a margin."""
    xy = camera.project(points) * (size / camera.size)
    low, high = xy.amin((0, 1)) - margin * size, xy.amax((0, 1)) + margin * size
    x0, y0 = (int(v) for v in low.clamp(0, size - 2))
    x1, y1 = (int(v) + 1 for v in high.clamp(1, size))
    return slice(y0, max(y1, y0 + 2)), slice(x0, max(x1, x0 + 2))


def _light(t: SimpleNamespace, camera: Camera) -> SimpleNamespace:
    azimuth, elevation = t.v("light_azimuth", -1.15, 1.15), t.v("light_elevation", -0.10, 1.0)
    key = torch.cat([azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()], 1)
    warmth = t.v("light_warmth")
    tint = torch.cat([1 + 0.16 * warmth, 1 + 0.02 * warmth, 1 - 0.20 * warmth], 1)
    ambient = t.v("ambient", 0.22, 0.55)
    cool = torch.cat([1 - 0.05 * warmth, 1 + 0 * warmth, 1 + 0.08 * warmth], 1)
    return SimpleNamespace(
        camera=key,
        head=camera.to_head(key),
        key=tint * t.v("light_strength", 0.75, 1.25),
        fill=cool * ambient,
        up=camera.to_head(torch.cat([0 * azimuth, 0 * azimuth + 1, 0 * azimuth], 1)),
    )


def _shade(
    colour: Tensor,
    normal: Tensor,
    light: Tensor,
    light_set,
    up: Tensor,
    visible: Tensor,
    openness: Tensor,
    wrap: Tensor,
) -> Tensor:
    """Diffuse light: wrapped key light (skin scatters red furthest) plus a sky-and-ground fill."""
    facing = (normal * light).sum(1, keepdim=True)
    key = ((facing + wrap) / (1 + wrap)).clamp(min=0) ** 1.15
    sky = 0.72 + 0.28 * (normal * up).sum(1, keepdim=True)
    return colour * (
        light_set.key * key * (0.18 + 0.82 * visible) * (0.45 + 0.55 * openness) + light_set.fill * sky * openness
    )


def render_batch(t: SimpleNamespace, noise: NoiseBank, resolution: int, oversample: float) -> SimpleNamespace:
    """Draw one batch of pictures.

    ``t`` are the traits, ``resolution`` the side of the finished picture, ``oversample`` samples per pixel side.
    Returns ``image`` ``(B, 3, R, R)`` in [0, 1] (sRGB), ``mask`` ``(B, 1, R, R)`` of the face region, ``landmarks``
    ``(B, 98, 2)`` in pixels.
    """
    size = int(round(resolution * oversample))
    texels = min(max(int(resolution * 1.1), 112), 288)
    grid_a, grid_b = texture_grid(texels, t.tone.device)
    surface = Surface(t, noise, grid_a, grid_b)
    camera = Camera(t, surface, resolution)
    hits = intersect(camera, surface, size)
    light = _light(t, camera)
    maps = torch.cat([surface.normal, surface.occlusion, surface.hair], 1)
    sampled = look_up(maps, hits.a, hits.b)
    normal, openness, hair_area = unit(sampled[:, :3]), sampled[:, 3:4], sampled[:, 4:5]
    visible = look_up(surface.shadow(light.head), hits.a, hits.b)
    view = unit(hits.slope)

    head, hair_alpha, gloss, face = _paint_head(hits, t, noise, surface, camera, normal, openness, hair_area, size)
    lit = _shade(
        head.colour, head.normal, light.head, light, light.up, visible * head.shade, openness * head.shade, head.wrap
    )
    half = unit(light.head + view)
    shine = (head.normal * half).sum(1, keepdim=True).clamp(min=0)
    fresnel = 0.35 + 0.65 * (1 - (head.normal * view).sum(1, keepdim=True).clamp(0, 1)) ** 3
    spec = gloss * (0.20 * shine**18 + 0.25 * shine**60) * fresnel + head.wet * 1.6 * shine**220
    lit = lit + light.key * spec * visible
    if bool((t.hair_on > 0).any()):
        lit = torch.lerp(lit, _hair_light(hits, t, noise, normal, light, view, visible, openness), hair_alpha)
    rim = smooth((normal * view).sum(1, keepdim=True), 0.45, 0.0) * (normal[:, 1:2] * 0.5 + 0.5)
    lit = lit * (1 + 0.8 * smooth(t.v("rim"), 0.2, 1.0) * rim)

    picture = _compose(hits, lit, t, noise, camera, light, surface)
    if bool((glasses_on(t) > 0).any()):
        bridge = torch.cat(direction(0 * t.eye_b, t.eye_b - 0.05), 1) * look_up(
            surface.skin, 0 * t.eye_b, t.eye_b - 0.05
        )
        picture = paint_glasses(picture, hits, t, bridge[:, 2:])
    image = _develop(picture, t)
    mask = (face * hits.hit).float()
    if size != resolution:
        image = F.interpolate(
            image, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False
        )
        mask = F.interpolate(mask, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
    points = landmarks_3d(t, surface)
    return SimpleNamespace(image=image.clamp(0, 1), mask=mask.clamp(0, 1), landmarks=camera.project(points))


def _paint_head(hits, t, noise, surface, camera, normal, openness, hair_area, size):
    skin = paint_skin(hits.a, hits.b, t, noise)
    gloss = t.gloss * (0.55 + 0.45 * hill((hits.a / 0.35) ** 2)) + torch.zeros_like(hits.a)
    if bool((t.beard > 0).any()):
        skin, beard = paint_beard(skin, hits.a, hits.b, t, noise)
        gloss = gloss * (1 - 0.85 * beard)
    normal, shade, wet = normal.clone(), torch.ones_like(hits.a), torch.zeros_like(hits.a)
    centres = eyeball_centres(t, surface.skin)
    corners = torch.cat([centres, centres + torch.tensor([0.0, 0.30, 0.0], device=skin.device)], 1)
    rows, cols = _window(camera, corners, size, 0.125)
    w = SimpleNamespace(**{k: getattr(hits, k)[:, :, rows, cols] for k in ("a", "b", "origin", "slope")})
    part = paint_brows(skin[:, :, rows, cols], w.a, w.b, t, noise)
    part, eye_normal, eye, lid = paint_eyes(part, normal[:, :, rows, cols], w, t, centres, noise)
    skin[:, :, rows, cols], normal[:, :, rows, cols] = part, eye_normal
    shade[:, :, rows, cols], wet[:, :, rows, cols] = lid, eye
    mouth = torch.cat(direction(0 * t.mouth_b, t.mouth_b), 1) * look_up(surface.skin, 0 * t.mouth_b, t.mouth_b)
    rows, cols = _window(camera, mouth.flatten(1)[:, None], size, 0.17)
    part, lips, inner = paint_mouth(
        skin[:, :, rows, cols], hits.a[:, :, rows, cols], hits.b[:, :, rows, cols], t, noise
    )
    skin[:, :, rows, cols] = part
    gloss[:, :, rows, cols] = torch.lerp(gloss[:, :, rows, cols], t.gloss + 0.5 + 0.6 * t.lipstick, lips) * (1 - inner)
    pattern = strands(hits.a, hits.b, t, noise)[:, 1:]
    alpha = edge(hair_area + 0.012 * pattern, 0.030) * t.hair_on
    face = ((hits.a.abs() < 1.2) & (hits.b > -1.12)).float() * (1 - (alpha > 0.5).float())
    wrap = rgb(0.42, 0.24, 0.17, skin)
    return SimpleNamespace(colour=skin, normal=normal, shade=shade, wet=wet, wrap=wrap), alpha, gloss * (1 - wet), face


def _hair_light(hits, t, noise, normal, light, view, visible, openness) -> Tensor:
    """Hair lit as fibres (Kajiya and Kay, 1989): brightest where strands lie across the light."""
    pattern = strands(hits.a, hits.b, t, noise)
    crown = unit(rgb(0.0, 0.80, 0.15, normal) + rgb(0.6, 0.0, 0.0, normal) * t.part)
    tangent = hits.point - crown * 0.95
    tangent = unit(tangent - normal * (tangent * normal).sum(1, keepdim=True))
    tangent = unit(tangent + normal * 0.16 * pattern[:, :1])
    along = (tangent * light.head).sum(1, keepdim=True)
    facing = ((normal * light.head).sum(1, keepdim=True) * 0.6 + 0.4).clamp(min=0)
    diffuse = torch.sqrt((1 - along * along).clamp(min=0)) * facing
    half = unit(light.head + view)
    cross = torch.sqrt((1 - ((tangent * half).sum(1, keepdim=True)) ** 2).clamp(min=0))
    tone = t.hair * (1 + 0.26 * pattern[:, :1] + 0.10 * pattern[:, 1:]).clamp(0.25, 2.2)
    base = tone * (light.key * diffuse * (0.25 + 0.75 * visible) + light.fill * (0.35 + 0.65 * openness))
    gleam = (t.hair + 0.04) * t.hair_gloss * (cross**40) * (0.5 + 0.5 * pattern[:, :1].clamp(min=-1)) * facing
    return base + light.key * gleam * visible


def _compose(hits, lit, t, noise, camera, light, surface) -> Tensor:
    background = paint_background(hits.px, hits.py, t, noise)
    under = body(hits.px, hits.py, t, camera)
    tone, shade = paint_body(under, t)
    wrap = rgb(0.30, 0.20, 0.15, tone)
    ones = torch.ones_like(hits.px)
    up = rgb(0, 1, 0, tone)
    flesh = _shade(tone, under.normal, light.camera, light, up, shade, shade, wrap)
    # Grazing rays fade into what lies behind, which smooths the silhouette without more samples.
    picture = torch.lerp(background, flesh, under.coverage * ones)
    in_front = hits.hit & (hits.z > under.z - 0.02)
    return torch.where(in_front, lit, picture)


def _develop(picture: Tensor, t: SimpleNamespace) -> Tensor:
    """Exposure that partly follows the skin, as a camera's does, then a soft shoulder and sRGB."""
    level = t.skin.mean(1, keepdim=True)
    gain = 0.62 * (0.32 / (level + 0.08)) ** 0.55 * 2 ** (0.35 * t.v("exposure"))
    x = (picture * gain * 1.9).clamp(min=0)
    x = x * (1 + 0.10 * x) / (1 + 0.62 * x)
    return x.clamp(0, 1) ** (1 / 2.2)
