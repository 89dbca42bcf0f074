# Not a plugin: it takes the place of the 3x3 convolutions of three stages,
# which mmdet's ResNet lets be of any type by these two arguments.
dcn = dict(type='mmattn.AAConv2d')
stage_with_dcn = (False, True, True, True)
