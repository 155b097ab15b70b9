"""Who tests the model on the way, when."""

from types import SimpleNamespace

import keras
import pytest

from swarm_tf.runner import run


class Watch:
    """What a log calls, in order."""

    def __init__(self, monkeypatch, algorithm):
        self.calls = []
        monkeypatch.setattr(run.evaluation, "evaluate", lambda *_: self.calls.append("test") or {})
        monkeypatch.setattr(run.world, "gather", lambda *_: self.calls.append("meet"))
        train = SimpleNamespace(evaluate_every=2.0, log_every=10)
        self.run = SimpleNamespace(
            algorithm=algorithm,
            config=SimpleNamespace(train=train),
            steps=40,
            test_data=None,
            log=lambda *_, **__: None,
        )

    def epochs(self, progress, stop=False):
        """Four epochs of ten steps, on rank 0 if there is a line of progress."""
        log = run._Log(self.run, progress)
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
def test_every_rank_of_a_swarm_tests_its_own_model(monkeypatch, progress):
    """One that tested alone would fall behind; nobody waits, and the end has its own test."""
    watch = Watch(monkeypatch, SimpleNamespace(synchronous=False))
    assert watch.epochs(progress) == ["test"]


@pytest.mark.parametrize(("progress", "calls"), [(PROGRESS, ["test", "meet"]), (None, ["meet"])])
def test_ranks_in_step_wait_for_rank_0(monkeypatch, progress, calls):
    watch = Watch(monkeypatch, SimpleNamespace(synchronous=True))
    assert watch.epochs(progress) == calls


def test_nobody_tests_once_the_training_is_to_end(monkeypatch):
    watch = Watch(monkeypatch, SimpleNamespace(synchronous=False))
    assert watch.epochs(PROGRESS, stop=True) == []
