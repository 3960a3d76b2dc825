"""The CIFAR-10 experiment with a MobileNetV2 of half the channels: the paper's own kind of network.

Ours: the paper has MobileNets on ImageNet alone. The first two reductions of the resolution are
undone, so that 32 x 32 pixels end as 4 x 4, and 16 x 16 as 2 x 2. With the channel last in memory
a step on a CPU takes half the time (0.59 for 1.17 s).
"""

from dataclasses import replace

from pareco.config import Experiment
from replications.cifar10_resnet20.experiment import EXPERIMENT as PARENT
from replications.scales import Scale, on_cpu

EXPERIMENT = replace(
    PARENT,
    name="cifar10_mbv2",
    network=replace(PARENT.network, name="mobilenetv2_050", base_width=None, undone_strides=2),
    training=replace(PARENT.training, channels_last=True),
)


def at_size(image_size: int) -> Scale:
    """Return the scale of a network for which an epoch of all images takes two cores too long."""
    return on_cpu(
        image_size=image_size,
        train_images=20_000,
        epochs=10,
        ask_every_steps=50,
        search_images=2_000,
        test_images=10_000,
        calibration_images=1_024,
        seeds=3,
    )


def _small(experiment: Experiment) -> Experiment:
    """Return the experiment at 16 pixels, by the rate of the other networks at that size."""
    made = at_size(16)(experiment)
    return replace(made, training=replace(made.training, lr_per_256=0.2, nesterov=True))


SCALES = {"cpu": _small}
