"""The CIFAR-10 experiment with a ConvNeXt, trained as the literature trains it: by AdamW.

Ours: the paper's networks have batch norm, this one has layer norm, so that no sub-network is
re-calibrated. Its channels were set by scaling rules (arXiv 2201.03545): does a multiplier for each
layer pay there? The stem cuts 32 x 32 pixels into 8 x 8 patches. The scale for a CPU has half of
the channels, in the same ratios.
"""

from dataclasses import replace

from replications.cifar10_mbv2.experiment import at_size
from replications.cifar10_resnet20.experiment import EXPERIMENT as PARENT
from replications.scales import narrowed

EXPERIMENT = replace(
    PARENT,
    name="cifar10_convnext",
    network=replace(PARENT.network, name="convnext_atto", base_width=None),
    training=replace(PARENT.training, optimizer="adamw", lr_per_256=1e-3, weight_decay=0.05),
    methods=("pareco", "us_net", "random_widths"),
)

SCALES = {"cpu": narrowed(at_size(32), 20, "1/2", channels_last=True)}
