"""RoPE in the config.json of Hugging Face, whose keys have changed twice.

2023             "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.5}
transformers 4   "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8, ...}
transformers 5   "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, ...}
"""

from __future__ import annotations

import math
from typing import Any

from pyllm2.errors import ConfigError
from pyllm2.formats.json_file import Settings
from pyllm2.llama2.rope_scaling import RopeScaling, frequencies, yarn_attention_factor

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
_PARTIAL, _ORIGINAL = "partial_rotary_factor", "original_max_position_embeddings"


def read_rope(settings: Settings, positions: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling. positions: max_position_embeddings

    Raises FormatError naming a key that is not supported, ConfigError for values out of range.
    """
    inner = settings.inside("rope_parameters") or settings.inside("rope_scaling")
    inner = inner or Settings(settings.path, {}, "rope_scaling.")
    if any(isinstance(value, dict) for value in inner.values.values()):
        key = inner.within.removesuffix(".")
        raise settings.error(key, "is not supported: other parameters for some layers")
    for place in (settings, inner):
        if place.number(_PARTIAL, 1.0) != 1:
            raise place.error(_PARTIAL, "is not supported: expected 1")
    base = inner.number("rope_theta", settings.number("rope_theta", 10000.0))
    key = "rope_type" if inner.has("rope_type") else "type"
    kind = inner.text(key, "default")
    if kind not in _KINDS:
        raise inner.error(key, f"is not supported: expected one of {', '.join(_KINDS)}")
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, RopeScaling("linear", factor=inner.number("factor"))
    if kind == "dynamic":
        return base, RopeScaling("dynamic", factor=inner.number("factor"), original=positions)
    original = settings.whole(_ORIGINAL, inner.whole(_ORIGINAL, positions))
    if kind == "llama3":
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        factor = inner.number("factor")
        return base, RopeScaling("llama3", factor, original, low, high)
    factor = inner.number("factor", positions / max(1, original))
    implied = yarn_attention_factor(
        factor, inner.number("mscale", 0.0), inner.number("mscale_all_dim", 0.0)
    )
    return base, RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        attention_factor=inner.number("attention_factor", implied),
        truncate=inner.flag("truncate", True),
    )


def rope_values(config: Any) -> dict[str, Any]:
    """The keys of transformers 4, which version 5 reads too, and max_position_embeddings.

    Raises ConfigError for divisors that no formula gives.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "divisors":
        scaling = _llama3(config, scaling)
    values: dict[str, Any] = {"rope_theta": config.rope_base, "rope_scaling": None}
    if scaling is None:
        return values
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "dynamic":
        values["max_position_embeddings"] = scaling.original
    if scaling.kind in ("llama3", "yarn"):
        found[_ORIGINAL] = scaling.original
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        found |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        found |= {"attention_factor": scaling.attention_factor, "truncate": scaling.truncate}
    return values | {"rope_scaling": found}


def _llama3(config: Any, divisors: RopeScaling) -> RopeScaling:
    """The scaling of kind llama3, with low 1 and high 4, that has these divisors.

    They are float32 in GGUF, so equal means to 1e-6. Raises ConfigError if there is none.
    """
    hs, base = config.head_size, config.rope_base
    plain, wanted = frequencies(hs, base, None), divisors.divisors
    factor = float(round(max(wanted)))
    for original in sorted(n << k for n in (1, 3) for k in range(3, 22)):
        if factor < 1:
            break
        scaling = RopeScaling("llama3", factor, original)
        scaled = frequencies(hs, base, scaling)
        if all(
            math.isclose(f / g, d, rel_tol=1e-6)
            for f, g, d in zip(plain, scaled, wanted, strict=True)
        ):
            return scaling
    expected = "no rope_type of Hugging Face gives these divisors of the frequencies"
    raise ConfigError("rope_scaling", "divisors", expected)
