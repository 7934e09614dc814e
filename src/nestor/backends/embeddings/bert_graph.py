"""Writes a BERT encoder with mean pooling as an ONNX model, from its weights.

Node by node (opset 17, standard operators), so that neither torch nor transformers is
needed. Inputs ``input_ids`` and ``attention_mask`` (int64, batch x tokens); output
``sentence_embedding``: the mean of the tokens' vectors, of length 1. The same weights give
the same bytes.

``int8``: the products with weights are computed on integers. Weights are quantised per
column to 7 bits (without VNNI, x86 adds pairs of 8-bit products in 16 bits and saturates),
activations at each call, over all that is in the tensor: a text that is alone in its batch
gets a vector that depends on nothing else. The table of words is quantised per row.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
_MASKED = -10_000.0
_WEIGHT_LEVELS = 64
_WORD_LEVELS = 127

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class BertShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a BERT's ``config.json`` says of its shape; more in it is not read."""

    hidden_size: _Count
    num_attention_heads: _Count
    num_hidden_layers: _Count
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"


class BertGraph:
    """Nodes and constants in the order in which they were added."""

    def __init__(self, tensors: Tensors, shape: BertShape, *, int8: bool) -> None:
        """Raises ``ValueError`` for a shape that this graph does not have."""
        if shape.hidden_act != "gelu" or shape.hidden_size % shape.num_attention_heads:
            raise ValueError(
                "a model of another kind: BERT with gelu is what can be built"
            )
        self._tensors = tensors
        self._shape = shape
        self._int8 = int8
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(self, name: str) -> bytes:
        """Return the model as the bytes of a file."""
        hidden, mask = self._embeddings(), self._mask()
        for number in range(self._shape.num_hidden_layers):
            hidden = self._layer(hidden, mask, number)
        self._pool(hidden)
        places = ["batch", "tokens"]
        made = helper.make_graph(
            self._nodes,
            name,
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, places),
                helper.make_tensor_value_info(
                    "attention_mask", TensorProto.INT64, places
                ),
            ],
            [
                helper.make_tensor_value_info(
                    "sentence_embedding",
                    TensorProto.FLOAT,
                    ["batch", self._shape.hidden_size],
                )
            ],
            initializer=list(self._constants.values()),
        )
        model = helper.make_model(
            made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="nestor"
        )
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))

    def _constant(self, name: str, value: Array) -> str:
        if name not in self._constants:
            array = np.ascontiguousarray(value)
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def _float(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, dtype=np.float32))

    def _integers(self, name: str, *values: int) -> str:
        return self._constant(name, np.array(values, dtype=np.int64))

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(kind, inputs, [output], name=output, **attributes)
        self._nodes.append(node)
        return output

    def _weight(self, name: str) -> Array:
        try:
            return self._tensors[name].astype(np.float32)
        except KeyError as error:
            raise ValueError(f"the weights lack {name}") from error

    def _linear(self, x: str, source: str, output: str) -> str:
        """``x @ weight.T + bias``: weights are kept as (out, in)."""
        weight = self._weight(f"{source}.weight").T
        bias = self._constant(f"{output}.bias", self._weight(f"{source}.bias"))
        if self._int8:
            product = self._integer_product(x, weight, output)
        else:
            constant = self._constant(f"{output}.weight", weight)
            product = self._add("MatMul", [x, constant], f"{output}.mul")
        return self._add("Add", [product, bias], output)

    def _integer_product(self, x: str, weight: Array, output: str) -> str:
        levels, scales = _quantised(weight, axis=0, levels=_WEIGHT_LEVELS)
        whole = self._constant(f"{output}.weight", levels)
        zeros = self._constant(f"{output}.zero", np.zeros(len(scales), dtype=np.int8))
        steps = self._constant(f"{output}.scale", scales)
        if not any(node.name == f"{x}.int8" for node in self._nodes):
            node = helper.make_node(
                "DynamicQuantizeLinear",
                [x],
                [f"{x}.int8", f"{x}.step", f"{x}.zero"],
                name=f"{x}.int8",
            )
            self._nodes.append(node)
        product = self._add(
            "MatMulInteger",
            [f"{x}.int8", whole, f"{x}.zero", zeros],
            f"{output}.integers",
        )
        real = self._add("Cast", [product], f"{output}.cast", to=TensorProto.FLOAT)
        step = self._add("Mul", [f"{x}.step", steps], f"{output}.step")
        return self._add("Mul", [real, step], f"{output}.mul")

    def _norm(self, x: str, source: str, output: str) -> str:
        scale = self._constant(f"{output}.gain", self._weight(f"{source}.weight"))
        shift = self._constant(f"{output}.shift", self._weight(f"{source}.bias"))
        return self._add(
            "LayerNormalization",
            [x, scale, shift],
            output,
            axis=-1,
            epsilon=self._shape.layer_norm_eps,
        )

    def _embeddings(self) -> str:
        """Words + positions + the one segment, normalised."""
        words = self._weight("embeddings.word_embeddings.weight")
        segment = self._weight("embeddings.token_type_embeddings.weight")[0]
        places = self._weight("embeddings.position_embeddings.weight") + segment
        if self._int8:
            levels, scales = _quantised(words, axis=1, levels=_WORD_LEVELS)
            self._add(
                "Gather", [self._constant("words", levels), "input_ids"], "word.int8"
            )
            self._add("Cast", ["word.int8"], "word.real", to=TensorProto.FLOAT)
            steps = self._constant("words.scale", scales[:, None])
            self._add("Gather", [steps, "input_ids"], "word.step")
            self._add("Mul", ["word.real", "word.step"], "word")
        else:
            self._add("Gather", [self._constant("words", words), "input_ids"], "word")
        self._add("Shape", ["input_ids"], "length", start=1, end=2)
        table = self._constant("places", places)
        zero, axis = self._integers("first", 0), self._integers("axis", 0)
        self._add("Slice", [table, zero, "length", axis], "place")
        self._add("Add", ["word", "place"], "embedded")
        return self._norm("embedded", "embeddings.LayerNorm", "hidden.0")

    def _mask(self) -> str:
        """0 where there is a token and a large negative number where there is padding."""
        self._add("Cast", ["attention_mask"], "real", to=TensorProto.FLOAT)
        self._add("Unsqueeze", ["real", self._integers("axes", 1, 2)], "real.wide")
        self._add("Sub", [self._float("one", 1.0), "real.wide"], "padding")
        return self._add("Mul", ["padding", self._float("masked", _MASKED)], "mask")

    def _layer(self, x: str, mask: str, number: int) -> str:
        source, name = f"encoder.layer.{number}", f"layer.{number}"
        attended = self._attention(x, mask, number)
        summed = self._add("Add", [attended, x], f"{name}.attended")
        normed = f"{source}.attention.output.LayerNorm"
        middle = self._norm(summed, normed, f"{name}.middle")
        wide = self._linear(middle, f"{source}.intermediate.dense", f"{name}.wide")
        curved = self._gelu(wide, name)
        narrow = self._linear(curved, f"{source}.output.dense", f"{name}.narrow")
        summed = self._add("Add", [narrow, middle], f"{name}.sum")
        return self._norm(summed, f"{source}.output.LayerNorm", f"hidden.{number + 1}")

    def _attention(self, x: str, mask: str, number: int) -> str:
        source = f"encoder.layer.{number}.attention"
        name = f"layer.{number}.attention"
        shape = self._shape
        width = shape.hidden_size // shape.num_attention_heads
        heads = self._integers("heads", 0, 0, shape.num_attention_heads, width)

        def head(part: str, order: list[int]) -> str:
            flat = self._linear(x, f"{source}.self.{part}", f"{name}.{part}")
            split = self._add("Reshape", [flat, heads], f"{name}.{part}.split")
            return self._add("Transpose", [split], f"{name}.{part}.heads", perm=order)

        query = head("query", [0, 2, 1, 3])
        key = head("key", [0, 2, 3, 1])
        value = head("value", [0, 2, 1, 3])
        scores = self._add("MatMul", [query, key], f"{name}.scores")
        root = self._float("root", width**0.5)
        scaled = self._add("Div", [scores, root], f"{name}.scaled")
        masked = self._add("Add", [scaled, mask], f"{name}.masked")
        shares = self._add("Softmax", [masked], f"{name}.shares", axis=-1)
        mixed = self._add("MatMul", [shares, value], f"{name}.mixed")
        turned = self._add("Transpose", [mixed], f"{name}.turned", perm=[0, 2, 1, 3])
        flat = self._integers("joined", 0, 0, shape.hidden_size)
        joined = self._add("Reshape", [turned, flat], f"{name}.joined")
        return self._linear(joined, f"{source}.output.dense", f"{name}.output")

    def _gelu(self, x: str, name: str) -> str:
        """The exact one, in the shape that onnxruntime recognises and fuses."""
        root = self._float("root2", 2**0.5)
        part = self._add("Div", [x, root], f"{name}.gelu.part")
        erf = self._add("Erf", [part], f"{name}.gelu.erf")
        plus = self._add("Add", [erf, self._float("one", 1.0)], f"{name}.gelu.plus")
        times = self._add("Mul", [x, plus], f"{name}.gelu.times")
        return self._add("Mul", [times, self._float("half", 0.5)], f"{name}.gelu")

    def _pool(self, hidden: str) -> None:
        tokens = self._integers("over.tokens", 1)
        last = self._integers("last", -1)
        self._add("Unsqueeze", ["real", last], "real.tall")
        self._add("Mul", [hidden, "real.tall"], "kept")
        self._add("ReduceSum", ["kept", tokens], "total", keepdims=0)
        self._add("ReduceSum", ["real", tokens], "count", keepdims=1)
        self._add("Div", ["total", "count"], "mean")
        self._add("ReduceL2", ["mean"], "norm", axes=[-1], keepdims=1)
        self._add("Div", ["mean", "norm"], "sentence_embedding")


def _quantised(values: Array, *, axis: int, levels: int) -> tuple[Array, Array]:
    """Return whole numbers and the step of each column (axis 0) or row (axis 1)."""
    largest = np.abs(values).max(axis=axis)
    scales = np.where(largest > 0, largest / levels, 1.0).astype(np.float32)
    wide = scales if axis == 0 else scales[:, None]
    whole = np.clip(np.rint(values / wide), -levels, levels).astype(np.int8)
    return whole, scales
