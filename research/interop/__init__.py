"""Weights in and out: published checkpoints as configurations of the one core."""
