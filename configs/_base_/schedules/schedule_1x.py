# Twelve epochs, learning rate 0.02 at 16 images, divided by 10 after the 8th
# and the 11th. It follows the images a step, so one file serves any number of
# GPUs.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'
auto_scale_lr = dict(enable=True)
randomness = dict(seed=0)
