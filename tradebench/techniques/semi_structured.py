"""2:4 sparsity that saves bytes: the base is stored without its zeros, and a kernel reads it so.

Of every four neighbouring weights of a row the two largest stay: a base that was pruned that way
already keeps what it has. Values and places take ten sixteenths of the dense weights in 16 bits.
Ampere's tensor cores and later ones skip the zeros on the way forward, at up to twice the dense
rate; on the way back each dense weight is made again. Weights that are stored so take no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tradebench.errors import UserError
from tradebench.techniques.protocol import ContradictionError, LoadRequest, Stage, Technique
from tradebench.techniques.shapes import matrix_shapes
from tradebench.techniques.targets import decoder_linears, replace_linears

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tradebench.layers.semi_structured import SemiStructuredLinear
    from tradebench.techniques.protocol import Effect
    from tradebench.trial import Trial

MULTIPLE = 16  # of rows and columns, which torch asks of matrices in 16 bits


class SemiStructured(Technique):
    """Stores the two largest of every four weights of the decoder's matrices, in bf16.

    It comes where layers would be quantized, one after the other, so that random weights need not
    all be there at once.
    """

    slot, stage, axis = "pruning", Stage.QUANTIZE, "method"
    cite = "Mishra et al. 2021, arXiv:2104.08378; https://docs.pytorch.org/docs/stable/sparse.html"
    cuda_only: ClassVar[str | None] = (
        "the 2:4 kernels of semi_structured weights are NVIDIA's: no CPU has them"
    )
    builds_with = ("tradebench.layers.semi_structured",)
    capability = (8, 0)
    amd = False

    # Without a default: a suite that names no method of this slot means the plain one.
    method: Literal["semi_structured"]

    def conflicts(self, trial: Trial) -> list[str]:
        """Compressed weights stay as they are, on one GPU, and must be whole blocks."""
        reasons = []
        if trial.method("adapters") is None:
            reasons.append(
                "semi_structured weights are compressed and take no gradient; "
                "add an adapter such as lora"
            )
        if trial.settings.get("adapters", {}).get("merge"):
            reasons.append(
                "an adapter cannot merge into compressed semi_structured weights; set merge: false"
            )
        if trial.method("quantization") is not None:
            reasons.append(
                "semi_structured weights are compressed already and cannot be quantized; "
                "use only one of the two"
            )
        if trial.method("precision") == "fp8":
            reasons.append(
                "fp8 multiplies in dense layers and semi_structured leaves none; use bf16 instead"
            )
        if trial.method("sharding") is not None:
            reasons.append(
                "compressed semi_structured weights cannot be split into shares; "
                "use magnitude or structured instead"
            )
        odd = [shape for shape in matrix_shapes(trial.model) if any(n % MULTIPLE for n in shape)]
        if odd:
            rows, columns = min(odd)
            reasons.append(
                f"semi_structured takes sides that are multiples of {MULTIPLE} and a matrix has "
                f"{rows} by {columns}; use magnitude instead"
            )
        return reasons

    def cautions(self, trial: Trial) -> list[str]:
        """What the way back costs, and what other precisions do."""
        notes = [
            "the way back of semi_structured layers makes the dense weight: "
            "only the way forward multiplies faster",
        ]
        if trial.method("precision") != "bf16":
            notes.append(
                "semi_structured weights are in bf16: with another precision every product casts "
                "what goes in and what comes out"
            )
        return notes

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Compress in place, one layer after the other.

        Raises:
            UserError: a matrix is no multiple of the blocks that kernels take.
        """
        from tradebench.layers.semi_structured import SemiStructuredLinear

        for name, linear in decoder_linears(model):
            if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
                raise UserError(
                    f"semi_structured takes sides that are multiples of {MULTIPLE}, but {name} has "
                    f"{linear.out_features} by {linear.in_features}; use magnitude instead"
                )
        replace_linears(model, SemiStructuredLinear)
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count compressed layers, their bytes and those that dense ones would have."""
        from tradebench.layers.semi_structured import SemiStructuredLinear

        layers = [module for _, module in decoder_linears(model)]
        packed = [module for module in layers if isinstance(module, SemiStructuredLinear)]
        if not layers or len(packed) < len(layers):
            raise ContradictionError(
                f"semi_structured was asked for, but {len(layers) - len(packed)} of {len(layers)} "
                "linear layers are dense"
            )
        stored = sum(layer.packed.nbytes + layer.places.nbytes for layer in packed)
        dense = sum(layer.out_features * layer.in_features * 2 for layer in packed)
        return {"layers": len(packed), "weight_bytes": stored, "bytes_saved": dense - stored}


def compress(weight: Tensor, values: Tensor) -> Tensor:
    """What cuSPARSELt multiplies by, of a pruned weight in bf16 and its values row by row.

    Plain torch stands in for the library on a CPU.

    Raises:
        UserError: torch lacks the library, or it keeps the values in another order.
    """
    import torch

    if weight.device.type != "cuda":
        packed = weight.new_zeros(weight.numel() // 16 * 9)
        packed[: values.numel()] = values.flatten()
        return packed
    if not torch.backends.cusparselt.is_available():
        raise UserError(
            "semi_structured needs cuSPARSELt, which this build of torch lacks; "
            "use a build for CUDA on Linux or pruning: structured"
        )
    sparse: Any = torch.sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense(weight)
    packed = sparse.packed
    # The library does not promise it; torch counts on it, and so does the way back.
    if not torch.equal(packed.flatten().narrow(0, 0, values.numel()), values.flatten()):
        raise UserError(
            "cuSPARSELt keeps the values of semi_structured weights in an order of its own on this "
            "GPU, so the way back cannot read them; use pruning: structured"
        )
    return packed  # type: ignore[no-any-return]  # torch leaves it untyped


def multiply(inputs: Tensor, layer: SemiStructuredLinear) -> Tensor:
    """Inputs (tokens, columns) in bf16 times the transposed weight, shape (tokens, rows)."""
    import torch
    from torch.nn.functional import linear

    if inputs.device.type != "cuda":
        return linear(inputs, layer.weight)
    sparse = torch.sparse.SparseSemiStructuredTensorCUSPARSELT(
        torch.Size((layer.out_features, layer.in_features)),
        packed=layer.packed,
        meta=None,
        packed_t=None,
        meta_t=None,
        compressed_swizzled_bitmask=None,
        # Otherwise the answer is the view of a transposed one, which no fused attention takes: 64
        # heads of scores are then made, kept, and multiplied for half of the step's time.
        fuse_transpose_cusparselt=True,
    )
    return linear(inputs, sparse)
