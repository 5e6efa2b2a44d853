"""How does a sound become a few tokens per second: Whisper's encoder, and a Q-Former that reads it window by window?

A sound is cut into pieces of 30 s, the last padded with silence. Whisper's encoder makes 50 frames per second of each; a
Q-Former with one learned query reads each window of them and leaves one token, which a linear map brings to the decoder's
width. Windows neither overlap nor cross a piece, so token k holds seconds k * window to (k + 1) * window.

Source: video-SALMONN (Sun et al. 2024, arXiv:2406.15704); transformers' WhisperEncoder and Blip2QFormerModel.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

PIECE_SECONDS = 30


class QFormerAudio(nn.Module):
    """Whisper's encoder, an optional norm, and a Q-Former over windows."""

    def __init__(
        self, whisper: WhisperConfig, qformer: Blip2QFormerConfig, d_out: int, *, window_seconds: float, norm: bool
    ) -> None:
        super().__init__()
        self.whisper = WhisperEncoder._from_config(whisper)
        self.norm = nn.LayerNorm(whisper.d_model) if norm else nn.Identity()
        self.qformer = Blip2QFormerModel._from_config(qformer)
        self.query = nn.Parameter(torch.zeros(1, 1, qformer.hidden_size))
        self.projection = nn.Linear(qformer.hidden_size, d_out)
        self.window = round(whisper.max_source_positions * window_seconds / PIECE_SECONDS)

    def forward(self, mel: Float[Tensor, "piece mel mel_pos"]) -> Float[Tensor, "piece token d_model"]:
        """The tokens of each piece."""
        heard = self.norm(self.whisper(mel).last_hidden_state)  # piece frame d_audio
        windows = heard.unfold(1, self.window, self.window).transpose(2, 3)  # piece token window d_audio
        n_pieces, n_tokens = windows.shape[:2]
        read = self.qformer(
            query_embeds=self.query.expand(n_pieces * n_tokens, -1, -1), encoder_hidden_states=windows.flatten(0, 1)
        ).last_hidden_state
        out: Tensor = self.projection(read).view(n_pieces, n_tokens, -1)
        return out


def audio_attention(audio: QFormerAudio) -> dict[str, list[nn.Module]]:
    """What attends in each block: in Whisper's, sound to sound; in the Q-Former's, its query to a window of sound.

    Where a layer of the Q-Former does not read the sound, its query attends to itself.
    """
    layers = audio.qformer.encoder.layer
    return {
        "audio": [layer.self_attn for layer in audio.whisper.layers],
        "qformer": [getattr(layer, "crossattention", layer.attention).attention for layer in layers],
    }


def whisper_config(settings: Mapping[str, Any]) -> WhisperConfig:
    """The encoder's part of Whisper's settings."""
    names = (
        "num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model", "activation_function",
        "max_source_positions", "scale_embedding",
    )  # fmt: skip
    return WhisperConfig(**{name: settings[name] for name in names if name in settings})


def qformer_config(settings: Mapping[str, Any], d_audio: int) -> Blip2QFormerConfig:
    """A Q-Former without text and without dropout."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "layer_norm_eps",
    )
    return Blip2QFormerConfig(
        **{name: settings[name] for name in names if name in settings},
        encoder_hidden_size=d_audio, cross_attention_frequency=settings.get("cross_attention_freq", 1),
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, use_qformer_text_input=False,
    )  # fmt: skip


def qformer_renames(theirs: str, ours: str) -> dict[str, str]:
    """Patterns of a BERT-style Q-Former's keys under a prefix, and what they are called in transformers' Q-Former."""
    theirs = rf"^{theirs}\.bert\."
    return {
        rf"{theirs}embeddings\.LayerNorm\.": f"{ours}.layernorm.",
        rf"{theirs}encoder\.(layer\.\d+\.attention)\.self\.": rf"{ours}.encoder.\1.attention.",
        rf"{theirs}encoder\.(layer\.\d+\.crossattention)\.self\.": rf"{ours}.encoder.\1.attention.",
        rf"{theirs}encoder\.": f"{ours}.encoder.",
    }


def whisper_mel(n_mel: int) -> WhisperFeatureExtractor:
    """Whisper's own reading of sound: pieces of 30 s."""
    return WhisperFeatureExtractor(feature_size=n_mel, chunk_length=PIECE_SECONDS)


def mel_pieces(
    waveform: Float[Tensor, " sample"], extractor: WhisperFeatureExtractor
) -> Float[Tensor, "piece mel mel_pos"]:
    """Normalised log-mel energies of each 30-second piece; a sound shorter than a second is filled up to one first."""
    rate = extractor.sampling_rate
    waveform = F.pad(waveform, (0, max(0, rate - len(waveform))))
    pieces = waveform.split(PIECE_SECONDS * rate)
    features = extractor([piece.numpy() for piece in pieces], sampling_rate=rate, return_tensors="pt")
    mel: Tensor = features["input_features"]
    return mel.to(torch.float32).contiguous()


def n_pieces(samples: int, rate: int) -> int:
    """Into how many pieces a sound is cut."""
    return max(1, math.ceil(samples / (PIECE_SECONDS * rate)))
