"""The face embedder and the preprocessing in front of it."""

from __future__ import annotations

import pytest
import torch

from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.models import FaceEmbedder, crop_and_resize, similarity

SMALL = {"widths": (8, 16), "blocks": (1, 2), "embedding_dim": 12, "input_size": 32}


def test_embeddings_are_unit_vectors_with_a_tap_per_stage():
    embedder = FaceEmbedder(**SMALL).eval()
    embedding, taps = embedder(torch.randn(3, 3, 32, 32), return_taps=True)
    assert embedding.shape == (3, 12)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(3))
    assert [tuple(tap.shape) for tap in taps] == [(3, 8, 8, 8), (3, 16, 4, 4)]


def test_default_network_takes_112_and_halves_at_the_stem():
    embedder = FaceEmbedder().eval()
    embedding, taps = embedder(torch.randn(1, 3, 112, 112), return_taps=True)
    assert embedding.shape == (1, 256)
    assert [tap.shape[-1] for tap in taps] == [28, 14, 7, 4]


def test_an_embedding_does_not_depend_on_its_batch():
    embedder, faces = FaceEmbedder(**SMALL).eval(), torch.rand(3, 3, 40, 40) * 2 - 1
    together = embedder.embed(faces).detach()
    assert torch.allclose(embedder.embed(faces[1:2]), together[1:2], atol=1e-6)
    assert float(similarity(together[0], together[1])) < 0.9999  # and is no constant


def test_gradients_reach_the_picture():
    faces = (torch.rand(2, 3, 40, 40) * 2 - 1).requires_grad_()
    FaceEmbedder(**SMALL).eval().embed(faces)[:, 0].sum().backward()
    outside = torch.ones(40, 40, dtype=torch.bool)
    outside[2:37, 2:37] = False
    reached = faces.grad.abs().amax((0, 1)) > 0
    assert reached.any()
    assert not reached[outside].any()  # the cut-off border plays no part


def test_saving_and_loading_give_the_same_network(tmp_path):
    embedder, faces = FaceEmbedder(**SMALL).eval(), torch.randn(2, 3, 32, 32)
    embedder.save_pretrained(tmp_path)
    again = FaceEmbedder.from_pretrained(tmp_path).eval()
    assert torch.equal(again(faces), embedder(faces))


def test_cropping_128_is_an_exact_cut():
    faces = torch.randn(1, 3, 128, 128)
    assert torch.equal(crop_and_resize(faces), faces[..., 8:120, 8:120])


def test_areas_are_averaged():
    faces = torch.randn(1, 3, 256, 256)
    expected = faces[..., 16:240, 16:240].unflatten(-1, (112, 2)).unflatten(-3, (112, 2)).mean((-1, -3))
    assert torch.allclose(crop_and_resize(faces), expected, atol=1e-6)


def test_similarity_is_the_cosine():
    a, b = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[-2.0, 0.0], [0.0, 5.0]])
    assert torch.allclose(similarity(a, b), torch.tensor([-1.0, 0.5**0.5]))


def test_wrong_settings_and_shapes():
    with pytest.raises(ConfigError, match="same stages"):
        FaceEmbedder(widths=(8, 16), blocks=(1,))
    with pytest.raises(ConfigError, match="after 2 stages"):
        FaceEmbedder(**SMALL | {"input_size": 6})
    with pytest.raises(ImageContractError, match="preprocess"):
        FaceEmbedder(**SMALL)(torch.randn(1, 3, 40, 40))
    with pytest.raises(ImageContractError, match=r"images\[None\]"):
        crop_and_resize(torch.randn(3, 40, 40))
