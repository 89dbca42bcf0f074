# ResNet-18 and -34, where the official ResNet has it: between the two 3x3
# convolutions.
plugins = [dict(cfg=dict(type='mmattn.SCSA'), position='after_conv1')]
