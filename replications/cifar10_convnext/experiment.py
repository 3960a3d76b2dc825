"""The CIFAR-10 experiment with a ConvNeXt, trained as the literature trains it: by AdamW.

Ours: the paper's networks have batch norm, this one has layer norm, so that no sub-network is
re-calibrated. Its channels were set by scaling rules (arXiv 2201.03545): does a multiplier for each
layer pay there? The stem cuts 32 x 32 pixels into 8 x 8 patches.
"""

from dataclasses import replace

from replications.cifar10_resnet20.experiment import EXPERIMENT as PARENT
from replications.scales import on_cpu

EXPERIMENT = replace(
    PARENT,
    name="cifar10_convnext",
    network=replace(PARENT.network, name="convnext_atto", base_width=None),
    training=replace(PARENT.training, optimizer="adamw", lr_per_256=1e-3, weight_decay=0.05),
    methods=("pareco", "us_net", "random_widths"),
)

SCALES = {
    "cpu": on_cpu(
        image_size=32,
        train_images=20_000,
        epochs=10,
        ask_every_steps=50,
        search_images=2_000,
        test_images=10_000,
        calibration_images=1_024,
        seeds=3,
    )
}
