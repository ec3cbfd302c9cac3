"""What launchers leave in the environment, and what is refused of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cahl_core.errors import ConfigError
from cahl_core.training.distributed import Workers
from cahl_core.training.launch import read_launch

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_a_plain_start_is_one_process_and_whole_weights() -> None:
    launch = read_launch({})
    assert (launch.processes, launch.sharded) == (1, False)


@pytest.mark.parametrize(
    ("environment", "processes"),
    [(TORCHRUN, 4), ({"OMPI_COMM_WORLD_SIZE": "3"}, 3), ({"PMI_SIZE": "2"}, 2)],
)
def test_the_world_is_read_from_whichever_launcher(
    environment: dict[str, str], processes: int
) -> None:
    assert read_launch(environment).processes == processes


def test_fsdp2_of_accelerate_shards() -> None:
    asked = TORCHRUN | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert read_launch(asked).sharded and read_launch(asked).reshard
    assert not read_launch(asked | {"FSDP_RESHARD_AFTER_FORWARD": "false"}).reshard


def deepspeed(file: Path) -> dict[str, str]:
    return TORCHRUN | {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
    }


def test_deepspeed_of_accelerate_shards_as_its_file_says() -> None:
    launch = read_launch(deepspeed(ROOT / "configs/deepspeed/zero3.json"))
    assert launch.sharded and launch.zero3 is not None
    assert launch.zero3.stage3_param_persistence_threshold == 100_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"zero_optimization": {"stage": 2}}', "zero_optimization.stage: input should be 3"),
        (
            '{"zero_optimization": {"stage": 3, "zero_quantized_weights": true}}',
            "zero_optimization.zero_quantized_weights: extra inputs are not permitted",
        ),
        (
            '{"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 3}}',
            "optimizer: extra inputs are not permitted",
        ),
        (
            '{"zero_optimization": {"stage": 3, "stage3_max_live_parameters": "auto"}}',
            "stage3_max_live_parameters: input should be a valid integer",
        ),
        ("{", "Expecting property name"),
        (None, "No such file"),
    ],
)
def test_a_deepspeed_file_that_asks_for_more_is_refused(
    tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "zero.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_launch(deepspeed(file))
    assert "configs/deepspeed/zero3.json" in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "set fsdp_version: 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "set fsdp_offload_params: false",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "deepspeed_config_file: configs/deepspeed/zero3.json",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "configs/accelerate/ddp.yaml"),
        ({"CAHL_PROCESS_TIMEOUT": "soon"}, "CAHL_PROCESS_TIMEOUT='soon' is not a number"),
        ({"CAHL_PROCESS_TIMEOUT": "0"}, "above 0"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(
    environment: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_launch(TORCHRUN | environment)


def test_a_launcher_that_started_one_process_of_two_is_found_out() -> None:
    """The real launcher: without a GPU it starts one process and says nothing."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = "from cahl_core.training.distributed import Workers; Workers()"
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {command}"
    kept = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "MASTER_ADDR")}
    done = subprocess.run(
        [*launcher, "--no_python", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=kept | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert "asked for several processes and started one" in done.stderr
    assert "torchrun --nproc_per_node 2" in done.stderr


class Two(Workers):
    """The first of two processes; the other has gradients of its own."""

    def __init__(self, others: torch.Tensor) -> None:
        self.count, self.rank = 2, 0
        self.reductions = 0
        self.others = others
        self.accelerator = self

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        self.reductions += 1
        return tensor + self.others


def test_gradients_travel_together_and_a_missing_one_counts_as_zero() -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (2, 1, 3)]
    parameters[0].grad = torch.tensor([1.0, 2.0])
    # the other process: a gradient for the first and the second, none for the third
    workers = Two(torch.tensor([10.0, 10.0, 5.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]))
    workers.sum_gradients(parameters)
    assert workers.reductions == 1
    assert parameters[0].grad.tolist() == [11.0, 12.0]
    assert parameters[1].grad is not None and parameters[1].grad.tolist() == [5.0]
    assert parameters[2].grad is None  # nobody has one: the optimizer passes it over
