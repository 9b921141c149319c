"""The drawn domain: determinism, splits, exact ground truth, and what an edit of one number changes."""

from __future__ import annotations

import pytest
import torch

from refbfr_core.errors import UnknownNameError
from refbfr_core.faces import IDENTITY_NAMES, LANDMARK_GROUPS, VIEW_NAMES, ToyFaces


@pytest.fixture(scope="module")
def faces() -> ToyFaces:
    return ToyFaces(64)


def plain_views(faces: ToyFaces, people, n: int = 1):
    """Frontal, neutral, without glasses, in even light."""
    views = faces.views(people, n, seed=0)
    return views.replace(
        yaw=0.0, pitch=0.0, roll=0.0, smile=-0.3, mouth_open=-1.0, lids=0.0, gaze_x=0.0, gaze_y=0.0, glasses=-1.0,
        light_azimuth=0.0, light_elevation=0.0, rim=-1.0, shift_x=0.0, shift_y=0.0, scale=0.0,
    )  # fmt: skip


def test_pictures_keep_the_contract_and_shapes(faces):
    people = faces.identities(2, seed=5)
    out = faces.render(people, faces.views(people, 3, seed=1))
    assert out.images.shape == (2, 3, 3, 64, 64) and out.images.dtype == torch.float32
    assert out.images.min() >= 0 and out.images.max() <= 1
    assert out.landmarks.shape == (2, 3, 98, 2) and out.face_mask.shape == (2, 3, 1, 64, 64)
    assert out.identity.shape == (2, len(IDENTITY_NAMES))
    assert out.images.std() > 0.1, "the pictures are nearly flat"


def test_same_numbers_same_bytes_alone_and_together(faces):
    people = faces.identities(3, seed=2)
    views = faces.views(people, 2, seed=4)
    together = faces.render(people, views).images
    again = ToyFaces(64).render(people, views).images
    alone = faces.render(people[1], views[1]).images
    assert torch.equal(together, again)
    assert torch.equal(together[1:2], alone)


def test_people_and_views_do_not_depend_on_how_many_are_drawn(faces):
    few, many = faces.identities(3, seed=9), faces.identities(7, seed=9)
    assert torch.equal(few.vector, many.vector[:3])
    assert torch.equal(faces.views(few, 2).vector, faces.views(many, 5).vector[:3, :2])
    subset = many[[4, 1]]
    assert torch.equal(faces.views(subset, 2).vector, faces.views(many, 2).vector[[4, 1]])


def test_splits_share_nobody(faces):
    drawn = {split: faces.identities(200, seed=0, split=split).vector for split in ("train", "judge", "val", "test")}
    everyone = torch.cat(list(drawn.values()))
    assert len(torch.unique(everyone, dim=0)) == 800
    assert torch.cdist(drawn["train"], drawn["test"]).min() > 1


def test_skin_tones_are_balanced(faces):
    tone = (faces.identities(40, seed=3)["skin_tone"] + 1) / 2
    counts = torch.histc(tone, bins=10, min=0, max=1)
    assert counts.tolist() == [4.0] * 10


def test_darker_tone_number_gives_darker_skin(faces):
    base = faces.identities(1, seed=1).replace(beard_style=-1.0, hair_style=0.0)
    views = plain_views(faces, base)
    light = faces.render(base.replace(skin_tone=-0.9), views)
    dark = faces.render(base.replace(skin_tone=0.9), views)
    inside = light.face_mask[0, 0] > 0.9
    assert (
        light.images[0, 0].mean(0, keepdim=True)[inside].mean()
        > dark.images[0, 0].mean(0, keepdim=True)[inside].mean() + 0.1
    )


def test_an_identity_number_changes_the_person_in_every_view_and_views_keep_the_person(faces):
    people = faces.identities(1, seed=6).replace(mole0_size=-1.0)
    views = faces.views(people, 3, seed=0)
    with_mole = people.replace(mole0_size=1.0, mole0_a=0.4, mole0_b=0.0)
    before, after = faces.render(people, views), faces.render(with_mole, views)
    changed = (before.images - after.images).abs().amax((2, 3, 4))
    assert (changed > 0.05).all(), f"the mole is missing in a view: {changed}"
    assert torch.equal(before.landmarks, after.landmarks)


def test_landmarks_sit_on_what_they_name():
    faces = ToyFaces(256)
    people = faces.identities(4, seed=8).replace(fringe=-1.0, skin_tone=-0.5, iris_light=-1.0, hair_style=0.0, age=-1.0)
    out = faces.render(people, plain_views(faces, people))
    for person in range(4):
        grey = out.images[person, 0].mean(0)
        points = out.landmarks[person, 0]
        x, y = points[LANDMARK_GROUPS["pupils"]].round().long().T
        pupils = grey[y, x]
        cheek = points[LANDMARK_GROUPS["nose_base"]][0] + torch.tensor([-18.0, -4.0])
        assert (pupils < grey[int(cheek[1]), int(cheek[0])] - 0.15).all(), "a pupil landmark is not on a dark pupil"
    left, right = (
        out.landmarks[:, 0, LANDMARK_GROUPS["eye_left"], 0],
        out.landmarks[:, 0, LANDMARK_GROUPS["eye_right"], 0],
    )
    assert (left.amax(1) < right.amin(1)).all()
    chin = out.landmarks[:, 0, 16, 1]
    assert (chin > out.landmarks[:, 0, LANDMARK_GROUPS["lips_outer"], 1].amax(1)).all()


def test_landmarks_scale_with_resolution():
    small, large = ToyFaces(64), ToyFaces(128)
    people = small.identities(2, seed=0)
    views = small.views(people, 2)
    a, b = small.render(people, views).landmarks, large.render(people, views).landmarks
    # The surface is a texture of finite size, so the two are equal up to a fraction of a pixel.
    assert (a * 2 - b).abs().max() < 0.8


def test_turning_the_head_moves_the_nose_and_mirrors(faces):
    people = faces.identities(1, seed=4).replace(asymmetry_eye=0.0, asymmetry_mouth=0.0, nose_side=0.0)
    views = plain_views(faces, people)
    tip = LANDMARK_GROUPS["nose_bridge"].stop - 1
    right = faces.render(people, views.replace(yaw=0.8)).landmarks[0, 0]
    left = faces.render(people, views.replace(yaw=-0.8)).landmarks[0, 0]
    eyes = LANDMARK_GROUPS["pupils"]
    assert right[tip, 0] - right[eyes, 0].mean() > 2
    assert torch.allclose(right[tip, 0] + left[tip, 0], torch.tensor(64.0), atol=0.5)


def test_face_mask_covers_the_face_and_not_the_background(faces):
    people = faces.identities(3, seed=0)
    out = faces.render(people, plain_views(faces, people))
    for person in range(3):
        mask, points = out.face_mask[person, 0, 0], out.landmarks[person, 0]
        x, y = points[LANDMARK_GROUPS["nose_base"]].round().long().T
        assert (mask[y, x] > 0.9).all()
        assert mask[:2].max() < 0.5 or mask[:, :2].max() < 0.1
        assert 0.1 < mask.mean() < 0.6


@pytest.mark.parametrize("resolution", [64, 128, 256, 512])
def test_every_resolution_draws_the_same_picture(resolution):
    faces = ToyFaces(resolution)
    people = faces.identities(1, seed=11)
    picture = faces.render(people, faces.views(people, 1)).images[0]
    reference = ToyFaces(64).render(people, faces.views(people, 1)).images[0]
    small = torch.nn.functional.interpolate(picture, size=(64, 64), mode="area")
    assert (small - reference).abs().mean() < 0.03


def test_bad_input_says_what_to_do(faces):
    people = faces.identities(2)
    with pytest.raises(ValueError, match="resolution must be one of"):
        ToyFaces(100)
    with pytest.raises(ValueError, match="oversample"):
        ToyFaces(128, oversample=9)
    with pytest.raises(UnknownNameError, match="skin_tone"):
        people.replace(skin_tome=0.0)
    with pytest.raises(UnknownNameError, match="yaw"):
        faces.views(people, 1).replace(yew=0.0)
    with pytest.raises(UnknownNameError, match="train"):
        faces.identities(1, split="trian")
    with pytest.raises(ValueError, match="at least one identity"):
        faces.identities(0)
    with pytest.raises(ValueError, match="at least one view"):
        faces.views(people, 0)
    with pytest.raises(ValueError, match="2 identities but views of 1"):
        faces.render(people, faces.views(people[0], 1))


def test_names_are_unique():
    assert len(set(IDENTITY_NAMES)) == len(IDENTITY_NAMES) and len(set(VIEW_NAMES)) == len(VIEW_NAMES)
