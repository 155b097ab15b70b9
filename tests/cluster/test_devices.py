"""Which GPU a rank takes, and which precision its layers have."""

import logging

import keras
import pytest
import tensorflow as tf

from swarm_tf.cluster import devices


@pytest.fixture
def machine(monkeypatch):
    """Simulates a machine with GPUs; returns what was made visible and may grow."""

    def make(gpus, local_rank, local_size):
        done = {}
        config = tf.config
        monkeypatch.setattr(config, "list_physical_devices", lambda kind: gpus)
        monkeypatch.setattr(config, "get_visible_devices", lambda kind: gpus)
        monkeypatch.setattr(
            config, "set_visible_devices", lambda gpu, kind: done.update(visible=gpu)
        )
        monkeypatch.setattr(
            config.experimental, "set_memory_growth", lambda gpu, on: done.update(grows=(gpu, on))
        )
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", str(local_rank))
        monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", str(local_size))
        return done

    return make


@pytest.mark.parametrize(("local_rank", "gpu"), [(0, "a"), (1, "b"), (2, "a"), (3, "b")])
def test_ranks_of_a_machine_take_its_gpus_in_turn(machine, local_rank, gpu):
    done = machine(["a", "b"], local_rank, 4)
    assert devices.claim_gpu()
    assert done == {"visible": gpu, "grows": (gpu, True)}


def test_gpus_that_the_program_chose_stay_visible(machine, monkeypatch):
    for chosen in ([], ["b"]):
        done = machine(["a", "b"], 0, 2)
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind, chosen=chosen: chosen)
        assert devices.claim_gpu() == bool(chosen)
        assert done == {}


def test_choosing_a_gpu_after_tensorflow_started_is_a_warning(machine, monkeypatch, caplog):
    def refuse(gpu, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    machine(["a", "b"], 0, 2)
    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    devices.claim_gpu_if_possible()
    (record,) = caplog.records
    assert "call swarm_tf.rank() right after the imports" in record.getMessage()


def test_ranks_that_share_a_gpu_get_one_warning(machine, caplog):
    machine(["a", "b"], 0, 2)
    devices.claim_gpu()
    assert not caplog.records
    for local_rank in range(3):
        machine(["a", "b"], local_rank, 3)
        devices.claim_gpu()
    assert [r.getMessage() for r in caplog.records] == ["3 ranks share 2 GPUs"]


def test_a_machine_without_gpu_is_accepted(machine):
    assert not devices.claim_gpu()
    assert machine([], 0, 1) == {}
    assert not devices.claim_gpu()


@pytest.mark.parametrize(
    ("precision", "jit_compile", "gpu", "warnings"),
    [
        ("float32", False, False, []),
        ("mixed_bfloat16", True, True, []),
        ("mixed_float16", False, False, ["no GPU: slower on the CPU: mixed_float16"]),
        ("mixed_bfloat16", True, False, ["no GPU: slower on the CPU: mixed_bfloat16, jit_compile"]),
    ],
)
def test_set_precision_sets_the_policy_of_layers_built_later(
    precision, jit_compile, gpu, warnings, caplog
):
    caplog.set_level(logging.WARNING, "swarm_tf")
    try:
        devices.set_precision(precision, jit_compile=jit_compile, gpu=gpu)
        layer = keras.layers.Dense(1)
        layer.build((None, 2))
    finally:
        keras.config.set_dtype_policy("float32")
    assert layer.compute_dtype == precision.removeprefix("mixed_")
    assert layer.kernel.dtype == "float32"
    assert [r.getMessage() for r in caplog.records] == warnings
