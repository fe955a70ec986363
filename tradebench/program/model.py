"""From a trial's model settings to a transformers model on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tradebench import configs, reference
from tradebench.errors import UserError
from tradebench.techniques import LoadRequest, Stage
from tradebench.techniques.stored import packed_weights
from tradebench.trial import Model, Trial
from tradebench.worlds.skeleton import Absent, fill, leave_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEVIATION = 0.02  # of random weights, where a config names none: the default of transformers


def plan_loading(trial: Trial, device: str) -> LoadRequest:
    """What every technique together asks of the loading, in stage order."""
    compressing = any(trial.between(Stage.PRUNE, Stage.FACTOR))
    random = trial.model.weights == "random"
    request = LoadRequest(
        device=device,
        dtype=torch.float32,
        compute_dtype=torch.float32,
        # There is no checkpoint to quantize from while loading random weights.
        dense_first=compressing or random,
        drawn_late=random
        and not compressing
        and any(trial.between(Stage.QUANTIZE, Stage.QUANTIZE)),
    )
    for part in trial.techniques:
        request = part.load(request)
    return request


def load_model(model: Model, request: LoadRequest) -> nn.Module:
    """The model in training mode, on the device, all parameters trainable where they can be.

    Raises:
        UserError: the model cannot be found or read.
    """
    transformers.utils.logging.disable_progress_bar()
    if model.weights == "random":
        if request.drawn_late:
            return _draw(lay_out(model, request), request.device)
        return build_model(model, request.dtype, request.device)
    return _ready(_real_weights(model, request))


def build_model(model: Model, dtype: torch.dtype, device: str) -> nn.Module:
    """The model from its config alone, with random values; on `meta` with shapes only.

    Raises:
        UserError: the config cannot be found or read.
    """
    config = _config(model)
    with torch.device(device):
        return _ready(
            AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        )


def lay_out(model: Model, request: LoadRequest) -> nn.Module:
    """The model on `meta`, with shapes only; weights that are drawn late will be.

    Raises:
        UserError: the config cannot be found or read.
    """
    skeleton: Any = build_model(model, request.dtype, "meta")
    if request.drawn_late:
        deviation = getattr(skeleton.config, "initializer_range", DEVIATION)

        def draw(meta: Tensor) -> Tensor:
            data = torch.empty(meta.shape, dtype=meta.dtype, device=request.device)
            return nn.Parameter(data.normal_(std=deviation), requires_grad=meta.requires_grad)

        leave_out(skeleton, draw)
    return skeleton  # type: ignore[no-any-return]  # transformers makes its classes at run time


def _draw(skeleton: Any, device: str) -> nn.Module:
    """Give random values to everything but the weights that are absent, in place."""
    with torch.device(device):
        fill(skeleton)
        for layer in skeleton.modules():
            if isinstance(layer, Absent):
                vars(layer)["_is_hf_initialized"] = True  # so that transformers leaves it alone
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        skeleton.init_weights()
    return skeleton  # type: ignore[no-any-return]  # transformers makes its classes at run time


def stored_dtype(model: Model) -> torch.dtype | None:
    """The format of the checkpoint's weights; None where there is no checkpoint."""
    if model.weights == "random":
        return None
    named = _config(model).dtype
    return named if isinstance(named, torch.dtype) else torch.float32


def _ready(model: Any) -> nn.Module:
    """The model as training wants it."""
    # A cache of keys and values is useless in training, and with packed sequences it leaks one
    # sequence into the next; generation switches its own on.
    model.config.use_cache = False
    model.train()
    return model  # type: ignore[no-any-return]  # transformers makes its classes at run time


def _real_weights(model: Model, request: LoadRequest) -> Any:
    place, revision = source(model), model.revision or "main"
    packed = packed_weights(model)
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        if packed is not None:
            config.quantization_config = packed.fields()
        stored = getattr(config, "quantization_config", None)
        if stored and request.quantization is None:
            raise UserError(
                f"the weights of {model.name} are packed already, by {stored.get('quant_method')}; "
                "name the quantization that they have"
            )
        return AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            revision=revision,
            dtype=request.dtype,
            device_map={"": request.device},
            quantization_config=request.quantization,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
        )
    except OSError as error:
        raise UserError(f"cannot load model {model.name}: {_first_line(error)}") from error


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer; None where only a shape was given, which needs random data.

    Raises:
        UserError: the tokenizer cannot be found or read.
    """
    if model.weights == "random":
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source(model), revision=model.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the tokenizer of {model.name}: {_first_line(error)}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def vocabulary(model: Model) -> int:
    """Number of tokens that the model knows."""
    return int(_config(model).vocab_size)


def longest_input(model: Model) -> int:
    """Number of positions that the model was made for."""
    return int(_config(model).max_position_embeddings)


def depth(model: Model) -> int:
    """Number of decoder layers."""
    return int(_config(model).num_hidden_layers)


def _config(model: Model) -> Any:
    config = _whole_config(model)
    if model.layers is not None:
        config.num_hidden_layers = model.layers
        # Shapes that mix kinds of attention name one for each layer.
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: model.layers]
    return config


def _whole_config(model: Model) -> Any:
    if model.weights == "random" or model.config is not None:
        return AutoConfig.from_pretrained(configs.path(model.config or model.name))
    try:
        return AutoConfig.from_pretrained(
            source(model), revision=model.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:  # ValueError: a kind that transformers does not know
        raise UserError(f"cannot load model {model.name}: {_first_line(error)}") from error


def source(model: Model) -> str:
    """Where transformers finds it: a local folder, or a Hub id."""
    if model.name == "reference":
        return str(reference.CHECKPOINT)
    local = Path(model.name).expanduser()
    return str(local) if local.is_dir() else model.name


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
