"""Whether a SavedModel only computes, read from its file before anything of it is loaded.

A SavedModel is a program: loading one restores variables and runs its initialiser, and a call runs whatever operations
it has, `WriteFile` among them. The operations that bundles of this library need are few and pure.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import message
from tensorflow.core.protobuf import saved_model_pb2

from tfstruct.serving.contents import GRAPH_NAME, DamagedBundleError, UntrustedBundleError, require_known_files

#: operations that read nothing but their inputs and the model's variables, and write nothing
ALLOWED_OPS = frozenset(
    """
    Abs Acos Acosh Add AddN AddV2 All Any ArgMax ArgMin Asin Asinh Assert Atan Atan2 Atanh AvgPool AvgPoolGrad
    BatchMatMul BatchMatMulV2 BatchMatMulV3 Betainc BiasAdd BiasAddGrad BitwiseAnd BitwiseOr BitwiseXor
    BroadcastArgs BroadcastGradientArgs BroadcastTo Bucketize Case Cast Ceil CheckNumerics Cholesky CholeskyGrad
    ClipByValue Complex ConcatOffset ConcatV2 Const Conv2D Conv2DBackpropFilter Conv2DBackpropInput Conv3D Cos Cosh
    Cumprod Cumsum CumulativeLogsumexp DecodeImage DecodeJpeg DecodePng DepthToSpace DepthwiseConv2dNative Diag
    DiagPart Digamma Div DivNoNan DynamicPartition DynamicStitch Einsum Elu EluGrad EnsureShape Equal Erf Erfc
    Erfinv Exp ExpandDims Expm1 Fill Floor FloorDiv FloorMod FusedBatchNormV3 Gather GatherNd GatherV2 Greater
    GreaterEqual Identity IdentityN If Igamma Igammac Inv InvertPermutation IsFinite IsInf IsNan L2Loss LeakyRelu
    LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogMatrixDeterminant LogSoftmax LogicalAnd LogicalNot
    LogicalOr LowerBound MatMul MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPartV3 MatrixDiagV3 MatrixInverse
    MatrixSetDiagV3 MatrixSolve MatrixTriangularSolve Max MaxPool Maximum Mean Min Minimum MirrorPad Mod Mul
    MulNoNan Ndtri Neg NextAfter NoOp NotEqual OneHot OnesLike Pack Pad PadV2 ParallelDynamicStitch PartitionedCall
    Placeholder PlaceholderWithDefault Polygamma Pow PreventGradient Prod Qr Range Rank ReadVariableOp RealDiv
    Reciprocal Relu Relu6 ReluGrad Reshape ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ReverseV2
    RightShift Rint Roll Round Rsqrt RsqrtGrad ScatterNd SegmentSum Select SelectV2 Selu Shape ShapeN Sigmoid
    SigmoidGrad Sign Sin Sinh Size Slice Softmax Softplus SoftplusGrad Softsign SpaceToDepth Split SplitV Sqrt
    SqrtGrad Square SquaredDifference Squeeze StatefulPartitionedCall StatelessCase StatelessIf
    StatelessRandomNormalV2 StatelessRandomUniformFullIntV2 StatelessRandomUniformIntV2 StatelessRandomUniformV2
    StatelessWhile StopGradient StridedSlice StridedSliceGrad Sub Sum Svd Tan Tanh TanhGrad TensorListConcatV2
    TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
    TensorListPopBack TensorListPushBack TensorListReserve TensorListResize TensorListSetItem TensorListStack
    TensorScatterUpdate Tile TopKV2 Transpose TridiagonalSolve TruncateDiv TruncateMod Unique UniqueV2 Unpack
    UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentSum UpperBound VarHandleOp Where While Xdivy Xlog1py Xlogy
    ZerosLike Zeta
    """.split()
)
#: what the functions that save and restore variables have beside them; a server restores at loading, and never saves
_SAVE_OPS = frozenset(
    "DisableCopyOnRead MergeV2Checkpoints SaveV2 ShardedFilename StaticRegexFullMatch StringJoin".split()
)
_RESTORE_OPS = frozenset(("AssignVariableOp", "RestoreV2"))
_OBJECTS = {"user_object", "bare_concrete_function", "function", "variable", "constant", "captured_tensor"}
_USER_OBJECTS = {
    "_generic_user_object", "signature_map", "trackable_list_wrapper", "trackable_dict_wrapper",
    "trackable_tuple_wrapper",
}  # fmt: skip
_COMPILED = ("_XlaMustCompile", "_XlaCompile")


def check(folder: Path, card: dict[str, Any]) -> None:
    """Checks, without loading it, that a bundle's graph computes and does nothing else, and has the card's signatures.

    It says nothing of how much is computed: a graph may still take all memory, or never end.

    Args:
        folder: the bundle.
        card: its card.

    Raises:
        DamagedBundleError: a graph that cannot be parsed, or other signatures than the card's.
        UntrustedBundleError: files that are none of a bundle's, or a graph with something that no bundle has.
    """
    require_known_files(folder)
    path = folder / GRAPH_NAME
    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
        (meta,) = model.meta_graphs
    except (OSError, message.DecodeError, ValueError) as error:
        raise DamagedBundleError(f"{path} is no SavedModel with one graph: {error}") from error
    for what in _forbidden(meta):
        raise UntrustedBundleError(
            f"{path}: {what}, which no bundle of tfstruct has. A SavedModel is a program: load it with "
            "allow_untrusted=True only if you would also run a program of whoever made it"
        )
    _check_signatures(path, meta, card.get("signatures", {}))


def _forbidden(meta: Any) -> Iterator[str]:
    """Yields what a graph has that no bundle needs."""
    functions = {function.signature.name: function for function in meta.graph_def.library.function}
    savers = _saver_functions(meta, functions)
    yield from _forbidden_nodes("the graph", meta.graph_def.node, ALLOWED_OPS, functions, ())
    for name, function in functions.items():
        allowed = ALLOWED_OPS | savers.get(name, frozenset())
        # A saver that something else calls would write where that likes.
        yield from _forbidden_nodes(f"function {name}", function.node_def, allowed, functions, savers)
        first = [argument.name for argument in function.signature.input_arg[:1]]
        for node in function.node_def:
            if node.op == "RestoreV2" and node.input[0] not in first:
                yield f"function {name} restores from a place of its own choice"
        yield from (f"function {name} is compiled by XLA" for key in _COMPILED if function.attr[key].b)
    called = [name for node in meta.graph_def.node for name in _called(node)]
    yield from _uses_of_savers(meta)
    yield from (
        f"function {name} saves or restores in more than one place" for name in savers if called.count(name) > 1
    )
    for node in meta.object_graph_def.nodes:
        kind = node.WhichOneof("kind")
        if kind not in _OBJECTS or node.registered_name or node.registered_saver:
            yield f"an object of kind {node.registered_name or kind}"
        elif kind == "user_object" and node.user_object.identifier not in _USER_OBJECTS:
            yield f"an object of type {node.user_object.identifier}"
        elif kind == "function" or kind == "bare_concrete_function":
            names = (
                node.function.concrete_functions
                if kind == "function"
                else [node.bare_concrete_function.concrete_function_name]
            )
            yield from (f"function {name}, which saves or restores, can be called" for name in names if name in savers)
    if meta.asset_file_def:
        yield f"the asset {meta.asset_file_def[0].filename}"


def _forbidden_nodes(
    place: str, nodes: Iterable, allowed: frozenset[str], functions: dict[str, Any], savers: Iterable[str]
) -> Iterator[str]:
    for node in nodes:
        if node.op not in allowed:
            yield f"{place} has the operation {node.op}"
        yield from (f"{place} is compiled by XLA" for key in _COMPILED if key in node.attr and node.attr[key].b)
        for name in _called(node):
            if name not in functions:
                yield f"{place} calls {name}, which is not there"
            if name in savers:
                yield f"{place} calls {name}, which saves or restores"


def _called(node: Any) -> list[str]:
    """Names of the functions that a node calls."""
    found = []
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            found.append(attribute.func.name)
        found += [function.name for function in attribute.list.func]
    return found


def _saver_nodes(meta: Any) -> dict[str, frozenset[str]]:
    """The two nodes that save and restore, as a server finds them, with what else their functions may have."""
    places = ((meta.saver_def.save_tensor_name, _SAVE_OPS), (meta.saver_def.restore_op_name, _RESTORE_OPS))
    return {name.partition(":")[0]: allowed for name, allowed in places}


def _saver_functions(meta: Any, functions: dict[str, Any]) -> dict[str, frozenset[str]]:
    """The functions that those nodes call."""
    nodes = _saver_nodes(meta)
    found: dict[str, frozenset[str]] = {}
    for node in meta.graph_def.node:
        for name in _called(node) if node.name in nodes else ():
            if name in functions:  # one that both call may have what both may
                found[name] = found.get(name, nodes[node.name]) & nodes[node.name]
    return found


def _uses_of_savers(meta: Any) -> Iterator[str]:
    """Yields the signatures and nodes by which a client could make the graph save or restore, or choose where."""
    ends = _saver_nodes(meta)
    place = meta.saver_def.filename_tensor_name.partition(":")[0]  # which the loader feeds
    for node in meta.graph_def.node:
        if node.name == place and node.op != "Placeholder":
            yield f"the graph chooses itself, by {node.op}, where it saves and restores"
        if node.name in ends and _called(node) and [part.partition(":")[0] for part in node.input[:1]] != [place]:
            yield f"the node {node.name} saves or restores at a place of its own choice"
    for name, signature in meta.signature_def.items():
        if any(info.name.partition(":")[0] in ends for info in signature.outputs.values()):
            yield f"the signature {name} saves or restores"
    for node in meta.graph_def.node:
        if node.name not in ends and any(part.lstrip("^").partition(":")[0] in ends for part in node.input):
            yield f"the node {node.name} of the graph saves or restores"


def _check_signatures(path: Path, meta: Any, signatures: dict[str, Any]) -> None:
    """Raises DamagedBundleError unless a graph has the signatures of a card: names, types and shapes."""
    found = signature_specs(meta.signature_def)
    if found != signatures:
        different = sorted(name for name in {*found, *signatures} if found.get(name) != signatures.get(name))
        raise DamagedBundleError(f"{path} has other signatures than the card: {', '.join(different)}")


def signature_specs(definitions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns inputs and outputs of SignatureDefs by name, as a card has them, but of TensorFlow's own."""
    return {
        name: {
            side: {key: _spec(info) for key, info in getattr(signature, side).items()} for side in ("inputs", "outputs")
        }
        for name, signature in definitions.items()
        if name != "__saved_model_init_op"
    }


def _spec(info: Any) -> dict[str, Any]:
    return {"dtype": tf.as_dtype(info.dtype).name, "shape": [axis.size for axis in info.tensor_shape.dim]}
