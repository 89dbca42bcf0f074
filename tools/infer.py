# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Draw what a model finds in images: boxes, masks, segments or a class."""

import argparse

from tqdm import tqdm

from mmattn.engine import one_line_errors
from mmattn.visualization import (
    ResultDrawer,
    TrainedModel,
    add_device_arguments,
    find_images,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='The config file.')
    parser.add_argument('checkpoint', help='The checkpoint file or URL.')
    parser.add_argument(
        'images', nargs='+', help='Image files, or folders of them.'
    )
    parser.add_argument(
        '--out-dir', required=True, help='Folder for the pictures.'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='Lowest score of a box to draw. Default: %(default)s.',
    )
    add_device_arguments(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Infer and draw."""
    args = parse_args()
    with one_line_errors():
        images = find_images(args.images)
        trained = TrainedModel(
            args.config, args.checkpoint, args.device, args.cfg_options
        )
        meta = trained.model.dataset_meta
        drawer = ResultDrawer(
            trained.cfg, meta, args.out_dir, False, args.score_thr
        )
        for path in tqdm(images, unit='image'):
            drawer.draw(trained.predict(path))
    print(f'{len(images)} pictures in {args.out_dir}')


if __name__ == '__main__':
    main()
