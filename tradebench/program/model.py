"""From a trial's model settings to a transformers model on a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tradebench import configs, reference
from tradebench.errors import UserError
from tradebench.program.checkpoint import Checkpoint
from tradebench.techniques import LoadRequest, Stage
from tradebench.techniques.stored import packed_weights
from tradebench.trial import Model, Trial
from tradebench.worlds.ranks import place
from tradebench.worlds.shares import keep_share, without_values
from tradebench.worlds.shares import rows as rows_of
from tradebench.worlds.skeleton import Absent, fill_by, fill_each, leave_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows of a tensor of this name and shape: the first of them, how many, and in room for how many.
Rows = Callable[[str, torch.Size, int, int, int], Tensor]

DEVIATION = 0.02  # of random weights, where a config names none: the default of transformers


def plan_loading(trial: Trial, device: str) -> LoadRequest:
    """What every technique together asks of the loading, in stage order."""
    compressing = any(trial.between(Stage.PRUNE, Stage.FACTOR))
    random = trial.model.weights == "random"
    here = (place()[0], trial.ranks) if trial.in_shares else None
    request = LoadRequest(
        device=device,
        dtype=torch.float32,
        compute_dtype=torch.float32,
        # There is no checkpoint to quantize from while loading random weights.
        dense_first=compressing or random or here is not None,
        drawn_late=(random or here is not None)
        and not compressing
        and any(trial.between(Stage.QUANTIZE, Stage.QUANTIZE)),
        place=here,
        keep=_whole if here is None else partial(keep_share, place=here),
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
        return draw(lay_out(model, request), request)
    if request.place is not None:
        checkpoint = Checkpoint(source(model), model.revision or "main")
        return read_shares(lay_out(model, request), checkpoint.rows, request)
    return _ready(_real_weights(model, request))


def build_model(model: Model, dtype: torch.dtype) -> nn.Module:
    """The model from its config alone, on `meta`, with shapes only.

    Raises:
        UserError: the config cannot be found or read.
    """
    config = _config(model)
    with torch.device("meta"):
        return _ready(
            AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        )


def lay_out(model: Model, request: LoadRequest) -> nn.Module:
    """The model on `meta`, with shapes only; random weights that are drawn late will be.

    Raises:
        UserError: the config cannot be found or read.
    """
    skeleton: Any = build_model(model, request.dtype)
    if request.drawn_late and model.weights == "random":
        deviation = getattr(skeleton.config, "initializer_range", DEVIATION)

        def draw(meta: Tensor) -> Tensor:
            data = torch.empty(meta.shape, dtype=meta.dtype, device=request.device)
            return nn.Parameter(data.normal_(std=deviation), requires_grad=meta.requires_grad)

        leave_out(skeleton, draw)
    return skeleton  # type: ignore[no-any-return]  # transformers makes its classes at run time


def draw(skeleton: Any, request: LoadRequest) -> nn.Module:
    """Give random values to everything but the weights that are absent, in place.

    Every rank draws all of them, one module at a time, and keeps its share: so the model is the
    same however many ranks there are.
    """

    def start(module: nn.Module) -> None:
        if not isinstance(module, Absent):
            skeleton._initialize_weights(module)
        elif module.bias is not None:
            nn.init.zeros_(module.bias)
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # for ties

    with torch.device(request.device):
        fill_each(skeleton, start, request.keep)
    return skeleton  # type: ignore[no-any-return]  # transformers makes its classes at run time


def read_shares(skeleton: Any, rows: Rows, request: LoadRequest) -> nn.Module:
    """Read this rank's rows of every parameter of a skeleton, in place.

    The weights of layers that will be quantized are read whole, each when it is asked for.
    """
    here = request.place
    assert here is not None, "shares are those of a rank"
    names = {parameter: name for name, parameter in skeleton.named_parameters()}

    def whole(meta: Tensor) -> Tensor:
        count = meta.shape[0]
        dense = rows(names[meta], meta.shape, 0, count, count).to(request.device, meta.dtype)
        return nn.Parameter(dense, requires_grad=meta.requires_grad)

    def share(name: str, meta: Tensor) -> Tensor:
        if not isinstance(meta, nn.Parameter):
            return torch.empty(meta.shape, dtype=meta.dtype)
        found = rows(name, meta.shape, *rows_of(meta.shape[0], here))
        return without_values(meta, found.to(request.device, meta.dtype))

    late = leave_out(skeleton, whole) if request.drawn_late else []
    for linear in late:
        vars(linear)["_is_hf_initialized"] = True  # so that transformers leaves it alone
    with torch.device(request.device):
        fill_by(skeleton, share)
        skeleton.init_weights()  # of what is in no checkpoint, such as rotary frequencies
    return skeleton  # type: ignore[no-any-return]  # transformers makes its classes at run time


def _whole(module: nn.Module) -> nn.Module:
    return module


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
