"""What MXNet 1.9.1's memory planner asks of each operator.

The planner (src/nnvm/plan_memory.cc) reads three attributes that operators register:
``FInplaceOption`` (which output may take over which input's storage, in the order to try),
``FInplaceIdentity`` (whether the operator then has nothing to compute, which also allows sharing
while the input is still needed) and ``FIgnoreInputs`` (inputs that are there for their shape only).
The pass that merges equal nodes (src/executor/eliminate_common_expr_pass.cc) reads
``FMutateInputs``, ``FCreateOpState``, ``THasDeterministicOutput``, ``FResourceRequest`` and
``FResourceRequestEx``.  This module is a table of those answers, taken from the registrations in
the sources of the 1.9.1 tag (src/operator, src/nnvm/legacy_op_util.cc, src/imperative) and compared
with the operator registry of the 1.9.1 CPU wheel, which has 886 operators.

Names are canonical: a node loaded from a file that says ``identity``, ``split`` or ``flatten`` has
the operator ``_copy``, ``SliceChannel`` or ``Flatten``.  An alias finds nothing here.

Builds: oneDNN (MXNET_USE_MKLDNN) is on, TVM operators, TensorRT and intgemm are off, as in the
wheels.  What differs where CUDA and cuDNN are on is marked with ``cuda``.

Legacy operators: those registered with MXNET_REGISTER_OP_PROPERTY get their answers through
src/nnvm/legacy_op_util.cc, which asks the operator property.  It numbers the forward inputs in a
loop whose index is the element being assigned, so for an operator with n inputs the first one gets
the number n - 1 and the others 0.  A backward pair meant for the gradient of input 0 therefore
names output n - 1.  The table holds what MXNet answers, not what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

InplacePair = tuple[int, int, bool]
InplacePairs = tuple[InplacePair, ...]

# Recurring answers: (input, output, identity).
_FIRST: InplacePairs = ((0, 0, False),)
_FIRST_IDENTITY: InplacePairs = ((0, 0, True),)
_SECOND: InplacePairs = ((1, 0, False),)
_THIRD: InplacePairs = ((2, 0, False),)
_EITHER: InplacePairs = ((0, 0, False), (1, 0, False))
_INTO_BOTH: InplacePairs = ((0, 0, False), (0, 1, False))
_INTO_SECOND: InplacePairs = ((0, 1, False),)


def _words(*texts: str) -> tuple[str, ...]:
    return tuple(word for text in texts for word in text.split())


def _table(*rows: tuple[InplacePairs, str]) -> dict[str, InplacePairs]:
    return {name: pairs for pairs, names in rows for name in names.split()}


# --- FInplaceOption and FInplaceIdentity that do not depend on the node's attributes ---

# src/operator: outputs, losses and legacy (OperatorProperty) layers.
_OPERATOR = _table(
    (
        _FIRST,
        """
        IdentityAttachKLSparseReg LeakyReLU LinearRegressionOutput LogisticRegressionOutput
        MAERegressionOutput MakeLoss SVMOutput SequenceMask SoftmaxOutput
        _backward_IdentityAttachKLSparseReg _backward_L2Normalization _backward_LeakyReLU
        _backward_SoftmaxOutput
        """,
    ),
    (
        _SECOND,
        """
        _backward_linear_reg_out _backward_logistic_reg_out _backward_mae_reg_out
        """,
    ),
    (
        # The gradient of the label, not of the data: see "Legacy operators" in the docstring.
        ((1, 1, False),),
        """
        _backward_SVMOutput
        """,
    ),
)

# src/operator/nn.
_NN = _table(
    (
        _FIRST,
        """
        Activation Dropout GroupNorm LayerNorm SoftmaxActivation log_softmax moments softmax
        softmin
        _backward_Activation _backward_Dropout _backward_SoftmaxActivation
        """,
    ),
    (
        # The gradient of the data may overwrite the data itself.
        _SECOND,
        """
        _backward_FullyConnected
        """,
    ),
)

# src/operator/tensor.
_TENSOR = _table(
    (
        _FIRST,
        """
        _div_scalar _equal_scalar _greater_equal_scalar _greater_scalar _hypot_scalar
        _lesser_equal_scalar _lesser_scalar _linalg_gelqf _linalg_inverse _linalg_potrf
        _linalg_potri _linalg_syevd _logical_and_scalar _logical_or_scalar _logical_xor_scalar
        _maximum_scalar _minimum_scalar _minus_scalar _mod_scalar _mul_scalar _not_equal_scalar
        _plus_scalar _power_scalar _rdiv_scalar _rminus_scalar _rmod_scalar _rpower_scalar
        _scatter_minus_scalar _scatter_plus_scalar _slice_assign _slice_assign_scalar abs add_n
        arccos arccosh arcsin arcsinh arctan arctanh cbrt ceil cos cosh degrees erf erfinv exp
        expm1 fix floor gamma gammaln hard_sigmoid log log10 log1p log2 logical_not negative
        radians rcbrt reciprocal relu rint round rsqrt sigmoid sign sin sinh smooth_l1 softsign
        sqrt square tan tanh trunc
        _backward_div_scalar _backward_linalg_gelqf _backward_linalg_inverse
        _backward_linalg_potrf _backward_linalg_syevd _backward_mul_scalar
        """,
    ),
    (
        _FIRST_IDENTITY,
        """
        BlockGrad Cast Flatten Reshape _copy _identity_with_attr_like_rhs _scatter_set_nd amp_cast
        expand_dims make_loss reshape_like
        _backward_amp_cast _backward_cast _backward_copy _backward_hard_sigmoid _backward_reshape
        """,
    ),
    (
        _SECOND,
        """
        _linalg_trmm _linalg_trsm
        _backward_linalg_sumlogdiag
        """,
    ),
    (
        _THIRD,
        """
        _linalg_gemm
        """,
    ),
    (
        _EITHER,
        """
        _equal _grad_add _greater _greater_equal _hypot _lesser _lesser_equal _logical_and
        _logical_or _logical_xor _maximum _minimum _mod _not_equal _power _scatter_elemwise_div
        broadcast_add broadcast_div broadcast_equal broadcast_greater broadcast_greater_equal
        broadcast_hypot broadcast_lesser broadcast_lesser_equal broadcast_logical_and
        broadcast_logical_or broadcast_logical_xor broadcast_maximum broadcast_minimum
        broadcast_mod broadcast_mul broadcast_not_equal broadcast_power broadcast_sub elemwise_add
        elemwise_div elemwise_mul elemwise_sub
        _backward_abs _backward_arccos _backward_arccosh _backward_arcsin _backward_arcsinh
        _backward_arctan _backward_arctanh _backward_cbrt _backward_cos _backward_cosh
        _backward_degrees _backward_erf _backward_erfinv _backward_expm1 _backward_gamma
        _backward_gammaln _backward_hypot_scalar _backward_log _backward_log10 _backward_log1p
        _backward_log2 _backward_maximum_scalar _backward_minimum_scalar _backward_mod_scalar
        _backward_power_scalar _backward_radians _backward_rcbrt _backward_rdiv_scalar
        _backward_reciprocal _backward_relu _backward_rmod_scalar _backward_rpower_scalar
        _backward_rsqrt _backward_sigmoid _backward_sign _backward_sin _backward_sinh
        _backward_smooth_l1 _backward_softsign _backward_sqrt _backward_square _backward_tan
        _backward_tanh
        """,
    ),
    (
        _INTO_BOTH,
        """
        _backward_add _backward_broadcast_add _backward_broadcast_sub _backward_sub
        """,
    ),
    (
        _INTO_SECOND,
        """
        _backward_broadcast_div _backward_broadcast_hypot _backward_broadcast_maximum
        _backward_broadcast_minimum _backward_broadcast_mod _backward_broadcast_mul
        _backward_broadcast_power _backward_div _backward_hypot _backward_linalg_trmm
        _backward_maximum _backward_minimum _backward_mod _backward_mul _backward_power
        """,
    ),
    (
        ((0, 1, False), (1, 0, False)),
        """
        _backward_linalg_trsm
        """,
    ),
    (
        ((2, 1, False),),
        """
        _backward_linalg_gemm2
        """,
    ),
    (
        ((2, 1, False), (3, 2, False)),
        """
        _backward_linalg_gemm
        """,
    ),
)

# src/operator/contrib.
_CONTRIB = _table(
    (
        _FIRST,
        """
        _contrib_div_sqrt_dim _contrib_quadratic _contrib_round_ste _contrib_sign_ste
        _contrib_backward_gradientmultiplier
        """,
    ),
    (
        _FIRST_IDENTITY,
        """
        _contrib_gradientmultiplier
        """,
    ),
    (
        _SECOND,
        """
        _backward__contrib_fft _backward__contrib_ifft
        """,
    ),
    (
        # Output 2, not 0: see "Legacy operators" in the docstring.
        ((1, 2, False),),
        """
        _backward__contrib_count_sketch
        """,
    ),
)

# src/operator/numpy.
_NUMPY = _table(
    (
        _FIRST,
        """
        _np_cumsum _npi_absolute _npi_arccos _npi_arccosh _npi_arcsin _npi_arcsinh _npi_arctan
        _npi_arctan2 _npi_arctanh _npi_around _npi_bitwise_and_scalar _npi_bitwise_or_scalar
        _npi_bitwise_xor_scalar _npi_boolean_mask_assign_scalar _npi_boolean_mask_assign_tensor
        _npi_cbrt _npi_ceil _npi_cholesky _npi_cos _npi_cosh _npi_degrees _npi_diff _npi_ediff1d
        _npi_equal_scalar _npi_exp _npi_expm1 _npi_fix _npi_floor _npi_greater_equal_scalar
        _npi_greater_scalar _npi_isfinite _npi_isinf _npi_isnan _npi_isneginf _npi_isposinf
        _npi_lcm_scalar _npi_less_equal_scalar _npi_less_scalar _npi_log _npi_log10 _npi_log1p
        _npi_log2 _npi_logical_not _npi_nan_to_num _npi_negative _npi_not_equal_scalar
        _npi_radians _npi_reciprocal _npi_rint _npi_rtrue_divide_scalar _npi_sign _npi_sin
        _npi_sinh _npi_sqrt _npi_square _npi_tan _npi_tanh _npi_tril _npi_true_divide_scalar
        _npi_trunc _npx_relu _npx_sigmoid
        """,
    ),
    (
        _FIRST_IDENTITY,
        """
        _np_copy _np_reshape _npx_reshape
        """,
    ),
    (
        _SECOND,
        """
        _npi_where_lscalar _npi_where_rscalar
        """,
    ),
    (
        _THIRD,
        """
        _backward_npi_svd
        """,
    ),
    (
        _EITHER,
        """
        _npi_add _npi_bitwise_and _npi_bitwise_or _npi_bitwise_xor _npi_copysign _npi_equal
        _npi_greater _npi_greater_equal _npi_hypot _npi_lcm _npi_ldexp _npi_less _npi_less_equal
        _npi_mod _npi_multiply _npi_not_equal _npi_power _npi_subtract _npi_true_divide
        _backward_npi_arctan2_scalar _backward_npi_ldexp_scalar _backward_npi_rarctan2_scalar
        _backward_npi_rldexp_scalar
        """,
    ),
    (
        _INTO_BOTH,
        """
        _backward_npi_broadcast_add _backward_npi_broadcast_sub
        """,
    ),
    (
        _INTO_SECOND,
        """
        _backward_npi_broadcast_div _backward_npi_broadcast_mod _backward_npi_broadcast_mul
        _backward_npi_broadcast_power _backward_npi_copysign _backward_npi_hypot
        _backward_npi_ldexp
        """,
    ),
    (
        ((0, 2, False),),
        """
        _npi_svd
        """,
    ),
    (
        ((1, 0, False), (2, 0, False)),
        """
        _npi_where
        """,
    ),
)

# src/operator/image.
_IMAGE = _table(
    (
        _FIRST,
        """
        _image_adjust_lighting _image_flip_left_right _image_flip_top_bottom _image_normalize
        _image_random_brightness _image_random_color_jitter _image_random_contrast
        _image_random_flip_left_right _image_random_flip_top_bottom _image_random_hue
        _image_random_lighting _image_random_saturation
        """,
    ),
)

# src/operator/quantization.
_QUANTIZATION = _table(
    (
        _FIRST_IDENTITY,
        """
        _contrib_quantize_v2
        """,
    ),
    (
        ((0, 0, False), (1, 1, False), (2, 2, False)),
        """
        _contrib_quantized_flatten
        """,
    ),
)

# src/operator/random.
_RANDOM = _table(
    (
        _FIRST,
        """
        _shuffle
        """,
    ),
    (
        ((1, 0, False), (2, 1, False)),
        """
        _backward_pdf_dirichlet _backward_pdf_exponential _backward_pdf_poisson
        """,
    ),
    (
        ((1, 0, False), (2, 1, False), (3, 2, False)),
        """
        _backward_pdf_gamma _backward_pdf_generalized_negative_binomial
        _backward_pdf_negative_binomial _backward_pdf_normal _backward_pdf_uniform
        """,
    ),
)


_FIXED: dict[str, InplacePairs] = {
    **_OPERATOR,
    **_NN,
    **_TENSOR,
    **_CONTRIB,
    **_NUMPY,
    **_IMAGE,
    **_QUANTIZATION,
    **_RANDOM,
}


# --- FInplaceOption that depends on the node's attributes, its size or the build ---

_SOFTMAX_GRADIENTS = frozenset({"_backward_softmax", "_backward_log_softmax", "_backward_softmin"})
_MULTICAST = frozenset({"amp_multicast", "_backward_amp_multicast"})
_DEPENDENT = frozenset(
    {
        *_SOFTMAX_GRADIENTS,
        *_MULTICAST,
        "_backward_Pooling",
        "_backward_Pooling_v1",
        "_backward_SequenceMask",
        "_sg_mkldnn_conv",
        "_FusedOp",
    }
)


def _is_true(attrs: Mapping[str, str], key: str) -> bool:
    return attrs.get(key, "").strip().lower() in ("true", "1")


def _is_set(attrs: Mapping[str, str], key: str) -> bool:
    return attrs.get(key, "None").strip() not in ("", "None")


def _number(attrs: Mapping[str, str], key: str, default: float) -> float:
    try:
        return float(attrs.get(key, default))
    except ValueError:
        return default


def _softmax_gradient(attrs: Mapping[str, str]) -> InplacePairs:
    # Inputs: output gradient, [data], [length], output; the optional ones with a dtype or lengths.
    if _is_true(attrs, "use_length"):
        return ((0, 0, False), (1, 0, False), (2, 1, False), (3, 0, False))
    if _is_set(attrs, "dtype"):
        return ((0, 0, False), (1, 0, False), (2, 0, False))
    return _EITHER


def _pooling_gradient(attrs: Mapping[str, str]) -> InplacePairs:
    # Only where oneDNN keeps a workspace: input 1 is then the workspace's (absent) gradient.
    dimensions = len(re.findall(r"\d+", attrs.get("kernel", "")))
    layout = attrs.get("layout", "None").strip()
    if (
        attrs.get("pool_type", "max").strip() == "max"
        and 1 <= dimensions <= 3
        and layout in ("None", "NCW", "NCHW", "NCDHW")
    ):
        return _SECOND
    return ()


def _fused_convolution(attrs: Mapping[str, str], n_inputs: int) -> InplacePairs:
    # The summand, which is the last input but for the ranges a quantized node has: of the data and
    # of the summand, two numbers each.
    if not _is_true(attrs, "with_sum"):
        return ()
    return ((n_inputs - (5 if _is_true(attrs, "quantized") else 1), 0, False),)


def _dependent_pairs(
    op: str, attrs: Mapping[str, str], n_inputs: int, n_outputs: int, cuda: bool
) -> InplacePairs:
    if op in _SOFTMAX_GRADIENTS:
        return _softmax_gradient(attrs)
    if op in _MULTICAST:
        count = int(_number(attrs, "num_outputs", n_outputs))
        return tuple((index, index, True) for index in range(count))
    if op == "_backward_Pooling":
        return _pooling_gradient(attrs)
    if op == "_backward_Pooling_v1":
        return () if cuda else _SECOND
    if op == "_backward_SequenceMask":
        # Output 1 where there are two inputs: see "Legacy operators" in the docstring.
        return _INTO_SECOND if _is_true(attrs, "use_sequence_length") else _FIRST
    if op == "_sg_mkldnn_conv":
        return _fused_convolution(attrs, n_inputs)
    if op == "_FusedOp":
        # Pointwise fusion, which only CUDA builds have: any output over any input.
        return tuple((i, o, False) for i in range(n_inputs) for o in range(n_outputs))
    return ()


def inplace_pairs(
    op: str,
    attrs: Mapping[str, str],
    n_inputs: int,
    n_outputs: int,
    *,
    cuda: bool = False,
) -> Sequence[InplacePair]:
    """The pairs of an input and an output that may share a block, in the order MXNet tries them.

    Pairs that name an input or output the node does not have are left out; MXNet would read the
    next node's. Only a gradient of ``log_softmax`` or ``softmin`` that claims ``use_length`` has
    one, and their forward operators do not support it.

    Args:
        op: the operator's name.
        attrs: its attributes, as the file spells them.
        n_inputs: how many tensors the node reads.
        n_outputs: how many it makes.
        cuda: as in MXNet built for CUDA.

    Returns:
        Of each pair the input's number, the output's, and whether nothing needs to be computed; ()
        where none is registered.
    """
    pairs = _FIXED.get(op)
    if pairs is None:
        pairs = _dependent_pairs(op, attrs, n_inputs, n_outputs, cuda)
    if all(i < n_inputs and o < n_outputs for i, o, _ in pairs):
        return pairs
    return tuple(pair for pair in pairs if pair[0] < n_inputs and pair[1] < n_outputs)


# --- FIgnoreInputs ---

_IGNORED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("_identity_with_attr_like_rhs", "reshape_like"), (1,)),
    **dict.fromkeys(
        _words(
            """
            zeros_like ones_like _npi_full_like _contrib_arange_like
            _random_exponential_like _random_gamma_like _random_generalized_negative_binomial_like
            _random_negative_binomial_like _random_normal_like _random_poisson_like
            _random_uniform_like
            """
        ),
        (0,),
    ),
}


def ignored_inputs(op: str, attrs: Mapping[str, str], n_inputs: int) -> Sequence[int]:
    """The inputs that an operator reads for their shape alone (``FIgnoreInputs``).

    No operator's answer depends on its attributes.

    Args:
        op: the operator's name.
        attrs: its attributes.
        n_inputs: how many tensors the node reads.

    Returns:
        Numbers of inputs; () where none is registered.
    """
    return _IGNORED.get(op, ())


# --- Random draws ---

# Registered with kRandom or kParallelRandom among the requested resources (not kTempSpace).
_ALWAYS_RANDOM = _words(
    # src/operator/random, and src/operator/numpy/random
    """
    _random_exponential _random_gamma _random_generalized_negative_binomial
    _random_negative_binomial _random_normal _random_poisson _random_randint _random_uniform
    _random_exponential_like _random_gamma_like _random_generalized_negative_binomial_like
    _random_negative_binomial_like _random_normal_like _random_poisson_like _random_uniform_like
    _sample_exponential _sample_gamma _sample_generalized_negative_binomial _sample_multinomial
    _sample_negative_binomial _sample_normal _sample_poisson _sample_uniform
    _sample_unique_zipfian _shuffle
    _npi_bernoulli _npi_choice _npi_exponential _npi_gamma _npi_gumbel _npi_logistic
    _npi_multinomial _npi_normal _npi_normal_n _npi_pareto _npi_powerd _npi_rayleigh _npi_uniform
    _npi_uniform_n _npi_weibull
    """,
    # src/operator/image and src/operator/contrib
    """
    _image_random_brightness _image_random_color_jitter _image_random_contrast
    _image_random_flip_left_right _image_random_flip_top_bottom _image_random_hue
    _image_random_lighting _image_random_saturation
    _contrib_dgl_csr_neighbor_non_uniform_sample _contrib_dgl_csr_neighbor_uniform_sample
    """,
)

# Operators whose forward may draw random numbers.  Dropout and RNN ask through FResourceRequestEx;
# LeakyReLU draws for 'rrelu' without registering any request.
RANDOM_OPERATORS: frozenset[str] = frozenset({*_ALWAYS_RANDOM, "Dropout", "LeakyReLU", "RNN"})

# Operators whose forward runs a subgraph or a user's code, and may draw or keep state in ways that
# neither their name nor their attributes tell.
OPAQUE_OPERATORS: frozenset[str] = frozenset(
    {
        "Custom",
        "_CachedOp",
        "_CachedOpThreadSafe",
        "_CustomFunction",
        "_NDArray",
        "_Native",
        "_cond",
        "_foreach",
        "_while_loop",
    }
)


def draws_random(op: str, attrs: Mapping[str, str]) -> bool:
    """Whether a forward node draws random numbers when it runs for training.

    Args:
        op: the operator's name.
        attrs: its attributes, as the file spells them.
    """
    if op == "RNN":
        return _number(attrs, "p", 0.0) > 0
    if op == "LeakyReLU":
        return attrs.get("act_type", "leaky").strip() == "rrelu"
    return op in RANDOM_OPERATORS


# --- Inputs that are written ---

# Optimizer steps: their state (momenta, means, full-precision weights) moves with every run.
_OPTIMIZERS = _words(
    """
    adam_update ftml_update ftrl_update lamb_update_phase1 mp_lamb_update_phase1
    mp_lamb_update_phase2 mp_nag_mom_update mp_sgd_mom_update mp_sgd_update
    multi_mp_sgd_mom_update multi_mp_sgd_update multi_sgd_mom_update nag_mom_update
    preloaded_multi_mp_sgd_mom_update preloaded_multi_mp_sgd_update
    preloaded_multi_sgd_mom_update rmsprop_update rmspropalex_update sgd_mom_update signum_update
    _adamw_update _contrib_group_adagrad_update _mp_adamw_update _multi_adamw_update
    _multi_lamb_update _multi_mp_adamw_update _multi_mp_lamb_update _sparse_adagrad_update
    """
)

# Forward operators whose FMutateInputs can name an input.  Every legacy operator registers
# FMutateInputs too, but answers with nothing unless it has auxiliary states.
MUTATING_OPERATORS: frozenset[str] = frozenset(
    {
        *_OPTIMIZERS,
        "BatchNorm",
        "BatchNorm_v1",
        "CuDNNBatchNorm",  # CUDA builds only
        "Custom",
        "IdentityAttachKLSparseReg",
        "_CachedOp",
        "_CachedOpThreadSafe",
        "_contrib_BatchNormWithReLU",
        "_contrib_SyncBatchNorm",
        "_contrib_quantized_batch_norm",
        "_sg_mkldnn_conv",
        "_sg_mkldnn_fully_connected",
        "reset_arrays",
    }
)

# Those whose forward moves the state, so that running it twice is not running it once.  The batch
# normalizations and IdentityAttachKLSparseReg move theirs in backward (on the CPU, under oneDNN and
# in MXNet's own CUDA kernels); the quantized and fused ones only read; reset_arrays writes zeros.
# _contrib_SyncBatchNorm's forward keeps no state, but meets the other devices at a barrier.
# cuDNN moves the averages of BatchNorm in its forward kernel, but with MXNET_BACKWARD_DO_MIRROR=1 a
# second forward in a row leaves them alone.
STATE_IN_FORWARD: frozenset[str] = frozenset(
    {*_OPTIMIZERS, "Custom", "_CachedOp", "_CachedOpThreadSafe"}
)


# --- Merging equal nodes ---

# MXNET_REGISTER_OP_PROPERTY: the forward registers FMutateInputs and FCreateOpState, the backward
# (_backward_ and the name) FMutateInputs, so neither is ever merged.
_LEGACY = _words(
    """
    BatchNorm_v1 BilinearSampler Convolution_v1 Correlation Crop GridGenerator
    IdentityAttachKLSparseReg InstanceNorm L2Normalization MakeLoss Pad Pooling_v1 ROIPooling
    SVMOutput SequenceLast SequenceMask SequenceReverse SliceChannel SpatialTransformer SwapAxis
    _CrossDeviceCopy _NDArray _Native _contrib_DeformableConvolution
    _contrib_DeformablePSROIPooling _contrib_ModulatedDeformableConvolution
    _contrib_MultiBoxDetection _contrib_MultiBoxPrior _contrib_MultiBoxTarget
    _contrib_MultiProposal _contrib_PSROIPooling _contrib_Proposal _contrib_SyncBatchNorm
    _contrib_count_sketch _contrib_fft _contrib_ifft
    """
)

_LEGACY_OPERATORS = frozenset({*_LEGACY, *(f"_backward_{name}" for name in _LEGACY)})

# FCreateOpState, other than legacy operators.
_STATEFUL = _words(
    """
    Custom Dropout RNN _CachedOp _CachedOpThreadSafe _CustomFunction _cond _foreach _while_loop
    _contrib_dequantize _contrib_quantize_asym _contrib_quantize_v2 _contrib_quantized_rnn
    _npi_einsum _sg_mkldnn_conv _sg_mkldnn_fully_connected _sg_mkldnn_selfatt_qk
    _sg_mkldnn_selfatt_valatt
    """
)

# Wherever THasDeterministicOutput is registered it says true, and none of those operators asks for
# more than kTempSpace, so the override never changes the outcome.
_NEVER_MERGED = frozenset(
    {
        *_LEGACY_OPERATORS,
        *_STATEFUL,
        *_ALWAYS_RANDOM,
        *MUTATING_OPERATORS,
        "_backward_BatchNorm",  # FMutateInputs
        "_backward_CuDNNBatchNorm",  # FMutateInputs; CUDA builds only
        "_backward_RNN",  # FResourceRequestEx
    }
)
