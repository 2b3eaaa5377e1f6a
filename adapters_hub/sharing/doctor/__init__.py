"""What is wrong, or only odd, about an adapter from a stranger, found without running anything.

`examine` reads a PEFT folder or a lone file and returns findings: how bad, what, where, what to do.
Files are read as hostile: nothing is unpickled, imported or rendered, sizes are bounded before
anything is allocated, tensors are read one at a time. numpy, never torch; never the network.

A check is a function in one of the modules here, entered by ``@check``: it takes a `Subject` and
yields findings.
"""

from adapters_hub.sharing.doctor import configuration, description, files, numbers
from adapters_hub.sharing.doctor.examination import Report, examine
from adapters_hub.sharing.doctor.findings import CHECKS, Finding

__all__ = ["CHECKS", "Finding", "Report", "examine"]

_REGISTERED = (files, configuration, numbers, description)  # importing them enters their checks
