"""Masked-attention transformers, their objectives and their training, as plain Python."""
