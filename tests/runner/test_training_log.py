"""Which ranks evaluate the model during training, and when."""

from types import SimpleNamespace

import keras
import pytest

from swarm_tf.runner import training_log


class Watch:
    """Records the calls of a log, in order."""

    def __init__(self, monkeypatch, algorithm):
        self.calls = []
        monkeypatch.setattr(
            training_log.evaluation, "evaluate", lambda *_: self.calls.append("evaluate") or {}
        )
        monkeypatch.setattr(training_log.world, "gather", lambda *_: self.calls.append("gather"))
        train = SimpleNamespace(evaluate_every=2.0, log_every=10)
        self.run = SimpleNamespace(
            algorithm=algorithm,
            config=SimpleNamespace(train=train),
            steps=40,
            test_data=None,
            log=lambda *_, **__: None,
        )

    def epochs(self, progress, stop=False):
        """Ends four epochs of ten steps; on rank 0 if `progress` is not None."""
        log = training_log.TrainingLog(self.run, progress)
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
        model.compile("sgd")
        log.set_model(model)
        model.stop_training = stop
        log._status = lambda *_: ""
        for epoch in range(4):
            model.optimizer.iterations.assign(10 * (epoch + 1))
            log.on_epoch_end(epoch, {})
        return self.calls


PROGRESS = SimpleNamespace(end_epoch=lambda _: None)


@pytest.mark.parametrize("progress", [PROGRESS, None])
def test_every_rank_of_a_swarm_evaluates_its_own_model(monkeypatch, progress):
    """A rank that evaluated alone would fall behind. The evaluation at the end is another one."""
    watch = Watch(monkeypatch, SimpleNamespace(synchronous=False))
    assert watch.epochs(progress) == ["evaluate"]


@pytest.mark.parametrize(
    ("progress", "calls"), [(PROGRESS, ["evaluate", "gather"]), (None, ["gather"])]
)
def test_synchronous_ranks_wait_while_rank_0_evaluates(monkeypatch, progress, calls):
    watch = Watch(monkeypatch, SimpleNamespace(synchronous=True))
    assert watch.epochs(progress) == calls


def test_no_rank_evaluates_once_training_is_to_stop(monkeypatch):
    watch = Watch(monkeypatch, SimpleNamespace(synchronous=False))
    assert watch.epochs(PROGRESS, stop=True) == []
