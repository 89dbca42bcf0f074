# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .resnet import ResNet, ResNeXt

__all__ = ['ResNeXt', 'ResNet']
