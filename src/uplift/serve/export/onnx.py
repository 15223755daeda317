"""ONNX: the traced graph for onnxruntime, rows and lengths free; fewer bits by onnxruntime's own quantizers."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch

from uplift.model.language_model import LanguageModel
from uplift.serve.export.plain import INPUTS, OUTPUT, example, traceable
from uplift.serve.export.torch_program import free_shapes

LARGEST = 1_900_000_000
"""Bytes of weights up to which an ONNX file (a protocol buffer, at most 2 GiB) holds them itself."""
BLOCK = 32
"""Neighbouring weights that share a scale."""
INT8_INPUTS = 4
"""onnxruntime's number for computing with 8-bit inputs; with float32 inputs 8-bit weights are slower than f32."""


def write_onnx(model: LanguageModel, path: Path, length: int, number_type: str) -> None:
    """Write ``path`` (.onnx, weights beyond 1.9 GB beside it) as ``f32`` or with fewer bits.

    ``int8``: weights per channel, inputs per tensor as they are met: the fastest, for encoders. A decoder's inputs have single
    values far larger than the others and lose too much; ``int8_weights`` and ``int4_weights`` round weights (and, inside the
    kernel, inputs to 8 bits) in blocks of 32. Embeddings stay as they are in these.
    """
    if number_type == "f32":
        _write_plain(model, path, length)
        return
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.name
        _write_plain(model, plain, length)
        graph = onnx.load(plain)
        del graph.graph.value_info[:]  # the quantizer turns matrices and then stumbles over their noted shapes
        beside = _bytes(model) > 4 * LARGEST
        if number_type == "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(graph, path, weight_type=QuantType.QInt8, per_channel=True, use_external_data_format=beside)
            return
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        bits = 8 if number_type == "int8_weights" else 4
        quantizer = MatMulNBitsQuantizer(graph, bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_INPUTS)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path), beside)


def _bytes(model: LanguageModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.pretrained.parameters())


def _write_plain(model: LanguageModel, path: Path, length: int) -> None:
    with traceable(model) as graph, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            example(model),
            path,
            dynamo=True,
            dynamic_shapes=free_shapes(length),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            external_data=_bytes(model) > LARGEST,
            verbose=False,
        )
