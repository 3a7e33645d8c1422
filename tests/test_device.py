"""Settings of the CPU, in a process of their own: they cannot be undone."""

import resource
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from v2.runtime.device import tune_cpu

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {is_tuned}:
    tune_cpu()
counts = []
for _ in range(6):
    before = faults()
    arrays = [torch.ones(2 << 20) for _ in range(20)]
    while arrays:
        arrays.pop()
    counts.append(faults() - before)
print(sum(counts[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="an allocator of Linux is set")
def test_memory_that_a_step_frees_is_kept_for_the_next():
    """Without the setting the system takes it back more often than not."""
    script = COUNT_FAULTS.format(is_tuned=True)
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    num_pages = 4 * 20 * (8 << 20) // resource.getpagesize()  # what four rounds ask for
    assert int(done.stdout) < 0.1 * num_pages
