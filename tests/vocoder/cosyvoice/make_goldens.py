"""Makes `goldens/released.safetensors` with the released code, which the tests do not need.

    git clone https://github.com/FunAudioLLM/CosyVoice && git clone https://github.com/shivammehta25/Matcha-TTS
    pip install --no-deps einops==0.8.0 diffusers==0.27.2 conformer==0.3.2 omegaconf==2.3.0
    PYTHONPATH=.:CosyVoice:Matcha-TTS python tests/vocoder/cosyvoice/make_goldens.py

What the released packages import but this does not use (torchaudio, a language model) is left out below.
"""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors.torch import save_file

from tests.vocoder.cosyvoice.golden_values import fill, quiet, values

GOLDENS = Path(__file__).parent / "goldens" / "released.safetensors"


def leave_out(name: str, *attributes: str) -> types.ModuleType:
    """An empty module in place of one that is imported and not used."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(dict.fromkeys(attributes))
    sys.modules[name] = module
    return module


torchaudio: Any = leave_out("torchaudio")
torchaudio.transforms = leave_out("torchaudio.transforms", "Spectrogram")
leave_out("cosyvoice.utils.onnx", "SpeechTokenExtractor", "online_feature", "onnx_path")
leave_out("cosyvoice.llm.llm", "TransformerLM", "Qwen2LM", "CosyVoice3LM")
vars(huggingface_hub).setdefault("cached_download", None)  # diffusers 0.27 imports it

from cosyvoice.flow.decoder import ConditionalDecoder  # noqa: E402
from cosyvoice.flow.length_regulator import InterpolateRegulator  # noqa: E402
from cosyvoice.hifigan.discriminator import SpecDiscriminator  # noqa: E402
from cosyvoice.hifigan.f0_predictor import ConvRNNF0Predictor  # noqa: E402
from cosyvoice.hifigan.generator import HiFTGenerator  # noqa: E402
from cosyvoice.transformer.encoder import ConformerEncoder  # noqa: E402
from cosyvoice.utils.losses import tpr_loss  # noqa: E402
from matcha.hifigan.models import DiscriminatorP  # noqa: E402


@torch.no_grad()
def main() -> None:
    """Run the released networks at the tiny sizes of the tests."""
    encoder = fill(
        ConformerEncoder(
            input_size=16,
            output_size=16,
            attention_heads=2,
            linear_units=32,
            num_blocks=2,
            input_layer="linear",
            pos_enc_layer_type="rel_pos_espnet",
            selfattention_layer_type="rel_selfattn",
            use_cnn_module=False,
            macaron_style=False,
        )
    )
    regulator = fill(InterpolateRegulator(channels=16, sampling_ratios=(1, 1, 1, 1)))
    estimator = ConditionalDecoder(64, 16, (16, 16), 0.0, 8, n_blocks=1, num_mid_blocks=2, num_heads=2, act_fn="gelu")
    hift = HiFTGenerator(base_channels=32, f0_predictor=ConvRNNF0Predictor(cond_channels=16))
    fill(estimator)
    quiet(fill(hift))
    ones = torch.ones(2, 1, 21)
    told = (
        values("mu", 2, 16, 21),
        values("time", 2).abs(),
        values("speaker", 2, 16),
        values("prompt", 2, 16, 21),
    )
    mel, source = values("mel", 1, 80, 9) * 3 - 4, values("source", 1, 1, 9 * 256)
    waveform = values("waveform", 2, 1301)
    period, spectrum = fill(DiscriminatorP(3)), fill(SpecDiscriminator(512, 50, 240))
    high, low = values("high", 2, 40), values("low", 2, 40)
    save_file(
        {
            "encoder": encoder(values("tokens", 2, 12, 16), torch.tensor([12, 12]))[0],
            "regulator": regulator(values("hidden", 2, 6, 16), torch.tensor([12, 12]))[0],
            "estimator": estimator(values("noisy", 2, 16, 21), ones, *told),
            "f0": hift.f0_predictor(mel),
            "decode": hift.decode(mel, source),
            "period": period(waveform[:, None])[0],
            "spectrum": spectrum(waveform)[0],
            "relativistic": tpr_loss([high], [low], 10.0)[None],
        },
        GOLDENS,
    )


if __name__ == "__main__":
    main()
