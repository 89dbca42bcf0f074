# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .mobilenet_v2 import MobileNetV2
from .repvgg import RepVGG
from .resnet import ResNet, ResNeXt
from .shufflenet_v2 import ShuffleNetV2
from .swin import SwinTransformer

__all__ = [
    'MobileNetV2',
    'RepVGG',
    'ResNeXt',
    'ResNet',
    'ShuffleNetV2',
    'SwinTransformer',
]
