"""The same models in PyTorch, as short as they can be, and those of Hugging Face: python -m benchmarks.models_torch

A process of benchmarks.training; `--library=transformers` serves LLaMA or T5. Attention is
`scaled_dot_product_attention`, the optimizer the fused AdamW, bfloat16 is autocast (parameters stay float32, as ours).
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.turns import Case, serve


class Norm(nn.RMSNorm):
    """RMSNorm with float32 statistics that returns what it was given."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)


class Attention(nn.Module):
    """Multi-head attention with rotary positions (rotate-half) where it has any."""

    def __init__(self, case: Case):
        super().__init__()
        self.heads = case.heads
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Linear(case.width, case.width, bias=False))

    def forward(self, x: torch.Tensor, source: torch.Tensor, turn: Any, **mask: Any) -> torch.Tensor:
        """What `x` reads of `source`."""
        q, k, v = (
            layer(line).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, line in ((self.query, x), (self.key, source), (self.value, source))
        )
        if turn is not None:
            q, k = turned(q, *turn), turned(k, *turn)
        out = F.scaled_dot_product_attention(q, k, v, **mask)
        return self.output(out.transpose(1, 2).flatten(2))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [b h n d] rotated by the angles of its places, [n d/2]."""
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, case: Case):
        super().__init__()
        self.up = nn.Linear(case.width, case.hidden, bias=False)
        self.gate = nn.Linear(case.width, case.hidden, bias=False)
        self.down = nn.Linear(case.hidden, case.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The feed-forward of every position."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Self-attention, cross-attention where there is a source, and an MLP, each behind its norm."""

    def __init__(self, case: Case, *, cross: bool):
        super().__init__()
        self.attention, self.attention_norm = Attention(case), Norm(case.width)
        self.cross, self.cross_norm = (Attention(case), Norm(case.width)) if cross else (None, None)
        self.mlp, self.mlp_norm = MLP(case), Norm(case.width)

    def forward(self, x: torch.Tensor, source: torch.Tensor | None, turn: Any, mask: dict) -> torch.Tensor:
        """One block."""
        read = self.attention_norm(x)
        x = x + self.attention(read, read, turn, **mask)
        if self.cross is not None:
            x = x + self.cross(self.cross_norm(x), source, None)
        return x + self.mlp(self.mlp_norm(x))


class Stack(nn.Module):
    """Blocks and a last norm."""

    def __init__(self, case: Case, length: int, mask: dict, *, cross: bool = False):
        super().__init__()
        self.mask, self.norm = mask, Norm(case.width)
        self.blocks = nn.ModuleList([Block(case, cross=cross) for _ in range(case.layers)])
        half = case.width // case.heads // 2
        angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(half) / half)
        self.turn = angles.cos(), angles.sin()

    def forward(self, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states."""
        for block in self.blocks:
            x = block(x, source, self.turn, self.mask)
        return self.norm(x)


class Model(nn.Module):
    """A decoder, or an encoder and a decoder that share token vectors, with a head of its own."""

    def __init__(self, case: Case):
        super().__init__()
        size = case.lines()[1].shape[1]
        self.embedding = nn.Embedding(case.vocab, case.width)
        self.encoder = Stack(case, size, {}) if case.two_sided else None
        self.decoder = Stack(case, size, mask_of(case, size), cross=case.two_sided)
        self.head = nn.Linear(case.width, case.vocab, bias=False)
        nn.init.normal_(self.head.weight, std=case.width**-0.5)

    def forward(self, source: torch.Tensor | None, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss."""
        read = None if self.encoder is None else self.encoder(self.embedding(source))
        logits = self.head(self.decoder(self.embedding(ids), read))
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def mask_of(case: Case, size: int) -> dict[str, Any]:
    """The options of `scaled_dot_product_attention`."""
    if case.family not in ("prefix", "window"):
        return {"is_causal": True}
    far = torch.arange(size)[:, None] - torch.arange(size)
    visible = far >= 0
    visible = (
        visible & (far < case.window)
        if case.family == "window"
        else visible | (torch.arange(size) < case.given)
    )
    return {"attn_mask": visible}


def hugging_face(case: Case) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    """LLaMA or T5 and its loss."""
    import transformers

    sizes = {"vocab_size": case.vocab, "tie_word_embeddings": False, "use_cache": False}
    if case.two_sided:
        config: Any = transformers.T5Config(
            **sizes,
            d_model=case.width,
            d_kv=case.width // case.heads,
            d_ff=case.hidden,
            num_layers=case.layers,
            num_decoder_layers=case.layers,
            num_heads=case.heads,
            dropout_rate=0.0,
            feed_forward_proj="gated-silu",
            decoder_start_token_id=0,
        )
        config.tie_word_embeddings = False  # its own __init__ says True
        model = transformers.T5ForConditionalGeneration(config)
        return (
            model,
            lambda source, ids, labels: model(input_ids=source, decoder_input_ids=ids, labels=labels).loss,
        )
    config = transformers.LlamaConfig(
        **sizes,
        hidden_size=case.width,
        intermediate_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        max_position_embeddings=case.length,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    return model, lambda _, ids, labels: model(input_ids=ids, labels=ids, shift_labels=labels).loss


def build(case: Case) -> tuple[dict[str, Any], dict[str, Callable[[], float]]]:
    """The model of the case, ready to take steps."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    if "--library=transformers" in sys.argv:
        model, loss_of = hugging_face(case)
    else:
        model = loss_of = Model(case)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    batch = [None if line is None else torch.from_numpy(line).long() for line in case.lines()]

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            loss = loss_of(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    facts = {"parameters": sum(p.numel() for p in model.parameters()), "version": torch.__version__}
    return facts, {"step": step}


if __name__ == "__main__":
    serve(build)
