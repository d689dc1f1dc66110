"""One of two processes that open the same knowledge base: it says how much of the vectors' memory is its own.

`torchrun --nproc_per_node 2 tests/shared_index.py FOLDER`: `FOLDER/knowledge` is opened and searched, and
`FOLDER/memory_<rank>.json` is written, in KiB as in `/proc/<process>/smaps`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch


sys.path.insert(0, str(Path(__file__).parent))

from hash_encoder import HashEncoder
from hf_ravlm import RavlmRetriever


def memory_of(folder: Path) -> dict[str, int]:
    """What of the files of a folder is mapped into this process: resident, proportional share, and its own alone."""
    sums: dict[str, int] = {"Rss": 0, "Pss": 0, "Private_Dirty": 0}
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            is_ours = str(folder) in line
        elif is_ours and first[:-1] in sums:
            sums[first[:-1]] += int(line.split()[1])
    return sums


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    retriever = RavlmRetriever.from_pretrained(folder, HashEncoder())
    query = np.array(retriever.vectors[7:8])
    found = retriever.search_vectors(query, 1)[1]
    torch.distributed.barrier()  # both have read all vectors now
    seen = memory_of(folder) | {"found": int(found[0, 0]), "vectors": retriever.vectors.nbytes // 1024}
    Path(folder / f"memory_{os.environ['RANK']}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
