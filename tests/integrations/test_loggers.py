"""`balancer.scalars()` in the loggers that people use: what was written is read back."""

import json
import struct

import pytest
import torch
from helpers.situation import Situation, batch

import equipoise as eq

STEPS = 3


@pytest.fixture
def trained():
    """A balancer that steps, one step for each time that it is asked."""
    net = Situation()
    balancer = eq.GradNorm(net.source)

    def steps():
        for step in range(STEPS):
            balancer(net.losses(batch())).backward()
            balancer.step()
            expected.append(balancer.scalars())
            yield step

    expected = []
    return balancer, steps(), expected


def test_tensorboard(trained, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    balancer, steps, expected = trained
    writer = tensorboard.SummaryWriter(tmp_path)
    for step in steps:
        for name, value in balancer.scalars().items():
            writer.add_scalar(name, value, step)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == expected[0].keys()
    for name in expected[0]:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(scalars[name])) for step, scalars in enumerate(expected)]


def test_wandb_offline(trained, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    balancer, steps, expected = trained
    run = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(x_disable_stats=True, console="off"))
    for step in steps:
        run.log(balancer.scalars(), step=step)
    run.finish()
    wandb.teardown()  # waits for the process that writes the file
    found = list(history(next(tmp_path.rglob("*.wandb"))))
    assert len(found) == STEPS
    for step, (row, scalars) in enumerate(zip(found, expected, strict=True)):
        assert row["_step"] == step
        for name, value in scalars.items():
            assert row[name] == pytest.approx(value)


def history(path):
    """The rows that an offline run has kept: a LevelDB log of one block, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position = path.read_bytes(), 7
    assert len(data) < 2**15  # a further block would split a record
    while position < len(data):
        _, length, _ = struct.unpack("<IHB", data[position : position + 7])
        record = wandb_internal_pb2.Record.FromString(data[position + 7 : position + 7 + length])
        position += 7 + length
        if record.HasField("history"):
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def test_mlflow_in_local_files(trained, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    balancer, steps, expected = trained
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        for step in steps:
            mlflow.log_metrics(balancer.scalars(), step=step)
    for name in expected[0]:
        found = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in found] == [
            (step, pytest.approx(scalars[name])) for step, scalars in enumerate(expected)
        ]


def test_a_task_without_labels_has_no_point_in_that_step():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    losses = net.losses(batch())
    balancer({"a": losses["a"], "b": None}).backward()
    balancer.step()
    names = balancer.scalars()
    assert "gradient_norm/a" in names
    assert "gradient_norm/b" not in names
    assert all(isinstance(value, float | int) and torch.isfinite(torch.tensor(value)) for value in names.values())
