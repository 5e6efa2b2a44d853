"""How does a HookedAVModel write text? Hugging Face's generation loop, over the hooked decoder.

Sampling, EOS, stopping criteria and logits processors are the loop's own business. Hooks act at every step; what
they are told (`hooks.Run`) says where the step stands. A decoding method runs several streams of the same prompts as
rows of one batch: the loop sees one row per prompt, the forward pass expands it, owns the streams' keys and values,
and mixes their logits before it returns. A method may also read the text so far a second time, with other edits; and one
that had to read the prompts before it could decide (`ReadAhead`) hands over what it read, so that nothing is read twice.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from avlens import display
from avlens.cache import AVCache
from avlens.decoder import KeyValues
from avlens.errors import BatchError, DecodingError
from avlens.hooks import DecodingMethod, DecodingRun, FwdHook, on_rows, stream_rows
from avlens.inputs import AVInputs


@dataclass(frozen=True, eq=False)
class Reading:
    """Prompts that were read, up to where an answer begins.

    Attributes:
        past: Their keys and values.
        logits: Of the next token.
        cache: What was recorded, if anything was asked for.
        of: Whose reading it is: a fingerprint of the weights and of the prompts.
    """

    past: KeyValues
    logits: Float[Tensor, "batch d_vocab"]
    cache: AVCache | None
    of: Hashable


@runtime_checkable
class ReadAhead(Protocol):
    """A decoding method at work that has read the prompts of its streams already."""

    def hand_over(self) -> Sequence[Sequence[Reading]]:
        """What was read, once: of each stream, each prompt by itself, without a user's hooks."""
        ...


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model wrote.

    Attributes:
        tokens: New token ids of each row, padded after the end.
        texts: The same as text, without special tokens.
        cache: What was recorded over prompt and steps, if anything was asked for.
        records: What the decoding method decided at each step.
        logits: Of each step, before any processor, if they were asked for.
        made_by: Model, prompts, options, seed, versions.
        strings: The text of each new token of each row, special tokens included.
    """

    tokens: Int[Tensor, "batch new_pos"]
    texts: tuple[str, ...]
    cache: AVCache | None
    records: Mapping[str, Any]
    made_by: Mapping[str, Any]
    logits: Float[Tensor, "batch new_pos d_vocab"] | None = None
    strings: tuple[tuple[str, ...], ...] = ()

    @property
    def text(self) -> str:
        """The text of the only row.

        Raises:
            BatchError: If there are several.
        """
        if len(self.texts) > 1:
            raise BatchError(f"{len(self.texts)} texts were written. Choose one, such as out.texts[0].")
        return self.texts[0]

    def __repr__(self) -> str:
        return f"Generation({', '.join(repr(text) for text in self.texts)})"

    def _repr_html_(self) -> str:
        return display.table("Generation", pd.DataFrame({"text": self.texts}), self.made_by)


class Loop(nn.Module, GenerationMixin):  # type: ignore[misc]
    """What transformers' generation loop takes for a model."""

    main_input_name = "input_ids"
    input_modalities = ("text",)
    base_model_prefix = ""
    _is_stateful = False
    _supports_cache_class = True

    def __init__(self, model: Any, inputs: AVInputs, run: DecodingRun | None) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: the loop must neither move nor save the model.
        self._model = (model,)
        self.inputs, self.run = inputs, run
        self.original: Sequence[Reading] | None = None
        self.reading: Reading | None = None
        self.logits: list[Tensor] | None = None
        self.written = torch.empty(len(inputs), 0, dtype=torch.long)
        self.rows = self._rows()
        self.config = model.stock.whole.config.get_text_config()
        self.generation_config = model.stock.whole.generation_config

    @property
    def model(self) -> Any:
        """The hooked model."""
        return self._model[0]

    @property
    def device(self) -> torch.device:
        """Where token ids live."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The model's."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def can_generate(self) -> bool:
        """Yes."""
        return True

    def get_experts_implementation(self) -> None:
        """None: there is no mixture of experts to be told apart."""

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        embed: nn.Module = self.model.embed
        return embed

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        **_: Any,
    ) -> dict[str, Any]:
        """The tokens that were not read yet; prompts and their padding come from the inputs, not from here."""
        seen = past_key_values.get_seq_length()
        self.written = input_ids[:, self.inputs.shape[1] :]
        return {"input_ids": input_ids[:, seen:] if seen else input_ids, "past_key_values": past_key_values}

    def forward(self, input_ids: Tensor, past_key_values: KeyValues, **_: Any) -> CausalLMOutputWithPast:
        """Logits of the next token of each row."""
        streams = 1 if self.run is None else self.run.n_streams
        step = None if past_key_values.seen == 0 else input_ids.repeat(streams, 1)
        ahead: object = self.run
        copies = input_ids.shape[0] // len(self.inputs)
        if self.reading is not None:
            logits, self.reading = self.reading.logits.repeat_interleave(copies, 0), None
            past_key_values.batch_repeat_interleave(copies)
        elif step is None and isinstance(ahead, ReadAhead):
            logits = self._taken_over(ahead.hand_over(), past_key_values)
        else:
            rows = self.rows if copies == 1 else AVInputs.batch([row for row in self.rows for _copy in range(copies)])
            logits = self.model.advance(rows, step, past_key_values)[:, -1]
        if self.run is not None:
            logits = self.run.mix(logits.unflatten(0, (streams, -1)), self.again)
        if self.logits is not None:
            self.logits.append(logits.detach())
        return CausalLMOutputWithPast(logits=logits[:, None], past_key_values=past_key_values)

    def again(self, prompts: Sequence[int], hooks: Sequence[FwdHook]) -> Float[Tensor, "row d_vocab"]:
        """A second pass over prompts and what was written after them; logits of the next token."""
        rows, past = AVInputs.batch([self.inputs[prompt] for prompt in prompts]), KeyValues()
        with self.model.hooks(hooks):
            logits = self.model.advance(rows, None, past, again=True)
            if self.written.shape[1]:
                logits = self.model.advance(rows, self.written[list(prompts)], past, again=True)
        return logits[:, -1]

    def _taken_over(self, readings: Sequence[Sequence[Reading]], past: KeyValues) -> Float[Tensor, "row d_vocab"]:
        """The streams as the method read them, but the original as a user's hooks have it where there are any."""
        original = readings[0] if self.original is None else self.original
        rows = [reading for stream in (original, *readings[1:]) for reading in stream]
        past.fill([row.past for row in rows])
        return torch.cat([row.logits for row in rows])

    def _rows(self) -> AVInputs:
        """What each row of a pass reads: all prompts of the first stream, then of the next.

        Raises:
            DecodingError: If a stream has other rows than the original.
        """
        if self.run is None:
            return self.inputs
        streams = [self.run.prompts(stream) for stream in range(self.run.n_streams)]
        for stream in streams:
            if len(stream) != len(self.inputs) or stream.shape[1] > self.inputs.shape[1]:
                raise DecodingError(
                    f"a stream of the decoding method reads {stream!r} beside {self.inputs!r}. Give it one prompt for each of "
                    "those, none longer than the longest."
                )
        return AVInputs.batch(streams)


def generation_config(stock: GenerationConfig, options: Mapping[str, Any]) -> GenerationConfig:
    """The checkpoint's own configuration, greedy unless sampling is asked for, with the given options.

    Raises:
        DecodingError: If transformers knows no such option, or its loop would run the model by itself.
    """
    base = stock.to_dict()
    if not options.get("do_sample", False):
        base = {name: value for name, value in base.items() if name not in _SAMPLING}
    config = GenerationConfig(
        **{"do_sample": False, "return_dict_in_generate": False} | {k: v for k, v in base.items() if k not in _FIXED}
    )
    if unknown := set(options) - set(GenerationConfig().to_dict()):
        raise DecodingError(
            f"{sorted(unknown)[0]!r} is no option of generate. Options are those of transformers' GenerationConfig."
        )
    if refused := [name for name in options if name in _REFUSED and options[name]]:
        raise DecodingError(
            f"generate does not take {refused[0]}={options[refused[0]]!r}. It returns a Generation; record activations with "
            "names_filter, and compare streams of a prompt with a decoding method."
        )
    config.update(**options)
    return config


def refuse_no_method(decoding: object) -> None:
    """What decodes is a method, not its class.

    Raises:
        DecodingError: If it is anything else.
    """
    if isinstance(decoding, type) or not isinstance(decoding, DecodingMethod):
        raise DecodingError(f"decoding is {decoding!r}. Pass a method such as avlens.decoding.ASD().")


def refuse_recording_beams(config: GenerationConfig, recorded: Sequence[Any]) -> None:
    """Beams change places from step to step, so what they passed cannot be told apart.

    Raises:
        DecodingError: If something is recorded of several beams.
    """
    if recorded and (config.num_beams or 1) > 1:
        raise DecodingError(
            f"activations of {config.num_beams} beams cannot be recorded: beams change places at every step. Generate first, "
            "then run_with_cache on the answer (prepare(..., answer_prefix=out.text))."
        )


def refuse_other_readings(reading: object, of: Hashable, decoding: Any, recorded: Sequence[Any]) -> None:
    """A reading stands for the run that would have read the prompts.

    Args:
        reading: What was read.
        of: What it must be of.
        decoding: A decoding method, if there is one.
        recorded: Names of what is recorded.

    Raises:
        DecodingError: If it is of other prompts or weights, or if something is asked for that only reading them gives.
    """
    if not isinstance(reading, Reading):
        raise DecodingError(f"reading is {reading!r}. Pass what model.read(inputs) returns.")
    if reading.of != of:
        raise DecodingError(
            "the reading is of other prompts, or of other weights, than those that are to write from it. Pass "
            "model.read(inputs) of these very inputs."
        )
    if decoding is not None or recorded:
        what = (
            "activations of the prompt cannot be recorded any more"
            if decoding is None
            else f"{decoding!r} reads by itself"
        )
        raise DecodingError(f"the prompts were read before, so {what}. Leave out reading=.")


def all_hooks(
    run: DecodingRun | None, fwd_hooks: Sequence[FwdHook], recording: Sequence[FwdHook], n_prompts: int
) -> list[FwdHook]:
    """The user's edits, the method's, and what records the original stream, in the order in which they act."""
    if run is None:
        return [*fwd_hooks, *recording]
    edits = [hook for stream in range(run.n_hooked) for hook in on_rows(fwd_hooks, stream_rows(stream, n_prompts))]
    return [*edits, *run.hooks(), *on_rows(recording, stream_rows(0, n_prompts))]


_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_REFUSED = (
    "return_dict_in_generate", "guidance_scale", "prompt_lookup_num_tokens", "cache_implementation", "dola_layers",
    "penalty_alpha",
)  # fmt: skip
_FIXED = ("do_sample", "return_dict_in_generate", "transformers_version", "_from_model_config")
