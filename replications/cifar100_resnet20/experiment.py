"""The CIFAR experiment with 100 classes and ResNet-20."""

from dataclasses import replace

from replications.cifar10_resnet20.experiment import EXPERIMENT as PARENT
from replications.cifar10_resnet20.experiment import SCALES as SCALES

EXPERIMENT = replace(
    PARENT,
    name="cifar100_resnet20",
    data=replace(
        PARENT.data,
        name="cifar100",
        mean=(129.3, 124.1, 112.4),
        std=(68.2, 65.4, 70.4),
    ),
)
