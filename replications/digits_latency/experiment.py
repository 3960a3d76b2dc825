"""The digits with a search by foretold latency: wider networks, as narrow ones are all alike fast.

Its twin, searched by MACs, is the same with another cost; `docs/latency.md` has both commands.
"""

from dataclasses import replace

from replications.digits.experiment import EXPERIMENT as PARENT
from replications.digits.experiment import SCALES as SCALES

EXPERIMENT = replace(
    PARENT,
    name="digits_latency",
    network=replace(PARENT.network, name="cifar_resnet8", base_width=32),
    cost="latency",
    methods=("pareco_exact", "pareco", "us_net"),
    seeds=(0, 1, 2),
    reference_methods=(),
)
