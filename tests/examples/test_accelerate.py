"""The configuration files of Accelerate: each is read, and those for CPUs train what one process would."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import pipeline

from reading_world import assert_same_weights, colour_retriever, rows
from tiny import picture, tiny_model, tiny_processor


ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "train.py"
FILES = {path.stem: path for path in (ROOT / "examples" / "accelerate").glob("*.yaml")}


def launcher_arguments(name: str):
    """What `accelerate launch --config_file` makes of a file."""
    given = launch_command_parser().parse_args(["--config_file", str(FILES[name]), str(PROGRAM), "--use_cpu"])
    return _validate_launch_command(given)[0]


def test_every_file_says_whether_it_is_tested():
    on_gpus = {"one_gpu", "eight_gpus", "deepspeed_zero2", "deepspeed_zero3"}
    assert set(FILES) == {"one_process", "two_cpu_processes", "fsdp2", *on_gpus}
    for path in FILES.values():
        head = path.read_text().split("compute_environment")[0]
        assert "tested" in head.lower(), path
        assert f"--config_file examples/accelerate/{path.name}" in head


def test_files_start_what_they_say():
    assert launcher_arguments("one_process").num_processes == 1
    two = launcher_arguments("two_cpu_processes")
    assert (two.multi_gpu, two.use_cpu, two.num_processes) == (True, True, 2)  # so that it starts them itself
    one, eight = launcher_arguments("one_gpu"), launcher_arguments("eight_gpus")
    assert (one.multi_gpu, one.num_processes, one.mixed_precision) == (False, 1, "bf16")
    assert (eight.multi_gpu, eight.num_processes, eight.mixed_precision) == (True, 8, "bf16")
    sharded = prepare_multi_gpu_env(launcher_arguments("fsdp2"))
    assert (sharded["ACCELERATE_USE_FSDP"], sharded["FSDP_VERSION"]) == ("true", "2")
    for stage in (2, 3):
        given = launcher_arguments(f"deepspeed_zero{stage}")
        given.deepspeed_fields_from_accelerate_config = ""  # set by the launcher from the same file
        _, environment = prepare_deepspeed_cmd_env(given)
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """A tiny model with its knowledge, a file of questions, and a training of four steps without momentum."""
    folder = tmp_path_factory.mktemp("world")
    model, processor = tiny_model(), tiny_processor()
    for part in (model, processor, colour_retriever(model, processor)):
        part.save_pretrained(folder / "model")
    lines = []
    for number, row in enumerate(rows(16)):
        picture = folder / f"{number}.png"
        row.pop("image").save(picture)
        lines.append(json.dumps({**row, "image": str(picture)}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    data = ["--dataset", str(folder / "rows.jsonl"), "--answer_column", "answer", "--noise", "0.5"]
    training = ["--optim", "sgd", "--learning_rate", "0.1", "--max_grad_norm", "0", "--max_steps", "4", "--use_cpu"]
    quiet = ["--report_to", "none", "--disable_tqdm", "true", "--save_steps", "2"]
    return ["--model", str(folder / "model"), *data, *training, *quiet]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights that one process ends with."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *options, "--per_device_train_batch_size=4", f"--output_dir={folder}"])
        patch.syspath_prepend(str(PROGRAM.parent))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        runpy.run_path(str(PROGRAM), run_name="__main__")
    return load_file(folder / "model.safetensors")


def launch(name: str, options: list[str], folder: Path, *more: str, script: Path = PROGRAM) -> Path:
    """Trains with a configuration file, with half of the batch in each process, and returns the folder."""
    program = [str(ROOT / "tests" / "sharded_on_cpu.py")] if name == "fsdp2" else []
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", str(FILES[name])]
    own = ["--per_device_train_batch_size=2", f"--output_dir={folder}", "--activation_checkpointing"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    command = [*launcher, *program, str(script), *options, *own, *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def together(options, tmp_path_factory) -> Path:
    """What two processes with DDP have written."""
    return launch("two_cpu_processes", options, tmp_path_factory.mktemp("together"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_cpu_processes", "fsdp2"])
def test_two_processes_learn_what_one_learns(name, options, alone, together, tmp_path):
    folder = together if name == "two_cpu_processes" else launch(name, options, tmp_path / "out")
    found, before = (load_file(place / "model.safetensors") for place in (folder, Path(options[1])))
    assert set(found) == set(alone)
    for weight, expected in alone.items():
        torch.testing.assert_close(found[weight], expected, atol=1e-5, rtol=1e-4, msg=weight)
    assert any(not torch.equal(expected, before[weight]) for weight, expected in alone.items())
    assert (folder / "checkpoint-4" / "complete.json").is_file()


@pytest.mark.slow
def test_two_processes_resume_where_they_stopped(options, together, tmp_path):
    shutil.copytree(together / "checkpoint-2", tmp_path / "out" / "checkpoint-2")
    resumed = launch("two_cpu_processes", options, tmp_path / "out", "--resume_from_checkpoint", "true")
    found, expected = (load_file(folder / "model.safetensors") for folder in (resumed, together))
    middle = load_file(together / "checkpoint-2" / "model.safetensors")
    assert_same_weights(found, expected, atol=1e-5)
    assert any(not torch.equal(tensor, middle[weight]) for weight, tensor in expected.items())


@pytest.mark.slow
def test_two_processes_train_reader_and_retriever_together_through_adapters(options, tmp_path):
    model = ["--model", options[1], *options[2:6]]
    steps = ["--max_steps", "2", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
    joint = ["--use_lora", "--lora_rank", "2", "--side", "passage", "--tokens_at_once", "64", "--refresh_every", "1"]
    script = ROOT / "examples" / "train_joint.py"
    folder = launch("two_cpu_processes", [*model, *steps, *joint], tmp_path / "out", script=script)
    adapters = load_file(folder / "adapters" / "adapter_model.safetensors")
    assert {"language_model" in name for name in adapters} == {True, False}
    pipe = pipeline("image-to-text", model=str(folder), max_new_tokens=2)  # refuses an index of other towers
    (answer,) = pipe(picture(0), question="kite ?")
    assert answer["evidence"]
