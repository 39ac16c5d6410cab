"""The corruptions: shape, determinism, strength that grows, grey and tiny images, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from howsure import UserError
from howsure.corruptions import CORRUPTIONS, LEVELS, MAKERS, corrupt, kinds

SEVERITIES = range(1, 6)


def picture(height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray:
    """A smooth scene with an edge, mid-bright."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    tints = np.arange(1, channels + 1) / channels
    scene = 0.2 + 0.4 * (rows + columns)[..., None] / 2 * tints + 0.2 * (columns > 0.5)[..., None]
    return (scene * 255).astype(np.uint8)


def test_fifteen_and_four_more_each_with_five_levels_for_small_and_large_images():
    assert len(CORRUPTIONS) == 19
    assert set(CORRUPTIONS.values()) == {"noise", "blur", "weather", "digital"}
    assert set(MAKERS) == set(LEVELS) == set(CORRUPTIONS)
    assert all(len(small) == len(large) == 5 for small, large in LEVELS.values())


SHAPES = [(8, 8, 1), (28, 28), (32, 32, 3), (20, 41, 3), (1, 1, 1), (72, 96, 3)]


@pytest.mark.parametrize(("kind", "shape"), [(k, s) for s in SHAPES for k in kinds(3 if s[-1] == 3 else 1)])
def test_keeps_shape_and_type_and_the_image_given(kind, shape):
    image = picture(*shape[:2], shape[2] if len(shape) == 3 else 1).reshape(shape)
    before = image.copy()
    for severity in SEVERITIES:
        out = corrupt(image, kind, severity, seed=3)
        assert out.shape == image.shape
        assert out.dtype == np.uint8
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("severity", [1, 5])
def test_changes_the_image_and_is_the_same_from_the_same_seed(kind, severity):
    image = picture()
    first = corrupt(image, kind, severity, seed=7)
    corrupt(image, kind, severity, seed=8)
    assert np.array_equal(first, corrupt(image, kind, severity, seed=7))
    assert not np.array_equal(first, image)


RANDOM = [kind for kind in CORRUPTIONS if kind.endswith("noise")] + ["snow", "frost", "fog", "glass_blur"]
UNEVEN = ("elastic_transform", "spatter", "saturate", "glass_blur")


@pytest.mark.parametrize("kind", RANDOM)
def test_another_seed_gives_another_image(kind):
    assert not np.array_equal(corrupt(picture(), kind, 3, seed=1), corrupt(picture(), kind, 3, seed=2))


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind not in UNEVEN])
def test_severity_five_is_further_from_the_image_than_severity_one(kind):
    image = np.random.default_rng(0).integers(40, 215, (7, 7, 3)).repeat(5, 0).repeat(5, 1).astype(np.uint8)

    def distance(severity):
        return np.mean([(corrupt(image, kind, severity, s).astype(float) - image) ** 2 for s in range(8)])

    assert distance(5) > 1.2 * distance(1)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(CORRUPTIONS)),
    severity=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    fill=st.sampled_from([0, 255, None]),
)
def test_any_size_any_content(kind, severity, seed, height, width, fill):
    image = picture(height, width) if fill is None else np.full((height, width, 3), fill, dtype=np.uint8)
    assert corrupt(image, kind, severity, seed).shape == image.shape


def test_known_values():
    grey = np.full((4, 4, 1), 100, dtype=np.uint8)
    assert np.array_equal(corrupt(grey, "contrast", 3, 0), grey)
    assert np.array_equal(corrupt(grey, "brightness", 2, 0), np.full_like(grey, 126))  # 100 + 0.1 * 255, rounded
    half = np.zeros((2, 2, 1), dtype=np.uint8)
    half[:, 1] = 200
    assert corrupt(half, "contrast", 2, 0)[0].ravel().tolist() == [50, 150]
    assert np.array_equal(corrupt(grey, "gaussian_blur", 5, 0), grey)
    assert np.array_equal(corrupt(grey, "defocus_blur", 5, 0), grey)
    assert np.array_equal(corrupt(grey, "motion_blur", 5, 0), grey)


def test_noise_has_the_published_strength():
    image = np.full((64, 64, 3), 128, dtype=np.uint8)
    noise = corrupt(image, "gaussian_noise", 5, 0).astype(float) - 128
    assert noise.std() == pytest.approx(0.10 * 255, rel=0.03)
    share = (corrupt(image, "impulse_noise", 5, 0) != 128).mean()
    assert share == pytest.approx(0.07, abs=0.01)
    large = np.full((65, 65, 3), 128, dtype=np.uint8)
    assert (corrupt(large, "gaussian_noise", 1, 0).astype(float) - 128).std() == pytest.approx(0.08 * 255, rel=0.03)


def test_colours_keep_their_hue_when_brightened_and_lose_it_when_saturation_goes():
    image = np.full((8, 8, 3), (120, 60, 30), dtype=np.uint8)
    out = corrupt(image, "brightness", 5, 0)[0, 0].astype(float)
    assert out / out.max() == pytest.approx([1, 0.5, 0.25], abs=0.01)
    spread = np.ptp(corrupt(image, "saturate", 2, 0)[0, 0])
    assert spread == pytest.approx(9, abs=1)  # a tenth of 120 - 30


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_lets_pixels_take_what_later_ones_have_taken(reach):
    x = np.random.default_rng(0).random((30, 20, 3))
    draws = np.random.default_rng(1)
    expected = x.copy()
    for _ in range(2):
        dy, dx = draws.integers(-reach, reach, (2, 30 - 2 * reach, 20 - 2 * reach))
        for row in range(30 - reach, reach, -1):
            for column in range(20 - reach, reach, -1):
                place = row - reach - 1, column - reach - 1
                expected[row, column] = expected[row + dy[place], column + dx[place]]
    assert np.array_equal(MAKERS["glass_blur"](x, (0, reach, 2), np.random.default_rng(1)), expected)


@pytest.mark.parametrize(("severity", "published"), [(1, 8.6), (2, 14.0), (3, 20.4)])
def test_drops_change_small_images_about_as_much_as_published(severity, published):
    """By the authors' code: the root mean square over 2,000 images that are grey throughout."""
    image = np.full((32, 32, 3), 121, np.uint8)
    change = [corrupt(image, "spatter", severity, seed).astype(float) - image for seed in range(300)]
    assert np.sqrt(np.mean(np.square(change))) == pytest.approx(published, rel=0.2)


def test_elastic_interpolates_its_affine_and_its_local_step_one_after_the_other():
    x = np.random.default_rng(0).random((32, 24, 3))

    def bent(x, *lengths):
        return MAKERS["elastic_transform"](x, lengths, np.random.default_rng(1))

    assert bent(x, 0.1, 0.03, 0.05) == pytest.approx(bent(bent(x, 0, 0, 0.05), 0.1, 0.03, 0))


def test_elastic_lengths_of_large_images_are_the_published_ones():
    published = [(488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)]
    assert np.array(LEVELS["elastic_transform"][1]) * 224 == pytest.approx(np.array(published))


@pytest.mark.parametrize(
    ("image", "kind", "severity", "says"),
    [
        (picture(), "gausian_noise", 1, "did you mean gaussian_noise"),
        (picture(), "fog", 6, "from 1 to 5"),
        (picture().astype(float), "fog", 1, "uint8"),
        (np.zeros((8, 8, 4), np.uint8), "fog", 1, "C 1 or 3"),
        (picture(channels=1), "saturate", 1, "grey"),
    ],
)
def test_refuses(image, kind, severity, says):
    with pytest.raises(UserError, match=says):
        corrupt(image, kind, severity, 0)
