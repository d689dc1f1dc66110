"""A folder of a hundred megabytes to a Hub and back: every byte, and little memory beside the model itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


SIZE = """
from transformers import AutoModelForImageTextToText
from transformers.utils import logging as transformers_logging
transformers_logging.disable_progress_bar()
import hf_ravlm
from hf_ravlm import KnowledgeBase, RavlmRetriever
from hash_encoder import HashEncoder
from tiny import tiny_model, tiny_config
from huggingface_hub import snapshot_download
def memory(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) / 1024
def forget_peak():
    open("/proc/self/clear_refs", "w").write("5")
    return memory("VmRSS")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_megabytes_go_and_come_back_in_little_memory(hub, client, tmp_path, record_property):
    client.do(SIZE)
    client.do(
        "generator = tiny_config().generator_config.to_dict() | {'hidden_size': 768, 'intermediate_size': 3072, "
        "'num_hidden_layers': 3, 'num_attention_heads': 12, 'num_key_value_heads': 12, 'head_dim': 64}\n"
        "model = tiny_model(generator_config=generator)\n"
        "rows = [{'id': str(n), 'text': f't {n}', 'licence': 'CC0-1.0'} for n in range(2_000)]\n"
        "retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), HashEncoder())\n"
        f"model.save_pretrained({str(tmp_path / 'here')!r})\n"
        f"retriever.save_pretrained({str(tmp_path / 'here')!r})\n"
    )
    here = {path.name: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    size = sum(map(len, here.values()))
    assert size > 100e6
    before = client.do("result = forget_peak()")
    client.do("model.push_to_hub('me/model'); retriever.push_to_hub('me/model')")
    pushed = client.do("result = memory('VmHWM')")
    client.do(
        "del model\n"
        "again = AutoModelForImageTextToText.from_pretrained('me/model', cache_dir=cache)\n"
        "opened = RavlmRetriever.from_pretrained('me/model', encoder=HashEncoder(), cache_dir=cache)\n"
    )
    after = client.do("result = memory('VmHWM')")
    record_property("megabytes", {"folder": size / 1e6, "push": pushed - before, "both ways": after - before})
    there = hub.repository("me/model", "model").files()
    for path, content in there.items():
        name = path.rsplit("/", 1)[-1]
        if name.endswith((".safetensors", ".parquet", ".npy")):
            assert here[name] == content, path
    folder = client.do("result = snapshot_download('me/model', cache_dir=cache)")
    for path, content in there.items():
        assert (Path(folder) / path).read_bytes() == content, path
    assert client.do("result = [len(opened), again.num_parameters() * 4]")[0] == 2_000
    assert after - before < 200
