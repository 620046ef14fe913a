"""Checks the graphs of a model package with ONNX's own checker, full shape inference included, and describes them.

    python check_onnx.py models/tiny

Prints one JSON object, a member for each .onnx file of the folder. A graph that does not pass is an exit with 1.
"""

import json
import pathlib
import sys

import onnx
from onnx import TensorProto, shape_inference


def dims(value):
    return [d.dim_param if d.HasField("dim_param") else d.dim_value for d in value.type.tensor_type.shape.dim]


def port(value):
    return [TensorProto.DataType.Name(value.type.tensor_type.elem_type), dims(value)]


def location(tensor):
    """The file that holds the tensor; null where the graph itself does."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    return {entry.key: entry.value for entry in tensor.external_data}["location"]


def nodes_of(graph):
    """The nodes of a graph and of those within them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def describe(path):
    # By its path, so that the external data is looked for and measured too.
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path))  # reads the external data: a tensor that lies beyond the file's end is an error
    bare = onnx.load(str(path), load_external_data=False)
    inferred = shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    shapes = {value.name: dims(value) for value in inferred.graph.value_info}
    nodes = [node.name for node in nodes_of(bare.graph)]
    assert all(nodes) and len(set(nodes)) == len(nodes), "a node without a name of its own"
    assert all(opset.domain in ("", "ai.onnx") for opset in bare.opset_import), bare.opset_import
    softmax = [node for node in nodes_of(bare.graph) if node.op_type == "Softmax"]
    return {
        "opset": bare.opset_import[0].version,
        "ports": {value.name: port(value) for value in [*bare.graph.input, *bare.graph.output]},
        "nodes": {node.name: node.op_type for node in nodes_of(bare.graph)},
        "initializers": {tensor.name: list(tensor.dims) for tensor in model.graph.initializer},
        "external": {tensor.name: location(tensor) for tensor in bare.graph.initializer},
        "scores": {node.name: shapes[node.output[0]][-2:] for node in softmax},
    }


def main(folder):
    files = sorted(pathlib.Path(folder).glob("*.onnx"))
    print(json.dumps({file.name: describe(file) for file in files}))


if __name__ == "__main__":
    main(sys.argv[1])
