# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Lets ``imagecorruptions`` run with today's numpy, repeatably and faster.

Its last version, 1.1.2, uses what has gone since: ``np.float_`` (fog) and
``gaussian(multichannel=)`` (glass blur). Its salt and pepper noise comes from
scikit-image, which no longer heeds ``np.random.seed``, and its glass blur
takes seconds an image. All of this is mended in a copy of its module that
nobody else sees; what already ran gives the same images as before.
"""

import importlib.util
import warnings
from functools import lru_cache
from types import ModuleType, SimpleNamespace

import numpy as np
from PIL import Image

from mmattn.errors import ConfigError

#: The common corruptions, in the package's order.
CORRUPTIONS = (
    'gaussian_noise',
    'shot_noise',
    'impulse_noise',
    'defocus_blur',
    'glass_blur',
    'motion_blur',
    'zoom_blur',
    'snow',
    'frost',
    'fog',
    'brightness',
    'contrast',
    'elastic_transform',
    'pixelate',
    'jpeg_compression',
)
SEVERITIES = (1, 2, 3, 4, 5)
#: Sigma, largest shift and number of rounds of the glass blur, by severity.
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))


def corrupt(
    image: np.ndarray, name: str, severity: int, seed: int | list[int]
) -> np.ndarray:
    """Corrupt an image as ``imagecorruptions.corrupt`` does.

    Args:
        image: Values ``(H, W, 3)``, uint8, RGB, 32 pixels or more each way.
        name: One of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: Seed of everything random in it, as ``np.random.seed`` takes
            it; the state of ``np.random`` is left alone.

    Returns:
        The corrupted image, of the same shape and type.

    Raises:
        ConfigError: If the package is missing, or the image is none that it
            corrupts.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ConfigError(
            'only colour images of 8 bits are corrupted, not '
            f'{image.dtype} of shape {image.shape}'
        )
    if min(image.shape[:2]) < 32:
        raise ConfigError(
            'only images of 32x32 pixels or more are corrupted, not '
            f'{image.shape[1]}x{image.shape[0]}'
        )
    package = load()
    package.np.random = np.random.RandomState(seed)
    function = getattr(package, name)
    return np.uint8(function(Image.fromarray(image), severity))


@lru_cache
def load() -> ModuleType:
    """Return the mended copy of the package's module.

    Raises:
        ConfigError: If the package cannot be imported; says what to do.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of pkg_resources and scipy
            spec = importlib.util.find_spec('imagecorruptions.corruptions')
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    except ImportError as error:
        raise ConfigError(
            'corruptions need the package imagecorruptions '
            f'({error}): pip install imagecorruptions'
        ) from error
    _mend(module)
    return module


def _mend(module: ModuleType) -> None:
    """Replace what a module's functions no longer find, or find slow."""
    original = module.gaussian
    # Holds the source of noise: ``corrupt`` sets ``random``.
    module.np = SimpleNamespace(**{**vars(np), 'float_': np.float64})

    def gaussian(
        image: np.ndarray, *args, multichannel: bool = False, **kwargs
    ) -> np.ndarray:
        # A fork of the package names the axis itself.
        kwargs.setdefault('channel_axis', -1 if multichannel else None)
        return original(image, *args, **kwargs)

    def random_noise(
        image: np.ndarray, mode: str, rng: object = None, *, amount: float
    ) -> np.ndarray:
        random = module.np.random.random_sample
        flipped = random(image.shape) <= amount
        salted = random(image.shape) <= 0.5
        return np.where(flipped, salted, image)

    def glass_blur(image: Image.Image, severity: int) -> np.ndarray:
        sigma, reach, rounds = GLASS[severity - 1]
        pixels = np.array(image) / 255.0
        pixels = gaussian(pixels, sigma=sigma, multichannel=True)
        pixels = np.uint8(pixels * 255)
        moved = _shuffle(pixels.shape[:2], reach, rounds, module.np.random)
        pixels = pixels.reshape(-1, 3)[moved] / 255.0
        return gaussian(pixels, sigma=sigma, multichannel=True) * 255

    module.gaussian = gaussian
    module.glass_blur = glass_blur
    module.sk = SimpleNamespace(
        color=module.sk.color, util=SimpleNamespace(random_noise=random_noise)
    )
    # It tells of sizes that it handles, in the midst of a tool's output.
    module.print = lambda *args: None


def _shuffle(
    size: tuple[int, int],
    reach: int,
    rounds: int,
    random: np.random.RandomState,
) -> np.ndarray:
    """Tell where each pixel of a glass blur comes from.

    Pixel after pixel takes the value that one near it has by then. (The
    package means to swap the two, but what it keeps is a view.)

    Args:
        size: Height and width.
        reach: Largest shift.
        rounds: How often it goes over the image, from its end.
        random: Gives the shifts.

    Returns:
        Index of a pixel, counted by rows, ``(H, W)``.
    """
    height, width = size
    rows = np.arange(height - reach, reach, -1)
    columns = np.arange(width - reach, reach, -1)
    places = (rows[:, None] * width + columns).ravel()
    origin = list(range(height * width))
    for _ in range(rounds):
        x, y = random.randint(-reach, reach, size=(len(places), 2)).T
        sources = places + y * width + x
        for place, source in zip(places.tolist(), sources.tolist()):
            origin[place] = origin[source]
    return np.reshape(origin, size)
