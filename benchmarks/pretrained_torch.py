"""SmolLM2 of Hugging Face as a process of benchmarks.pretrained: python -m benchmarks.pretrained_torch"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.turns import Reading, serve


def build(case: Reading) -> tuple[dict[str, Any], dict[str, Callable[[], float]]]:
    """transformers on that case."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    held: dict[str, Any] = {}
    given, line = (torch.from_numpy(case.line(size)).long() for size in (case.prompt, len(case.ids)))
    path = Path(case.path)

    def load() -> float:
        held.clear()
        held["model"] = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        held["model"].generation_config.eos_token_id = None  # as many tokens as asked for
        return 0.0

    def prefill() -> float:
        with torch.inference_mode():
            return float(held["model"](line, use_cache=True, logits_to_keep=1).logits.argmax())

    def generate() -> float:
        with torch.inference_mode():
            text = held["model"].generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                max_new_tokens=case.tokens,
                pad_token_id=0,
            )
        return case.mark(text[0, case.prompt :].tolist())

    return {"version": transformers.__version__}, {"load": load, "prefill": prefill, "generate": generate}


if __name__ == "__main__":
    serve(build, Reading)
