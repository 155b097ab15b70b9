"""Sets of sentence pairs, their tokenization, and batches of tokens."""
