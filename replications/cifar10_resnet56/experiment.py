"""The CIFAR-10 experiment with ResNet-56."""

from dataclasses import replace

from replications.cifar10_resnet20.experiment import EXPERIMENT as PARENT
from replications.scales import on_cpu

EXPERIMENT = replace(
    PARENT,
    name="cifar10_resnet56",
    network=replace(PARENT.network, name="cifar_resnet56"),
)

SCALES = {"cpu": on_cpu(image_size=16, train_images=10_000, epochs=1, ask_every_steps=5)}
