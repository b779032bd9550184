"""Whisper's features inside the graph: samples to log-mel, as transformers' feature extractor makes them."""

import math
from typing import Any

import numpy as np
import torch

LOWEST = 1e-10  # of a power
RANGE = 8.0  # decades below the loudest that still count


class LogMel(torch.nn.Module):
    """Samples float32 `[batch, samples]` to features `[batch, mels, samples / hop]` (Radford et al. 2022, section 2.2).

    The Fourier transform is a convolution, the mel filters another of length 1, so that neither is ever quantised.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        size, self.hop = int(extractor.n_fft), int(extractor.hop_length)
        self.reach = size // 2
        window = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(size) / size)  # Hann, periodic
        angles = 2 * math.pi * np.outer(np.arange(self.reach + 1), np.arange(size)) / size
        waves = np.concatenate([np.cos(angles), -np.sin(angles)]) * window
        self.waves = torch.tensor(waves, dtype=torch.float32).unsqueeze(1)
        self.mels = torch.tensor(np.asarray(extractor.mel_filters).T, dtype=torch.float32).unsqueeze(2)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(audio.unsqueeze(1), (self.reach, self.reach), mode="reflect")
        parts = torch.nn.functional.conv1d(padded, self.waves, stride=self.hop)[..., :-1]
        power = parts[:, : self.reach + 1] ** 2 + parts[:, self.reach + 1 :] ** 2
        mels = torch.nn.functional.conv1d(power, self.mels).clamp(min=LOWEST)
        logs = torch.log(mels) / math.log(10)
        loudest = logs.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(logs, loudest - RANGE) + 4.0) / 4.0
