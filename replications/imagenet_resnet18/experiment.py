"""The ImageNet experiment with ResNet-18: 100 epochs, and as many widths."""

from dataclasses import replace

from replications.imagenet_mbv2.experiment import EXPERIMENT as PARENT
from replications.scales import on_cpu

EXPERIMENT = replace(
    PARENT,
    name="imagenet_resnet18",
    network=replace(PARENT.network, name="resnet18"),
    training=replace(PARENT.training, epochs=100, ask_every_steps=250),
)

SCALES = {"cpu": on_cpu(image_size=48, train_images=5_000, epochs=2, ask_every_steps=5)}
