"""The experiment of `cifar10_mbv2` with MobileNetV3-Small, of half the channels too."""

from dataclasses import replace

from replications.cifar10_mbv2.experiment import EXPERIMENT as PARENT
from replications.cifar10_mbv2.experiment import SCALES as SCALES

EXPERIMENT = replace(
    PARENT,
    name="cifar10_mbv3",
    network=replace(PARENT.network, name="mobilenetv3_small_050"),
)
