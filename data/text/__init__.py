"""Sets of sentence pairs, from their texts to batches of tokens."""
