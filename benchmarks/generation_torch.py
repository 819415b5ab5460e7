"""LLaMA of Hugging Face as a process of benchmarks.generation: python -m benchmarks.generation_torch"""

import os
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.turns import Writing, serve


def build(case: Writing) -> tuple[dict[str, Any], dict[str, Callable[[], float]]]:
    """LLaMA of transformers on that case."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = transformers.LlamaConfig(
        vocab_size=case.vocab,
        hidden_size=case.width,
        intermediate_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    given = torch.from_numpy(case.prompts()).long()

    def written(tokens: int) -> float:
        with torch.inference_mode():
            text = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
        return float((text.shape[1] - given.shape[1]) * len(text))

    return {"version": transformers.__version__}, {
        "all": lambda: written(case.tokens),
        "first": lambda: written(1),
    }


if __name__ == "__main__":
    serve(build, Writing)
