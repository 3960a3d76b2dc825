"""The CIFAR-100 experiment with ResNet-32."""

from dataclasses import replace

from replications.cifar10_resnet32.experiment import EXPERIMENT as SAME_NETWORK
from replications.cifar10_resnet32.experiment import SCALES as SCALES
from replications.cifar100_resnet20.experiment import EXPERIMENT as PARENT

EXPERIMENT = replace(PARENT, name="cifar100_resnet32", network=SAME_NETWORK.network)
