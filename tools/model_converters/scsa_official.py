# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Convert a checkpoint of the official SCSA code to mmattn's names.

The result loads into mmattn.ResNet or mmattn.MobileNetV2 as any pretrained
backbone does:
init_cfg=dict(type='Pretrained', checkpoint='OUT', prefix='backbone.').
"""

import argparse
import os
import re

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmattn.engine import check_checkpoint, one_line_errors
from mmattn.engine.safety import add_trust_argument
from mmattn.errors import ConfigError

#: Children of the official module, and of mmattn's.
RENAMED = {
    'local_dwc': 'smsa.convs.0',
    'global_dwc_s': 'smsa.convs.1',
    'global_dwc_m': 'smsa.convs.2',
    'global_dwc_l': 'smsa.convs.3',
    'norm_h': 'smsa.norm_h',
    'norm_w': 'smsa.norm_w',
    'norm': 'pcsa.norm',
    'q': 'pcsa.q',
    'k': 'pcsa.k',
    'v': 'pcsa.v',
}


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of every SCSA module in a state dict.

    Args:
        state_dict: Weights of the official module, or of a model that holds
            it as ``attn`` in its blocks (``backbone.layer1.0.attn.*``), or,
            MobileNetV2, among its convolutions (``layer1.0.conv.1.*``).

    Returns:
        The same tensors under mmattn's names (``backbone.layer1.0.scsa.*``);
        those of other modules keep theirs.

    Raises:
        ValueError: If there is no SCSA module in the state dict, or one in
            another place.
    """
    marker = 'local_dwc.weight'
    modules = {k[: -len(marker)] for k in state_dict if k.endswith(marker)}
    if not modules:
        raise ValueError(
            'no weight named local_dwc.weight: not of the official SCSA code'
        )
    places = {prefix: _place_of(prefix) for prefix in modules}
    moved = dict(filter(None, (move for _, move in places.values())))
    result = {}
    for key, value in state_dict.items():
        prefix, child, leaf = re.fullmatch(
            r'(?:(.*\.)?([^.]+)\.)?([^.]+)', key
        ).groups('')
        if prefix in modules and child in RENAMED:
            key = f'{places[prefix][0]}{RENAMED[child]}.{leaf}'
        else:
            # The projection of MobileNetV2 stands behind the module.
            old = re.match(r'.*\.conv\.\d+\.', key)
            if old and old[0] in moved:
                key = moved[old[0]] + key.removeprefix(old[0])
        result[key] = value
    return result


def _place_of(prefix: str) -> tuple[str, tuple[str, str] | None]:
    """Return a module's prefix in mmattn, and what moves into its place."""
    if re.search(r'(^|\.)attn\.$|^$', prefix):
        return re.sub(r'(^|\.)attn\.$', r'\1scsa.', prefix), None
    sequential = re.fullmatch(r'(.*\.)conv\.(\d+)\.', prefix)
    if sequential is None:
        raise ValueError(
            f'the SCSA module {prefix[:-1]} is neither attn of a block nor '
            'among the convolutions of a MobileNetV2 block'
        )
    block, index = sequential[1], int(sequential[2])
    behind = f'{block}conv.{index + 1}.'
    return f'{block}scsa.', (behind, f'{block}conv.{index}.')


def main() -> None:
    """Convert a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='The official checkpoint.')
    parser.add_argument('out', help='The file to write.')
    add_trust_argument(parser)
    args = parser.parse_args()
    with one_line_errors():
        check_checkpoint(args.checkpoint)
        checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, 'cpu')
        try:
            state_dict = convert(checkpoint.get('state_dict', checkpoint))
        except ValueError as error:
            raise ConfigError(f'{args.checkpoint}: {error}') from error
    meta = checkpoint.get('meta', {}) if 'state_dict' in checkpoint else {}
    partial = f'{args.out}.partial'
    torch.save({'meta': meta, 'state_dict': state_dict}, partial)
    os.replace(partial, args.out)
    print(f'{len(state_dict)} tensors written to {args.out}')


if __name__ == '__main__':
    main()
