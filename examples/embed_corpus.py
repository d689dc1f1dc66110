"""Embeds a body of knowledge with any encoder and saves it as a searchable knowledge base; may be killed and resumed.

    python examples/embed_corpus.py passages.jsonl my_knowledge --model sentence-transformers/all-MiniLM-L6-v2
    accelerate launch --num_processes 4 examples/embed_corpus.py passages.jsonl my_knowledge --model ...
    torchrun --nproc_per_node 2 examples/embed_corpus.py ...                       # two processes on CPUs
    accelerate launch --num_processes 4 examples/embed_corpus.py ... --model http://localhost:8000/v1#NAME

Every process takes its share of the passages; the first one joins the shares. Finished work is kept in the folder
`<output>.staging`: the same command run again goes on where it was stopped. After the first passages it says how long
all of them will take, and what they need of disk and memory. The encoder may be behind a server with `/v1/embeddings`
(vLLM, TEI, Ollama, OpenAI), for passages with texts.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from hf_ravlm import KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval import load_encoder
from hf_ravlm.retrieval.encoding.corpus import embed_corpus


READERS = {".jsonl": KnowledgeBase.from_jsonl, ".csv": KnowledgeBase.from_csv, ".parquet": KnowledgeBase.from_parquet}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"a file ({', '.join(READERS)}) or a folder of images and texts")
    parser.add_argument("output", type=Path, help="the folder for the knowledge base")
    parser.add_argument(
        "--model",
        required=True,
        help="folder or Hub id: RavlmModel, CLIP, SigLIP, BERT, MiniLM, E5, ..., or a server's address",
    )
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "int8"], help="default: as stored")
    parser.add_argument("--batch_size", type=int, default=64, help="images encoded at once (default: 64)")
    parser.add_argument("--shard_rows", type=int, help="passages in a shard, the most that a kill can cost")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds to wait for the other processes")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_ravlm").setLevel(logging.WARNING if rank else logging.INFO)
    read = KnowledgeBase.from_folder if arguments.source.is_dir() else READERS[arguments.source.suffix]
    knowledge_base = read(arguments.source)
    encoder = load_encoder(arguments.model, dtype=arguments.dtype)
    staging = arguments.output.with_name(arguments.output.name + ".staging")
    vectors = embed_corpus(
        knowledge_base,
        encoder,
        batch_size=arguments.batch_size,
        staging=staging,
        shard_rows=arguments.shard_rows,
        timeout_seconds=arguments.timeout,
    )
    if num_processes > 1:
        print(f"Process {rank + 1} of {num_processes} is done.")
    if rank != 0:
        return
    RavlmRetriever(knowledge_base, encoder, vectors).save_pretrained(arguments.output)
    print(f"{len(knowledge_base)} passages in {vectors.shape[1]} dimensions by {encoder.name}: {arguments.output}")
    print(f"When all processes have ended, {staging} can be deleted.")


if __name__ == "__main__":
    main()
