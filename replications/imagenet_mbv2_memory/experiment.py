"""The ImageNet experiment with memory instead of FLOPs as the objective beside the loss.

The authors never released theirs. Our reading of "memory footprint": the most activations that
one image holds at a time in inference.
"""

from dataclasses import replace

from replications.imagenet_mbv2.experiment import EXPERIMENT as PARENT
from replications.imagenet_mbv2.experiment import SCALES as SCALES

EXPERIMENT = replace(PARENT, name="imagenet_mbv2_memory", cost="peak_activations")
