"""The ImageNet experiment with MobileNetV3-Large, whose random crops may be smaller."""

from dataclasses import replace

from replications.imagenet_mbv2.experiment import EXPERIMENT as PARENT
from replications.scales import on_cpu

EXPERIMENT = replace(
    PARENT,
    name="imagenet_mbv3",
    network=replace(PARENT.network, name="mobilenetv3_large_100"),
    data=replace(PARENT.data, crop_scale=0.08),
)

SCALES = {"cpu": on_cpu(image_size=48, train_images=5_000, epochs=4, ask_every_steps=10)}
