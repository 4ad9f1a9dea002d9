"""Looking at a 256×256 map costs the rows of the chosen points, never all 65536."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import resource, sys
from pathlib import Path
from sagan.commands.attend import attend_command
from sagan.commands.attend_options import Options
from sagan.config import load_config
from sagan.networks import bake, build_generator
from sagan.snapshot import save_snapshot
from sagan.inspection import figure, maps, page  # loaded before, as the network is

out = Path(sys.argv[1])
config = load_config(None, ["data.resolution=256", "generator.channels=8", "generator.attention={256: self_attention}"])
save_snapshot(bake(build_generator(config, 0)), out / "snapshot")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend_command(Options(str(out / "snapshot"), out / "attention", seeds="0-1"))
print("MIB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_256_map_stays_under_a_gigabyte(tmp_path: Path) -> None:
    """Breaks when a path holds N x M weights: one image's would be 4 GiB (65536 queries, 16384 pooled keys)."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split("MIB")[-1]) < 1024
    assert (tmp_path / "attention" / "attention.png").is_file()
