"""How does a waveform become a mel spectrogram, as Whisper's encoder reads it?

transformers' WhisperFeatureExtractor, on the waveform plus a little silence instead of the 300 s to which Qwen's
processor pads; the frames that cover the waveform, ceil(samples / hop), are the same up to the rounding of a matrix product.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import WhisperFeatureExtractor


def log_mel(waveform: Float[Tensor, " sample"], extractor: WhisperFeatureExtractor) -> Float[Tensor, "mel mel_pos"]:
    """Normalised log-mel energies of each hop of a waveform at the extractor's sampling rate."""
    n_frames = math.ceil(len(waveform) / extractor.hop_length)
    padded = n_frames * extractor.hop_length + extractor.n_fft
    features = extractor(
        waveform.numpy(),
        sampling_rate=extractor.sampling_rate,
        padding="max_length",
        max_length=padded - padded % extractor.hop_length,
        return_tensors="pt",
    )
    mel: Tensor = features["input_features"][0, :, :n_frames]
    return mel.to(torch.float32).contiguous()
