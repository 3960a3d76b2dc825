"""The CIFAR-10 experiment with VGG-16: no shortcuts, so that a multiplier sets one convolution.

Ours, all of it: the paper has no VGG. Length, methods and seeds were fixed before any had run. The
scale for a CPU has an eighth of the channels, twice the rate, and Nesterov's momentum.
"""

from dataclasses import replace

from replications.cifar10_resnet20.experiment import EXPERIMENT as PARENT
from replications.scales import narrowed, on_cpu

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

_SHORTENED = on_cpu(
    image_size=16,
    train_images=45_000,
    epochs=15,
    ask_every_steps=75,
    search_images=2_000,
    test_images=10_000,
    calibration_images=1_024,
    seeds=10,
)

SCALES = {"cpu": narrowed(_SHORTENED, 8, "1/8", lr_per_256=0.2, nesterov=True)}
