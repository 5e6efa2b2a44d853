"""Tuned lens: what of a layer's residual stream foretells the model's answer, once it is translated?

    lens(resid, layer) = resid + resid @ weight[layer].T + bias[layer]

with the map of each layer fitted so that norm and unembedding, after it, say what the last layer says:

    least mean KL(last layer || layer)   over tokens of some prompts, in nats

A layer that the logit lens cannot read, because it writes in directions of its own, may be read so.

Source: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv:2303.08112.

Differs from the source: Adam at one rate (there: SGD with Nesterov momentum and a linear decay), and no weight decay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from avlens.cache import reduce
from avlens.errors import CheckpointError, LayerError, PromptError
from avlens.inputs import AVInputs
from avlens.tokens import TokenMap, TokenSet


@dataclass(frozen=True, eq=False)
class TunedLens:
    """An affine map per layer: resid + resid @ weight[layer].T + bias[layer].

    Attributes:
        weight: Zero where the map is the identity.
        bias: The same.
        made_by: What made it.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, resid: Float[Tensor, "pos d_model"], layer: int) -> Float[Tensor, "pos d_model"]:
        """The stream of a layer, translated.

        Raises:
            LayerError: If the lens has no such layer.
        """
        if not 0 <= layer < len(self.weight):
            raise LayerError(f"this lens has layers 0 to {len(self.weight) - 1}, not {layer}. Fit one on this model.")
        weight, bias = (one[layer].to(resid.device, resid.dtype) for one in (self.weight, self.bias))
        return resid + resid @ weight.T + bias

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file."""
        save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, path)

    @classmethod
    def load(cls, path: str | Path) -> "TunedLens":
        """Read what `save` wrote.

        Raises:
            CheckpointError: If the file holds no lens.
        """
        held = load_file(path)
        if set(held) != {"weight", "bias"}:
            raise CheckpointError(
                f"{path} holds {sorted(held)}. A tuned lens is what TunedLens.save wrote: weight and bias."
            )
        return cls(held["weight"], held["bias"], {"path": str(path)})


def fit_tuned_lens(
    model: Any,
    prompts: Sequence[AVInputs],
    *,
    tokens: Callable[[TokenMap], TokenSet] = lambda tokens: tokens.all,
    steps: int = 200,
    rate: float = 1e-3,
    batch: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> TunedLens:
    """Fit a lens so that each layer foretells the model's own next token: the least KL(last layer || layer).

    The streams of all prompts are held on the CPU, layer x token x d_model numbers; take fewer tokens of long prompts.

    Args:
        model: A HookedAVModel.
        prompts: What to fit on, of the kind that will be read.
        tokens: Which tokens of each to fit on.
        steps: Gradient steps (Adam) per layer.
        rate: Step size.
        batch: Tokens per step.
        seed: Of their order.
        progress: Whether to show bars.

    Raises:
        PromptError: If there is no prompt.
    """
    if not prompts:
        raise PromptError("a lens cannot be fitted on no prompts. Pass some of the kind that will be read.")
    n_layers = model.cfg.n_layers
    runs = tqdm(prompts, desc="streams", unit="prompt", disable=not progress)
    streams = [_streams(model, inputs, tokens(inputs.tokens)) for inputs in runs]
    resid = torch.cat(streams, dim=1)
    layers = tqdm(range(n_layers - 1), desc="lens", unit="layer", disable=not progress)
    fitted = [_fit_layer(model, resid[layer], resid[-1], steps, rate, batch, seed) for layer in layers]
    d_model = resid.shape[-1]
    fitted.append((torch.zeros(d_model, d_model), torch.zeros(d_model)))
    made_by = {
        "model": model.cfg.model_name,
        "prompts": len(prompts),
        "tokens": resid.shape[1],
        "steps": steps,
        "seed": seed,
    }
    return TunedLens(torch.stack([w for w, _ in fitted]), torch.stack([b for _, b in fitted]), made_by)


def _streams(model: Any, inputs: AVInputs, tokens: TokenSet) -> Float[Tensor, "layer token d_model"]:
    """The residual stream after each block, on the CPU in float32."""
    inputs.tokens.check_own(tokens)
    keep = reduce("resid_post", "rows", lambda x: x[:, tokens.positions.to(x.device)].float().cpu())
    _, cache = model.run_with_cache(inputs, names_filter=[], reductions=[keep], logits_at=inputs.tokens.last)
    return torch.cat([cache["resid_post.rows", layer] for layer in range(model.cfg.n_layers)])


def _fit_layer(
    model: Any, resid: Float[Tensor, "token d_model"], last: Float[Tensor, "token d_model"], steps: int, rate: float,
    batch: int, seed: int,
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, " d_model"]]:  # fmt: skip
    device, dtype, d_model = model.device, model.dtype, resid.shape[-1]
    weight = torch.zeros(d_model, d_model, device=device, requires_grad=True)
    bias = torch.zeros(d_model, device=device, requires_grad=True)
    optimiser, generator = torch.optim.Adam([weight, bias], lr=rate), torch.Generator().manual_seed(seed)
    for _step in range(steps):
        index = torch.randint(len(resid), (batch,), generator=generator)
        x, aim = resid[index].to(device), model.read_out(last[index].to(device, dtype)).float().log_softmax(-1)
        with torch.enable_grad():
            said = model.read_out((x + x @ weight.T + bias).to(dtype)).float().log_softmax(-1)
            loss = (aim.exp() * (aim - said)).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    return weight.detach().cpu(), bias.detach().cpu()
