from __future__ import annotations

import subprocess
import sys

CODE = """
import subprocess
from pfray.utils.quiet import quiet
with quiet():
    import jax
    jax.numpy.zeros(1)
    print("dropped")
subprocess.run(["true"], preexec_fn=lambda: None)
print("shown")
"""


def test_output_of_converters_is_dropped_and_the_processes_started_later_bring_no_warning():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("shown\n", "")
