"""The communication copy of a node: what others average with while its model trains on.

The copy y of one chunk is the sum of up to three terms:

    base       the model as published at the last boundary; never written to
    applying   corrections that the training thread is adding to the model right now, in blocks
    pending    corrections that came after those, in blocks

All three are immutable tensors that are swapped under a lock, so nobody ever sees a half-applied
model and no exchange is lost while the training thread takes the corrections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import tensorflow as tf

from swarm_tf import codec
from swarm_tf.codec.base import Decoded


class Published:
    """All chunks of the model; `lengths` weights in each.

    One thread trains (`take`, `publish`) and one communicates (`terms`, `correct`).
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.scales = [codec.BlockScales(codec.blocks_of(n)) for n in lengths]
        self._lock = threading.Lock()
        self._base: list[tf.Tensor] = []
        self._applying: list[tf.Tensor | None] = [None] * len(lengths)
        self._pending: list[tf.Tensor | None] = [None] * len(lengths)

    def take(self) -> list[tf.Tensor | None]:
        """The corrections so far, for the training thread to add to the model, then `publish`."""
        with self._lock:
            self._applying, self._pending = self._pending, [None] * len(self._pending)
            return self._applying

    def publish(self, chunks: Sequence[tf.Tensor]) -> None:
        """Show a new model, which contains what `take` returned: float32 [length] a chunk."""
        with self._lock:
            self._base = list(chunks)
            self._applying = [None] * len(self._applying)

    def terms(self, chunk: int) -> tuple[tf.Tensor, ...]:
        """The communication copy now: the base, and where there are any, the corrections."""
        with self._lock:
            base, *parts = self._base[chunk], self._applying[chunk], self._pending[chunk]
        corrections = [part for part in parts if part is not None]
        # Never three terms: each number of terms is compiled apart.
        return (base, tf.add_n(corrections)) if corrections else (base,)

    def correct(self, chunk: int, decode: Callable[[tf.Tensor | None], Decoded]) -> Decoded:
        """Add a correction; `decode(onto)` returns it on top of `onto`.

        It is computed outside the lock, so that the training thread never waits for a kernel,
        and once more if that thread took the corrections in the meantime.
        """
        while True:
            with self._lock:
                onto = self._pending[chunk]
            decoded = decode(onto)
            with self._lock:
                if self._pending[chunk] is onto:
                    if decoded.accepted.any():
                        self._pending[chunk] = decoded.correction
                    return decoded
