"""Runs a program under `accelerate launch` with FSDP2 on CPUs, which Accelerate itself takes for plain DDP.

`accelerate launch --config_file fsdp2.yaml tests/sharded_on_cpu.py PROGRAM ARGUMENTS`
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


plain_init = AcceleratorState.__init__


def init(self, *args, fsdp_plugin=None, **kwargs) -> None:
    plain_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # which later states start from


if __name__ == "__main__":
    AcceleratorState.__init__ = init
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
