"""Text from a trained model: what its logits become before a token is chosen, and what its text becomes after."""
