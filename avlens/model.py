"""HookedAVModel: an audio-visual language model with a hook point at every activation.

    model = HookedAVModel.from_pretrained("avlens-tiny")
    inputs = model.prepare(Clip.from_file("dog.mp4"), "what do you hear ?")
    logits, cache = model.run_with_cache(inputs, names_filter=["resid_pre", "pattern"])

It is TransformerLens's HookedRootModule, so TransformerLens's tools take it. Token ids and encoder outputs are
merged into `hook_embed`; the decoder always runs on embeddings and position ids. Encoders run once per sound or
video; their outputs are kept (by content) and reused by every later run that does not hook the embedding side.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn
from torch.nn import functional as F

from avlens import names
from avlens.cache import AVCache, Recorder, Reduction
from avlens.checkpoint import check_device, load_checkpoint
from avlens.cost import refuse_what_cannot_fit
from avlens.decoder import (
    AttentionMode,
    DecoderConfig,
    HookedRMSNorm,
    KeyValues,
    Pass,
    Past,
    bias_of,
    device_of,
    rotary,
    weight_of,
)
from avlens.encoders.hooked import HookedEncoder
from avlens.errors import BatchError, DecodingError, HookError, LayerError, PositionError, PromptError
from avlens.families import FAMILIES
from avlens.family import Family, Order, Part, Positions, PromptOptions, Stock
from avlens.generation import (
    Generation,
    Loop,
    ReadAhead,
    Reading,
    all_hooks,
    generation_config,
    refuse_no_method,
    refuse_other_readings,
    refuse_recording_beams,
)
from avlens.hooks import DecodingMethod, FwdHook, HookedRootModule, HookPoint, Run, on_rows, running, through, watched
from avlens.inputs import AVInputs, Media
from avlens.media import Clip
from avlens.tokens import TokenSet
from avlens.version import versions

T = TypeVar("T")

KEPT_ENCODINGS = 64
"""How many encoded sounds and videos a model keeps, the least recently used going first."""


class HookedAVModel(HookedRootModule):  # type: ignore[misc]
    """A model that hears and sees, with hooks.

    One model runs one thing at a time: whatever runs it takes its re-entrant lock and sets its own grad mode, which
    is `no_grad` unless gradients are asked for (`grad=True`). Parameters do not require gradients by default.

    Attributes:
        family: The family's rules.
        stock: The checkpoint's own modules.
        attn: Which attention runs by default: `auto`, `eager` or `sdpa`.
    """

    def __init__(self, family: Family, stock: Stock, *, attn: AttentionMode = "auto", name: str = "") -> None:
        super().__init__()
        self.family, self.attn = family, attn
        self._cfg = replace(family.cfg, model_name=name or family.cfg.model_name)
        object.__setattr__(self, "stock", stock)
        self.embed, self.unembed = stock.embed, stock.head
        for encoder, tower in stock.encoders.items():
            blocks, attention = stock.encoder_blocks[encoder], stock.encoder_attention.get(encoder, ())
            self.add_module(encoder, HookedEncoder(tower, blocks, attention))
        self.hook_token_embed, self.hook_audio_embed = HookPoint(), HookPoint()
        self.hook_video_embed, self.hook_image_embed = HookPoint(), HookPoint()
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(family.block(layer, self._cfg, i) for i, layer in enumerate(stock.layers))
        self.layer_inputs = stock.layer_inputs
        self.ln_final = HookedRMSNorm(stock.norm, self._cfg.eps)
        self._lock = threading.RLock()
        self._encoded: OrderedDict[str, Tensor] = OrderedDict()
        self._remembered: dict[Hashable, tuple[Hashable, Any]] = {}
        self.requires_grad_(False).eval()
        self.setup()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        attn: AttentionMode = "auto",
        ignore_settings: Sequence[str] = (),
        **load_options: Any,
    ) -> "HookedAVModel":
        """Load a checkpoint: a name of the zoo (`"avlens-tiny"`), a local folder, or a hub id.

        Args:
            name: Which checkpoint. Only a hub id is downloaded.
            device: Where to put it; by default where transformers does, the CPU.
            dtype: `float32`, `bfloat16`, ...; by default the checkpoint's own.
            device_map: How accelerate spreads it over devices, such as `"auto"`.
            attn: `auto` (fused unless someone listens to scores or pattern), `eager`, or `sdpa`.
            ignore_settings: Settings of config.json that you know do not change the forward pass.
            load_options: `revision` of a hub id, and options of transformers' from_pretrained, such as `quantization_config`.

        Raises:
            CheckpointError: If there is no such checkpoint, or its weights do not fit.
            UnsupportedSettingError: If its config holds a setting that nobody handled.
        """
        if device is not None:
            check_device(str(device))
        family, stock = load_checkpoint(
            str(name),
            FAMILIES,
            dtype=dtype,
            device_map=device_map,
            attn=attn,
            ignore_settings=ignore_settings,
            **load_options,
        )
        model = cls(family, stock, attn=attn, name=Path(name).name if Path(name).exists() else str(name))
        return model if device is None else model.to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint in the released key layout, with tokenizer, template and settings."""
        self.family.save(Path(folder), self.stock)

    # What it is.

    @property
    def cfg(self) -> DecoderConfig:
        """The decoder's shape, device and dtype, in TransformerLens's field names."""
        return replace(self._cfg, device=str(self.device), dtype=self.dtype)

    @property
    def device(self) -> torch.device:
        """Where token ids are embedded."""
        return device_of(self.embed)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return weight_of(self.embed).dtype

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.family.tokenizer

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:  # noqa: N802
        """Token embedding."""
        return weight_of(self.embed)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # noqa: N802
        """Unembedding, a view."""
        return weight_of(self.unembed).T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:  # noqa: N802
        """Unembedding bias: zeros where there is none."""
        return bias_of(self.unembed)

    def made_by(self, inputs: AVInputs | None = None, **more: Any) -> dict[str, Any]:
        """What a result should carry: model, dtype, prompts, versions."""
        prompts = [] if inputs is None else [dict(prompt.record) for prompt in inputs.prompts]
        cfg = self.cfg
        return {"model": cfg.model_name, "dtype": str(cfg.dtype), "prompts": prompts, "versions": versions(), **more}

    # Prompts and tokens.

    def prepare(
        self,
        content: Part | Sequence[Part],
        question: str = "",
        *,
        order: Order = "media_first",
        options: Sequence[str] = (),
        system: str | None = None,
        answer_prefix: str = "",
        nominal_fps: float | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        positions: Positions = "released",
    ) -> AVInputs:
        """One prompt: a clip, an image or text, or a list of them in order, and a question.

        Args:
            content: Clip, image (uint8 [3, height, width]) or text, or several, interleaved.
            question: What is asked.
            order: Whether the question follows the media or precedes them.
            options: Answer options, listed below the question as `A. ...`, `B. ...`.
            system: The system message; by default the chat template's own.
            answer_prefix: The beginning of the answer.
            nominal_fps: The frame rate that position ids assume, by default that of the official scripts (2.0 for
                Qwen2.5-Omni); pass `clip.fps` for true ones.
            min_pixels: Lower bound of a frame's area; by default the checkpoint's.
            max_pixels: Upper bound of a frame's area; by default the checkpoint's.
            positions: Position ids as the released inference code makes them, or as the model was `trained`, where a
                family knows both.

        Raises:
            PromptError: If the prompt cannot be prepared.
        """
        parts = [content] if isinstance(content, (Clip, Tensor, str)) else list(content)
        for part in parts:
            _check_part(part)
        if order not in ("media_first", "question_first"):
            raise PromptError(f"order is {order!r}. Pass 'media_first' or 'question_first'.")
        if positions not in self.family.schemes:
            raise PromptError(
                f"{self.family.title} has no position ids {positions!r}. It has {', '.join(self.family.schemes)}."
            )
        chosen = PromptOptions(
            order, tuple(options), system, answer_prefix, nominal_fps, min_pixels, max_pixels, positions
        )
        inputs = self.family.prepare(parts, question, chosen)
        record = {"question": question, **asdict(chosen), "content": [_recorded(part) for part in parts]}
        return replace(inputs, prompts=(replace(inputs.prompt, record=record),))

    def to_tokens(self, text: str | Sequence[str], prepend_bos: bool = False) -> Int[Tensor, "batch pos"]:  # noqa: ARG002
        """Token ids of text, as TransformerLens's; texts of several lengths are refused (use `AVInputs.batch`)."""
        texts = [text] if isinstance(text, str) else list(text)
        ids = [self.tokenizer(one, add_special_tokens=False)["input_ids"] for one in texts]
        if len({len(row) for row in ids}) > 1:
            raise BatchError(
                f"these texts have {[len(row) for row in ids]} tokens. Prepare each and use AVInputs.batch."
            )
        return torch.tensor(ids, device=self.device)

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            PromptError: If it is not.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            raise PromptError(f"{text!r} is {len(ids)} tokens: {pieces}. Pass a text that is one token.")
        return int(ids[0])

    def to_first_tokens(self, word: str) -> tuple[int, ...]:
        """The ids of the tokens that a word may begin with: without and with a space in front.

        Raises:
            PromptError: If the word is empty.
        """
        if not word.strip():
            raise PromptError("a word is empty. Pass one such as 'bell', or a letter.")
        forms = (word.strip(), " " + word.strip())
        return tuple(sorted({self.tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in forms}))

    def to_str_tokens(self, text: str) -> list[str]:
        """Text as the strings of its tokens."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.decode([token]) for token in ids]

    def to_string(self, ids: Int[Tensor, "*shape"]) -> str:
        """The text of token ids."""
        return str(self.tokenizer.decode(ids.flatten().tolist()))

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "*shape d_model"]:
        """ln_final.w * W_U[:, token], so that TransformerLens's logit_attrs of all parts add up to the logit."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        index = torch.as_tensor(tokens, device=self.W_U.device)
        return self.W_U.T[index] * self.ln_final.w.to(self.W_U.device)

    def read_out(self, resid: Float[Tensor, "*pos d_model"], *, norm: bool = True) -> Float[Tensor, "*pos d_vocab"]:
        """The logits that a residual stream gives, past every hook, with or without the final norm."""
        if norm:
            resid = self.ln_final.stock(resid.to(device_of(self.ln_final.stock)))
        return self._capped(self.unembed(resid.to(device_of(self.unembed))))

    def require_plain_blocks(self, what: str) -> None:
        """Refuse what takes blocks for plain: scores scaled by 1 / sqrt(d_head) over all keys, heads that write into the stream.

        Args:
            what: What asks, for the message.

        Raises:
            HookError: If they are not.
        """
        if not self.family.block.plain:
            raise HookError(
                f"{what} is not defined for {self.family.title}, whose blocks read windows and one another's keys, and norm what "
                "heads say before the stream gains it. Use patch, knockout or attribution_patching."
            )

    def accumulated_bias(
        self,
        layer: int,
        mlp_input: bool = False,
        include_mlp_biases: bool = True,
    ) -> Float[Tensor, " d_model"]:
        """The sum of the biases that blocks before `layer` write into the residual stream."""
        total = torch.zeros(self._cfg.d_model, device=self.device, dtype=self.dtype)
        blocks: Any = self.blocks[: layer + int(mlp_input)]
        for i, block in enumerate(blocks):
            total = total + block.attn.b_O.to(total.device)
            if include_mlp_biases and i < layer:
                total = total + block.mlp.b_out.to(total.device)
        return total

    # Running.

    def as_inputs(self, inputs: AVInputs | Tensor) -> AVInputs:
        """What the model reads: inputs as they are, token ids as prompts of text.

        Args:
            inputs: What `prepare` returns, or token ids [batch, pos].

        Raises:
            PromptError: If they are something else.
        """
        if isinstance(inputs, AVInputs):
            return inputs
        whole = isinstance(inputs, Tensor) and not inputs.is_floating_point() and not inputs.is_complex()
        if not whole or inputs.ndim != 2 or not inputs.numel() or inputs.min() < 0:
            raise PromptError(
                f"the model was given {_described(inputs)}. Pass what model.prepare(...) returns, or token ids [batch, pos]."
            )
        return self.family.text_inputs(inputs)

    def forward(
        self,
        inputs: AVInputs | Int[Tensor, "batch pos"],
        *,
        attn: AttentionMode | None = None,
        grad: bool = False,
        logits_at: TokenSet | None = None,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at each position (padding included), or at those of `logits_at` only.

        Args:
            inputs: What `prepare` returned, or bare token ids of text.
            attn: Which attention runs; by default the model's.
            grad: Whether to build a graph, so that gradients of activations can be taken. It begins at `hook_embed` unless
                weights before that require gradients; weights by default never do.
            logits_at: Positions to unembed; the others cost nothing then.
        """
        with self.alone(grad=grad):
            inputs = self.as_inputs(inputs)
            index = torch.arange(inputs.shape[1])
            run = Run(inputs.padding, inputs.layouts, index, index)
            with running(self.watched_points(), run):
                embeds, additions = self._merge(inputs, run, grad=grad)
                at = self._pass(run, inputs.positions, None, attn or self.attn, additions)
                return self._decode(embeds, at, logits_at)

    def run_with_hooks(
        self,
        inputs: AVInputs | Int[Tensor, "batch pos"],
        fwd_hooks: Sequence[FwdHook] = (),
        bwd_hooks: Sequence[FwdHook] = (),
        *,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **run_options: Any,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """`forward` with hooks, which are removed afterwards.

        Backward hooks ask for gradients; keep them with `reset_hooks_end=False` and call `reset_hooks()` afterwards.
        """
        run_options.setdefault("grad", bool(bwd_hooks))
        with self._lock, self.hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts):
            logits: Tensor = self(inputs, **run_options)
            return logits

    def run_with_cache(
        self,
        inputs: AVInputs | Int[Tensor, "batch pos"],
        names_filter: names.NamesFilter = None,
        *,
        reductions: Sequence[Reduction] = (),
        fwd_hooks: Sequence[FwdHook] = (),
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        **run_options: Any,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], AVCache]:
        """Logits, and the activations that the filter names.

        Args:
            inputs: What `prepare` returned, or bare token ids of text.
            names_filter: Short names (`"resid_pre"`), full names, or a predicate. By default everything but scores,
                patterns, and results of each head and expert; `[]` for reductions only.
            reductions: What to keep instead of whole activations.
            fwd_hooks: Edits to run with; the cache sees what they left.
            device: Where to keep the activations, such as `"cpu"`; by default where they were made.
            remove_batch_dim: TransformerLens's: drop the batch axis of a single prompt.
            run_options: Those of `forward`.

        Raises:
            HookError: If the filter matches nothing.
            TooLargeError: If the free memory cannot hold what the filter names; before anything runs.
        """
        with self._lock:
            inputs = self.as_inputs(inputs)
            recorder = self._recorder(names_filter, reductions, device, detach=not run_options.get("grad", False))
            where = self.device if device is None else torch.device(device)
            batch, length = inputs.shape
            refuse_what_cannot_fit(self.cfg, recorder.full_names, batch, length, where)
            logits = self.run_with_hooks(inputs, [*fwd_hooks, *recorder.hooks()], **run_options)
            cache = recorder.cache(self, [p.tokens for p in inputs.prompts], self.made_by(inputs))
        if remove_batch_dim:
            cache.remove_batch_dim()
        return logits, cache

    def generate(  # noqa: PLR0913
        self,
        inputs: AVInputs | Int[Tensor, "batch pos"],
        max_new_tokens: int = 64,
        *,
        fwd_hooks: Sequence[FwdHook] = (),
        decoding: DecodingMethod | None = None,
        names_filter: names.NamesFilter = (),
        reductions: Sequence[Reduction] = (),
        device: str | torch.device | None = None,
        seed: int | None = None,
        reading: Reading | None = None,
        keep_logits: bool = False,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        streamer: Any = None,
        **options: Any,
    ) -> Generation:
        """Write an answer, greedily unless `do_sample=True`. Hooks act on the prompt and on every step.

        Args:
            inputs: What `prepare` returned, one or more prompts, or bare token ids of text.
            max_new_tokens: How many tokens at most.
            fwd_hooks: Edits; under a decoding method they act on its original stream.
            decoding: A decoding method, such as `avlens.decoding.ASD()`.
            names_filter: Activations to record over prompt and steps; none by default.
            reductions: What to record instead of whole activations.
            device: Where to keep what is recorded.
            seed: For sampling; the global generator is left as it was.
            reading: What was read of these prompts before (`read`), so that they are not read again, however many answers are
                written; hooks act on the steps alone then.
            keep_logits: Whether to return each step's logits as the model made them, before any processor.
            logits_processor: transformers' LogitsProcessorList.
            stopping_criteria: transformers' StoppingCriteriaList.
            streamer: transformers' streamer.
            options: transformers' GenerationConfig's, such as `do_sample`, `temperature`, `num_beams`.

        Raises:
            DecodingError: If the decoding method cannot run with these options, or the reading is of other prompts.
        """
        if max_new_tokens < 1:
            raise DecodingError(f"max_new_tokens is {max_new_tokens}. Ask for at least one token.")
        inputs = self.as_inputs(inputs)
        config = generation_config(self.stock.whole.generation_config, {"max_new_tokens": max_new_tokens, **options})
        with self.alone(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            run = self._start(decoding, inputs, config)
            recorder = self._recorder(names_filter, reductions, device, detach=True)
            refuse_recording_beams(config, recorded := [*recorder.full_names, *recorder.reductions])
            past = KeyValues()
            if reading is not None:
                refuse_other_readings(reading, self.identity(inputs), decoding, recorded)
                past = reading.past.first(reading.past.seen)
            hooks = all_hooks(run, fwd_hooks, recorder.hooks(), len(inputs))
            loop: Any = Loop(self, inputs, run)
            loop.logits, loop.reading = [] if keep_logits else None, reading
            if isinstance(run, ReadAhead) and (own := [*fwd_hooks, *recorder.hooks()]):
                with self.hooks(on_rows(own, range(len(inputs)))):
                    loop.original = [self._read(inputs, KeyValues())]
            with self.hooks(hooks):
                ids: Tensor = loop.generate(
                    input_ids=inputs.ids.clamp(min=0).to(self.device), attention_mask=inputs.attention_mask.to(self.device),
                    generation_config=config, past_key_values=past, logits_processor=logits_processor,
                    stopping_criteria=stopping_criteria, streamer=streamer, tokenizer=self.tokenizer,
                )  # fmt: skip
        new = ids[:, inputs.shape[1] :]
        texts = tuple(self.tokenizer.batch_decode(new, skip_special_tokens=True))
        made_by = self.made_by(inputs, decoding=repr(decoding), seed=seed, max_new_tokens=max_new_tokens, **options)
        maps = [prompt.tokens for prompt in inputs.prompts for _copy in range(config.num_return_sequences or 1)]
        cache = recorder.cache(self, maps, made_by) if recorder.parts else None
        logits = torch.stack(loop.logits, dim=1) if keep_logits else None
        strings = tuple(tuple(self.tokenizer.decode([token]) for token in row) for row in new.tolist())
        return Generation(new, texts, cache, {} if run is None else run.records(), made_by, logits, strings)

    def read(
        self,
        inputs: AVInputs | Int[Tensor, "batch pos"],
        past: KeyValues | None = None,
        *,
        fwd_hooks: Sequence[FwdHook] = (),
        reductions: Sequence[Reduction] = (),
    ) -> Reading:
        """Read prompts up to where an answer begins, and keep their keys and values.

        Args:
            inputs: One or more prompts, or token ids of texts.
            past: What was read of them already, such as `reading.past.first(n)`; only the rest is read then.
            fwd_hooks: Edits.
            reductions: What to record.
        """
        inputs = self.as_inputs(inputs)
        with self.alone():
            recorder = self._recorder((), reductions, None, detach=True)
            with self.hooks([*fwd_hooks, *recorder.hooks()]):
                reading = self._read(inputs, KeyValues() if past is None else past)
            maps = [prompt.tokens for prompt in inputs.prompts]
            return replace(reading, cache=recorder.cache(self, maps, self.made_by(inputs)) if reductions else None)

    def _read(self, inputs: AVInputs, past: KeyValues) -> Reading:
        return Reading(past, self.advance(inputs, None, past)[:, -1], None, self.identity(inputs))

    def advance(
        self, inputs: AVInputs, step: Int[Tensor, "batch pos"] | None, past: KeyValues, *, again: bool = False
    ) -> Float[Tensor, "batch 1 d_vocab"]:
        """Read what was not read of the prompts (`step` is None), or more tokens after them; logits of the last position.

        Args:
            inputs: One or more prompts.
            step: The tokens that follow what was read.
            past: Keys and values of what was read, which grow.
            again: Whether this is a decoding method's second pass, which hooks bound to rows do not see.
        """
        length, seen = inputs.shape[1], past.seen
        n = length - seen if step is None else step.shape[1]
        index = torch.arange(seen, seen + n)
        whole = torch.arange(length) if step is None else index
        run = Run(inputs.padding, inputs.layouts, whole, whole, again=again)
        with running(self.watched_points(), run):
            additions: tuple[Tensor, ...] = ()
            if step is None:
                embeds, additions = self._merge(inputs, run, grad=False)
                embeds, additions = embeds[:, seen:], tuple(addition[:, seen:] for addition in additions)
                positions, run.query_index, run.key_index = inputs.positions[..., seen:], index, index
            else:
                embeds = self.hook_embed(self.hook_token_embed(self.embed(step)))
                additions = self._added(step, embeds)
                ahead = inputs.next_positions[:, None] + (index - length)
                positions = ahead.expand(inputs.positions.shape[0], -1, -1)
            past.seen += n
            return self._decode(embeds, self._pass(run, positions, past, self.attn, additions), None, last=True)

    def encode(self, media: Media) -> Float[Tensor, "level media_pos d_model"]:
        """What an encoder makes of one of `inputs.prompt.media`: what enters the stream, then what is added to it later.

        It is kept for the next run, unless a hook looks inside.
        """
        with self.alone():
            return self._encode(media, grad=False)

    def forget_encodings(self) -> None:
        """Let go of the encoder outputs that were kept, as after an edit of an encoder's weights, and of what is remembered."""
        with self._lock:
            self._encoded.clear()
            self._remembered.clear()

    def remember(self, question: Hashable, find: Callable[[], T]) -> T:
        """What `find` found when the question was first asked: a fact of the weights alone, such as their sink dimensions.

        It is found anew when a weight was replaced or edited in place (not through `.data` or in inference mode: then
        `forget_encodings`), and wherever hooks are attached.
        """
        with self._lock:
            if self.watched_points():
                return find()
            weights = self._weights()
            if self._remembered.get(question, (None,))[0] != weights:
                self._remembered[question] = weights, find()
            return self._remembered[question][1]

    def identity(self, inputs: AVInputs) -> Hashable:
        """A fingerprint of these weights and these prompts; it changes as `remember` forgets."""
        return hash(self._weights()), inputs.key

    def _weights(self) -> tuple[tuple[int, int], ...]:
        # What is made in inference mode counts no edits.
        return tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in self.parameters())

    def _apply(self, fn: Any, recurse: bool = True) -> "HookedAVModel":
        self.forget_encodings()
        # Tables that no checkpoint holds, such as rotary frequencies, keep their precision, as when a dtype is loaded.
        tables = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in module._non_persistent_buffers_set
        ]
        moved: HookedAVModel = super()._apply(fn, recurse)
        for module, name, table in tables:
            now = module._buffers[name]
            if table is not None and now is not None and now.dtype != table.dtype:
                module._buffers[name] = table.to(now.device)
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """What a copy and a pickle hold: all but the lock and the kept encodings."""
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_lock", "_encoded", "_remembered")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock, self._encoded, self._remembered = threading.RLock(), OrderedDict(), {}

    @contextmanager
    def hooks(
        self, fwd_hooks: Sequence[FwdHook] = (), bwd_hooks: Sequence[FwdHook] = (), *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """TransformerLens's context of temporary hooks.

        Raises:
            HookError: If a name is no hook point of this model, or a predicate matches none.
        """
        for name, _fn in [*fwd_hooks, *bwd_hooks]:
            self.check_hook_name(name)
        with self._lock, super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs) as model:
            yield model

    # Inside.

    @contextmanager
    def alone(self, *, grad: bool = False) -> Iterator[None]:
        """Let nobody else run the model, without gradients unless they are asked for."""
        with self._lock, torch.set_grad_enabled(grad):
            yield

    def check_hook_name(self, name: names.HookName) -> None:
        """Refuse a name that is no hook point of this model, or a predicate that matches none."""
        if callable(name):
            if not any(name(full) for full in self.hook_dict):
                raise HookError(f"a hook for {name!r} would never run: no hook point of this model matches.")
        elif name not in self.hook_dict:
            layer = names.layer_of(name)
            if layer is not None and layer >= self._cfg.n_layers:
                raise LayerError(
                    f"{name!r} is in layer {layer}, but the model has {self._cfg.n_layers} (0 to {self._cfg.n_layers - 1})."
                )
            names.matching([name], self.hook_dict)
            raise HookError(
                f"{name!r} is a short name. A hook needs the full one, such as {names.matching([name], self.hook_dict)[0]!r}."
            )

    def _recorder(
        self, names_filter: names.NamesFilter, reductions: Sequence[Reduction], device: Any, *, detach: bool
    ) -> Recorder:
        nothing = not callable(names_filter) and names_filter is not None and len(names_filter) == 0
        full_names = [] if nothing else names.matching(names_filter, self.hook_dict)
        return Recorder(full_names, reductions, device, detach=detach)

    def watched_points(self) -> list[HookPoint]:
        """The hook points at which anything listens."""
        return [point for point in self.hook_dict.values() if watched(point)]

    def _merge(self, inputs: AVInputs, run: Run, *, grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What enters block 0: token embeddings, with encoder outputs in the places of the media; and what is added later."""
        if (highest := int(inputs.ids.max())) >= self._cfg.d_vocab:
            raise PromptError(
                f"the prompt holds the token {highest}, but the model knows {self._cfg.d_vocab} tokens. Pass its own tokenizer's."
            )
        embeds = through(self.hook_token_embed, self.embed(inputs.ids.clamp(min=0).to(self.device)))
        rows, columns, values = [], [], []
        for row, (prompt, pad) in enumerate(zip(inputs.prompts, inputs.padding.tolist(), strict=True)):
            for media in prompt.media:
                run.media_row = row
                encoded = self._encode(media, grad=grad)
                if encoded.shape[1] != len(media.positions):
                    raise PromptError(
                        f"the {media.modality.name.lower()} encoder made {encoded.shape[1]} embeddings for "
                        f"{len(media.positions)} places in the prompt. A hook on an encoder must keep its length."
                    )
                rows.append(torch.full_like(media.positions, row))
                columns.append(media.positions + pad)
                values.append(encoded.to(embeds.device, embeds.dtype))
        run.media_row = None
        if values:
            places = torch.cat(rows).to(embeds.device), torch.cat(columns).to(embeds.device)
            embeds = embeds.index_put(places, torch.cat([levels[0] for levels in values]))
        if grad and not embeds.requires_grad:
            embeds = embeds.detach().requires_grad_()
        merged = through(self.hook_embed, embeds)
        return merged, self._added(inputs.ids.clamp(min=0), merged) or _additions(embeds, rows, columns, values)

    def _added(self, ids: Tensor, embeds: Tensor) -> tuple[Tensor, ...]:
        """What each block is given beside the stream, where the model embeds something for each."""
        return () if self.layer_inputs is None else tuple(self.layer_inputs(ids.to(self.device), embeds))

    def _encode(self, media: Media, *, grad: bool) -> Float[Tensor, "level media_pos d_model"]:
        """An encoder's output, from the store unless someone looks inside or wants gradients of its weights."""
        point: HookPoint = getattr(self, f"hook_{media.modality.name.lower()}_embed")
        encoders = {name: getattr(self, name) for name in self.stock.encoders}
        learns = grad and any(weight.requires_grad for one in encoders.values() for weight in one.parameters())
        inside = learns or watched(point) or any(encoder.watched for encoder in encoders.values())
        if inside:
            levels = self.family.encode(encoders, media)
            entering: Tensor = point(levels[:1])
            return entering if len(levels) == 1 else torch.cat([entering, levels[1:]])
        if media.key in self._encoded:
            self._encoded.move_to_end(media.key)
            return self._encoded[media.key]
        encoded = self._encoded[media.key] = self.family.encode(encoders, media)
        if len(self._encoded) > KEPT_ENCODINGS:
            self._encoded.popitem(last=False)
        return encoded

    def _pass(
        self,
        run: Run,
        positions: Real[Tensor, "axis batch pos"],
        past: Past | None,
        mode: AttentionMode,
        additions: tuple[Tensor, ...] = (),
    ) -> Pass:
        if mode not in ("auto", "eager", "sdpa"):
            raise HookError(f"attn is {mode!r}. Pass 'auto', 'eager' or 'sdpa'.")
        cos, sin = rotary(positions.to(self.device), self._cfg, self.dtype)
        return Pass(run, cos, sin, past, mode, additions)

    def _decode(self, x: Tensor, at: Pass, logits_at: TokenSet | None, *, last: bool = False) -> Tensor:
        *others, final = self.blocks
        for block in others:
            x = block(x, at)
        at.asked = self._asked(at.run, logits_at, last=last)
        x = final(x, at)
        if last:
            x = x[:, -1:]
        elif logits_at is not None:
            x = _rows_at(x, at.run, logits_at)
        x = x.to(device_of(self.ln_final.stock))
        return self._capped(self.unembed(self.ln_final(x).to(device_of(self.unembed))))

    def _capped(self, logits: Tensor) -> Tensor:
        """Logits under the soft cap, where the model has one."""
        cap = self._cfg.output_logits_soft_cap
        return logits if cap <= 0 else cap * torch.tanh(logits / cap)

    def _asked(self, run: Run, logits_at: TokenSet | None, *, last: bool) -> Tensor | None:
        """Where the last block computes more than keys and values: where nobody looks at it, the rows to be unembedded."""
        end = self._cfg.n_layers - 1
        inside = [
            n for n in self.hook_dict if names.layer_of(n) == end and names.short_name(n) not in names.BEFORE_KEYS
        ]
        if any(watched(self.hook_dict[name]) for name in [*inside, "ln_final.hook_scale", "ln_final.hook_normalized"]):
            return None
        if last:
            return run.query_index[-1:]
        if (
            logits_at is None
            or len(logits_at) == 0
            or bool(run.padding.any())
            or {logits_at.layout} != set(run.layouts)
        ):
            return None
        return logits_at.positions

    def _start(self, decoding: DecodingMethod | None, inputs: AVInputs, config: Any) -> Any:
        if decoding is None:
            return None
        refuse_no_method(decoding)
        if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
            raise DecodingError(
                f"{type(decoding).__name__} decodes one continuation per prompt, but num_beams={config.num_beams} and "
                f"num_return_sequences={config.num_return_sequences}. Repeat the prompt with AVInputs.batch instead."
            )
        if self.watched_points():
            raise DecodingError(
                f"hooks are attached to {self.watched_points()[0].name}, and a decoding method cannot tell its streams apart for "
                "them. Pass them to generate as fwd_hooks, after model.reset_hooks()."
            )
        return decoding.start(self, inputs)


def _additions(
    embeds: Float[Tensor, "batch pos d_model"], rows: list[Tensor], columns: list[Tensor], values: list[Tensor]
) -> tuple[Float[Tensor, "batch pos d_model"], ...]:
    """What each further level of the encoders adds to the stream, 0 where it adds nothing."""
    additions = []
    for level in range(1, max((len(levels) for levels in values), default=0)):
        added = torch.zeros_like(embeds)
        for row, column, levels in zip(rows, columns, values, strict=True):
            if level < len(levels):
                added = added.index_put((row.to(embeds.device), column.to(embeds.device)), levels[level])
        additions.append(added)
    return tuple(additions)


def _rows_at(x: Float[Tensor, "batch pos d_model"], run: Run, tokens: TokenSet) -> Float[Tensor, "batch asked d_model"]:
    """The rows at a set's positions, in its order."""
    if any(layout != tokens.layout for layout in run.layouts):
        raise PositionError(
            f"{tokens!r} belongs to a prompt of another layout than those that run. Take it from inputs.tokens."
        )
    own = (run.query_index[None] - run.padding[:, None]).contiguous()
    wanted = tokens.positions.expand(len(own), -1).contiguous()
    index = torch.searchsorted(own, wanted)
    if not torch.equal(F.pad(own, (0, 1), value=-1).gather(1, index), wanted):
        raise PositionError(f"{tokens!r} holds positions that were discarded on the way, so they have no logits.")
    index = index.to(x.device)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _recorded(part: Part) -> dict[str, Any]:
    """What a result should carry of a piece of a prompt."""
    if isinstance(part, str):
        return {"text": part}
    if isinstance(part, Clip):
        name = "" if part.source is None else part.source.name
        return {"clip": name, "seconds": part.seconds, "sha256": part.sha256}
    return {"image": list(part.shape[1:])}


def _names_a_file(text: str) -> bool:
    try:
        return len(text) < 1000 and Path(text).is_file()
    except OSError:  # No file can have such a name.
        return False


def _check_part(part: Any) -> None:
    if isinstance(part, str) and _names_a_file(part):
        raise PromptError(
            f"{part!r} is a file, but was given as text of the prompt. Read it first: Clip.from_file({part!r})."
        )
    if isinstance(part, (Clip, str)):
        return
    if not isinstance(part, Tensor) or part.dtype != torch.uint8 or part.ndim != 3 or part.shape[0] != 3:
        raise PromptError(
            f"a prompt was given {_described(part)}. Pass clips, text, or images as uint8 tensors [3, height, width]."
        )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        negative = ", with negative numbers" if value.numel() and not value.is_complex() and value.min() < 0 else ""
        return f"a tensor of shape {list(value.shape)} and {value.dtype}{negative}"
    return f"a {type(value).__name__}"
