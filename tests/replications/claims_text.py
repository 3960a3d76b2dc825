"""Files of claims for tests, as text."""

import json
from collections.abc import Sequence
from typing import Any


def claims_of(kind: str, replications: Sequence[str], **fields: Any) -> str:
    """The text of a file with one claim of this kind about these replications."""
    experiments = [*replications, *fields.get("compared_with", [])]
    steps = "\n".join(f"{name} = 400" for name in dict.fromkeys(experiments))
    others = "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
    return f"""
[gradient_steps]
{steps}
[classes]
[claim.gain]
statement = "a gain of \\"1.7\\" [points]"
source = "a table"
kind = "{kind}"
replications = {json.dumps(replications)}
cost = "macs"
method = "pareco"
baseline = "us_net"
why = "noise"
{others}
"""


GAIN = claims_of("gain_up_to", ["imagenet_mbv2"], number=1.7, budgets=[25, 60])
