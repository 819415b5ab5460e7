"""Transformer families on the one attention core."""
