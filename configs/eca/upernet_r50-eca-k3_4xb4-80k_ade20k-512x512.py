_base_ = [
    '../_base_/segmentors/upernet_r50_4xb4-80k_ade20k-512x512.py',
    '../_base_/attention/eca-k3.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
