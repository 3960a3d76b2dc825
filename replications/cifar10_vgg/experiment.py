"""The CIFAR-10 experiment with VGG-16: no shortcuts, so that a multiplier sets one convolution.

Ours, all of it: the paper has no VGG. Length, methods and seeds were fixed before any had run. The
scale for a CPU has an eighth of the channels, twice the rate, and Nesterov's momentum.
"""

from dataclasses import replace

from replications.cifar10_resnet20.experiment import EXPERIMENT as PARENT
from replications.cifar10_resnet20.experiment import settled

EXPERIMENT = replace(
    PARENT,
    name="cifar10_vgg",
    network=replace(PARENT.network, name="cifar_vgg16", base_width=64),
    methods=(
        *("pareco", "pareco_exact", "us_net", "s_net"),
        *("random_widths", "two_stage", "autoslim"),
    ),
    seeds=tuple(range(100, 110)),
    reference_methods=("random_widths", "two_stage", "autoslim"),
    reference_seeds=3,
)

SCALES = {"cpu": settled("1/8", seeds=10)}
