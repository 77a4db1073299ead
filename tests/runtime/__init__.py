"""Real container runtimes, podman and containerd, on a node of their own.

`node.py` makes the node (a machine within the machine), `engines.py` speaks to the two runtimes,
`networks.py` writes network configurations. `CNI_TEST_BIN_DIR=/usr/lib/cni` runs everything on
Debian's Go plugins instead of ours.
"""

import pytest

# So that a failure in these shows the values, as it does in a test.
pytest.register_assert_rewrite("tests.runtime.checks", "tests.runtime.node")
