"""Trains m1-nano on generated conversations: `python -m training.train --out runs/nano --minutes 90`.

The learning rate holds and falls to zero over the last part of the time given; a run that is stopped resumes from its
newest state. Works on a CPU thread or a CUDA device. The folder holds a checkpoint the runtime loads as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.optim import AdamW, Muon

from m1runtime.config import ModelConfig
from training import tokenizer as tokenizers_
from training.model import TrainingModel
from training.rows import batches

HERE = Path(__file__).parent


def main() -> None:
    """Command line."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    run = Run(options)
    run.train()


class Run:
    """A training run with its state on disk."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(options.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.raw = json.loads(Path(options.config).read_text())
        self.device = torch.device(options.device)
        self.tokenizer = self._tokenizer()
        self.config = ModelConfig.from_dict(self.raw)
        self.model = TrainingModel(self.config).to(self.device)
        matrices, others = _split(self.model)
        self.optimizers = (
            Muon(matrices, lr=options.lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            AdamW(others, lr=options.lr, weight_decay=0.0, betas=(0.9, 0.98)),
        )
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.resume()

    def train(self) -> None:
        """Steps until the time is spent."""
        options = self.options
        total = sum(parameter.numel() for parameter in self.model.parameters())
        print(f"{total / 1e6:.2f}M parameters, step {self.step}, {self.tokens / 1e6:.1f}M tokens so far", flush=True)
        loss_of = torch.compile(self.loss) if options.compile else self.loss
        stream = batches(self.tokenizer, options.seed + 1000 * self.step, options.rows, options.length)
        saved, began = time.monotonic(), time.monotonic()
        average, first = torch.zeros(3), self.step
        while self.seconds < options.minutes * 60:
            batch = next(stream)
            rate = self._set_rate()
            loss, hits = loss_of(*(part.to(self.device) for part in (batch.ids, batch.documents, batch.weights)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            now = time.monotonic()
            # A first step compiles; its time is no training.
            self.seconds += min(now - began, 10.0)
            began = now
            self.step += 1
            self.tokens += batch.ids.numel()
            average = average * 0.98 + torch.cat([loss.detach()[None], hits]).cpu() * 0.02
            if self.step % 50 == 0:
                scale = 1 - 0.98 ** (self.step - first)
                shown = average / scale
                done = f"step {self.step} {self.tokens / 1e6:.2f}M tokens {self.seconds / 60:.1f} min lr {rate:.5f}"
                right = f"right: replies {100 * shown[1]:.2f} %, names {100 * shown[2]:.2f} %"
                print(f"{done} loss {shown[0]:.4f} {right}", flush=True)
            if now - saved > options.save_every * 60:
                self.save()
                saved = now
        self.save()

    def loss(self, ids: Tensor, documents: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted cross-entropy plus load balancing; the shares of reply and of name tokens predicted right [2]."""
        logits = self.model(ids, documents)[:, :-1].flatten(0, 1)
        target, weight = ids[:, 1:].flatten(), weights[:, 1:].flatten()
        losses = F.cross_entropy(logits, target, reduction="none")
        replies = weight > 0.5
        names = weight > 2
        right = (logits.argmax(-1) == target).float()
        hits = torch.stack([(right * part).sum() / part.sum() for part in (replies, names)])
        return (losses * weight).sum() / weight.sum() + self.options.balance * self.model.balance(), hits

    def save(self) -> None:
        """Writes the state to resume from and the checkpoint to load."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.step, self.tokens, self.seconds),
        }
        path = self.folder / "state.pt"
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        export(self.model, self.raw, self.folder)

    def resume(self) -> None:
        """Loads the newest state of the folder, or else the weights of the checkpoint to start from."""
        path = self.folder / "state.pt"
        if self.options.start and not path.exists():
            self.model.load_state_dict(load_file(Path(self.options.start) / "model.safetensors"))
        if path.exists():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.tokens, self.seconds = state["progress"]

    def _tokenizer(self) -> Tokenizer:
        path = self.folder / "tokenizer.json"
        if self.options.start and not path.exists():
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(Path(self.options.start) / name, self.folder)
        if not path.exists():
            tokenizers_.save(tokenizers_.train(self.raw["vocab_size"], dialogues=4000, seed=5), self.folder)
        return Tokenizer.from_file(str(path))

    def _set_rate(self) -> float:
        done = self.seconds / (self.options.minutes * 60)
        fall = min(1.0, (1.0 - done) / self.options.fall)
        rate = self.options.lr * min(1.0, (self.step + 1) / 100) * max(fall, 0.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rate


def export(model: TrainingModel, raw: dict[str, object], folder: Path) -> None:
    """Writes the weights (bfloat16, the router in float32 as in the original layout) and the two config files."""
    tensors = {
        name: (value if name.endswith("moe.gate.weight") else value.bfloat16()).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}, indent=1) + "\n")


def _split(model: TrainingModel) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Hidden matrices for Muon; embedding, head, router and norms for AdamW."""
    apart = ("embed_tokens", "lm_head", "moe.gate.weight")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not any(word in name for word in apart)]
    known = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in known]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Trains m1-nano.")
    parser.add_argument("--out", required=True, help="folder of the run; an existing run is resumed")
    parser.add_argument("--start", help="checkpoint folder whose weights and tokenizer a new run starts from")
    parser.add_argument("--config", default=str(HERE / "config.json"), help="config.json of the model")
    parser.add_argument("--minutes", type=float, default=90, help="training time in all, runs before a resume included")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--length", type=int, default=768, help="tokens of a row, a multiple of 64")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate")
    parser.add_argument("--fall", type=float, default=0.35, help="share of the time over which the rate falls to zero")
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the load-balancing loss")
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="run without torch.compile")
    return parser.parse_args()


if __name__ == "__main__":
    main()
