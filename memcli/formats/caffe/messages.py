"""Caffe's messages as far as net definitions have them: names, types, numbers and defaults.

A field is ``name type number default``; ``*`` after the type: repeated; types that are not
protobuf's are messages or enumerations of the table. Names, numbers and defaults are those of
BVLC Caffe's ``caffe.proto``. What well-known forks added under numbers that contradict each other
has numbers from 10000 on here, which text files do not show.
"""

from __future__ import annotations

ENUMS: dict[str, str] = {
    "Phase": "TRAIN=0 TEST=1",
    "VarianceNorm": "FAN_IN=0 FAN_OUT=1 AVERAGE=2",
    "DimCheckMode": "STRICT=0 PERMISSIVE=1",
    "NormalizationMode": "FULL=0 VALID=1 BATCH_SIZE=2 NONE=3",
    "Engine": "DEFAULT=0 CAFFE=1 CUDNN=2 MKLDNN=3 MKL2017=4",
    "DB": "LEVELDB=0 LMDB=1",
    "EltwiseOp": "PROD=0 SUM=1 MAX=2",
    "Norm": "L1=1 L2=2",
    "NormRegion": "ACROSS_CHANNELS=0 WITHIN_CHANNEL=1",
    "PoolMethod": "MAX=0 AVE=1 STOCHASTIC=2",
    "RoundMode": "CEIL=0 FLOOR=1",
    "ReductionOp": "SUM=1 ASUM=2 SUMSQ=3 MEAN=4",
    "V1Type": (
        "NONE=0 ABSVAL=35 ACCURACY=1 ARGMAX=30 BNLL=2 CONCAT=3 CONTRASTIVE_LOSS=37 CONVOLUTION=4 "
        "DATA=5 DECONVOLUTION=39 DROPOUT=6 DUMMY_DATA=32 EUCLIDEAN_LOSS=7 ELTWISE=25 EXP=38 "
        "FLATTEN=8 HDF5_DATA=9 HDF5_OUTPUT=10 HINGE_LOSS=28 IM2COL=11 IMAGE_DATA=12 "
        "INFOGAIN_LOSS=13 INNER_PRODUCT=14 LRN=15 MEMORY_DATA=29 MULTINOMIAL_LOGISTIC_LOSS=16 "
        "MVN=34 POOLING=17 POWER=26 RELU=18 SIGMOID=19 SIGMOID_CROSS_ENTROPY_LOSS=27 SILENCE=36 "
        "SOFTMAX=20 SOFTMAX_LOSS=21 SPLIT=22 SLICE=33 TANH=23 WINDOW_DATA=24 THRESHOLD=31"
    ),
}

# Parameters that layers of both generations have: {field: (message, number, number in V1)}.
_OF_BOTH: dict[str, tuple[str, int, int]] = {
    "accuracy_param": ("AccuracyParameter", 102, 27),
    "argmax_param": ("ArgMaxParameter", 103, 23),
    "concat_param": ("ConcatParameter", 104, 9),
    "contrastive_loss_param": ("ContrastiveLossParameter", 105, 40),
    "convolution_param": ("ConvolutionParameter", 106, 10),
    "data_param": ("DataParameter", 107, 11),
    "dropout_param": ("DropoutParameter", 108, 12),
    "dummy_data_param": ("DummyDataParameter", 109, 26),
    "eltwise_param": ("EltwiseParameter", 110, 24),
    "exp_param": ("ExpParameter", 111, 41),
    "hdf5_data_param": ("HDF5DataParameter", 112, 13),
    "hdf5_output_param": ("HDF5OutputParameter", 113, 14),
    "hinge_loss_param": ("HingeLossParameter", 114, 29),
    "image_data_param": ("ImageDataParameter", 115, 15),
    "infogain_loss_param": ("InfogainLossParameter", 116, 16),
    "inner_product_param": ("InnerProductParameter", 117, 17),
    "loss_param": ("LossParameter", 101, 42),
    "lrn_param": ("LRNParameter", 118, 18),
    "memory_data_param": ("MemoryDataParameter", 119, 22),
    "mvn_param": ("MVNParameter", 120, 34),
    "pooling_param": ("PoolingParameter", 121, 19),
    "power_param": ("PowerParameter", 122, 21),
    "relu_param": ("ReLUParameter", 123, 30),
    "sigmoid_param": ("EngineParameter", 124, 38),
    "slice_param": ("SliceParameter", 126, 31),
    "softmax_param": ("SoftmaxParameter", 125, 39),
    "tanh_param": ("EngineParameter", 127, 37),
    "threshold_param": ("ThresholdParameter", 128, 25),
    "transform_param": ("TransformationParameter", 100, 36),
    "window_data_param": ("WindowDataParameter", 129, 20),
}
SHARED_PARAMETERS: tuple[str, ...] = tuple(_OF_BOTH)


def _both(column: int) -> str:
    return "; ".join(f"{name} {row[0]} {row[column]}" for name, row in _OF_BOTH.items())


_FILLER = "weight_filler FillerParameter {}; bias_filler FillerParameter {}"

MESSAGES: dict[str, str] = {
    "BlobShape": "dim int64* 1",
    "BlobProto": (
        "shape BlobShape 7; data float* 5; diff float* 6; double_data double* 8; "
        "double_diff double* 9; num int32 1 0; channels int32 2 0; height int32 3 0; "
        "width int32 4 0"
    ),
    "FillerParameter": (
        "type string 1 constant; value float 2 0; min float 3 0; max float 4 1; mean float 5 0; "
        "std float 6 1; sparse int32 7 -1; variance_norm VarianceNorm 8 FAN_IN"
    ),
    "NetParameter": (
        "name string 1; input string* 3; input_shape BlobShape* 8; input_dim int32* 4; "
        "force_backward bool 5 false; state NetState 6; debug_info bool 7 false; "
        "layer LayerParameter* 100; layers V1LayerParameter* 2"
    ),
    "NetState": "phase Phase 1 TEST; level int32 2 0; stage string* 3",
    "NetStateRule": (
        "phase Phase 1; min_level int32 2; max_level int32 3; stage string* 4; not_stage string* 5"
    ),
    "ParamSpec": (
        "name string 1; share_mode DimCheckMode 2; lr_mult float 3 1.0; decay_mult float 4 1.0"
    ),
    "LayerParameter": (
        "name string 1; type string 2; bottom string* 3; top string* 4; phase Phase 10; "
        "loss_weight float* 5; param ParamSpec* 6; blobs BlobProto* 7; propagate_down bool* 11; "
        "include NetStateRule* 8; exclude NetStateRule* 9; "
        "batch_norm_param BatchNormParameter 139; bias_param BiasParameter 141; "
        "clip_param ClipParameter 148; crop_param CropParameter 144; elu_param ELUParameter 140; "
        "embed_param EmbedParameter 137; flatten_param FlattenParameter 135; "
        "input_param InputParameter 143; log_param LogParameter 134; "
        "parameter_param ParameterParameter 145; prelu_param PReLUParameter 131; "
        "python_param PythonParameter 130; recurrent_param RecurrentParameter 146; "
        "reduction_param ReductionParameter 136; reshape_param ReshapeParameter 133; "
        "scale_param ScaleParameter 142; spp_param SPPParameter 132; "
        "swish_param SwishParameter 147; tile_param TileParameter 138; "
        "denseblock_param DenseBlockParameter 10000; interp_param InterpParameter 10001; "
        "upsample_param UpsampleParameter 10002; permute_param PermuteParameter 10003; "
        "norm_param NormalizeParameter 10004; "
        "shuffle_channel_param ShuffleChannelParameter 10005; " + _both(1)
    ),
    "V1LayerParameter": (
        "bottom string* 2; top string* 3; name string 4; include NetStateRule* 32; "
        "exclude NetStateRule* 33; type V1Type 5; blobs BlobProto* 6; param string* 1001; "
        "blob_share_mode DimCheckMode* 1002; blobs_lr float* 7; weight_decay float* 8; "
        "loss_weight float* 35; layer V0LayerParameter 1; " + _both(2)
    ),
    # Only so far that it can be told and refused by name.
    "V0LayerParameter": "name string 1; type string 2",
    "TransformationParameter": (
        "scale float 1 1; mirror bool 2 false; crop_size uint32 3 0; mean_file string 4; "
        "mean_value float* 5; force_color bool 6 false; force_gray bool 7 false"
    ),
    "LossParameter": (
        "ignore_label int32 1; normalization NormalizationMode 3 VALID; normalize bool 2"
    ),
    "AccuracyParameter": (
        "top_k uint32 1 1; axis int32 2 1; ignore_label int32 3; use_log bool 10000 false"
    ),
    "ArgMaxParameter": "out_max_val bool 1 false; top_k uint32 2 1; axis int32 3",
    "BatchNormParameter": (
        "use_global_stats bool 1; moving_average_fraction float 2 .999; eps float 3 1e-5; "
        "scale_filler FillerParameter 10000; bias_filler FillerParameter 10001; "
        "engine Engine 10002 DEFAULT; scale_bias bool 10003 false; use_log bool 10004 false"
    ),
    "BiasParameter": "axis int32 1 1; num_axes int32 2 1; filler FillerParameter 3",
    "ClipParameter": "min float 1; max float 2",
    "ConcatParameter": "axis int32 2 1; concat_dim uint32 1 1; use_log bool 10000 false",
    "ContrastiveLossParameter": "margin float 1 1.0; legacy_version bool 2 false",
    "ConvolutionParameter": (
        "num_output uint32 1; bias_term bool 2 true; pad uint32* 3; kernel_size uint32* 4; "
        "stride uint32* 6; dilation uint32* 18; pad_h uint32 9 0; pad_w uint32 10 0; "
        "kernel_h uint32 11; kernel_w uint32 12; stride_h uint32 13; stride_w uint32 14; "
        "group uint32 5 1; engine Engine 15 DEFAULT; axis int32 16 1; "
        "force_nd_im2col bool 17 false; use_log bool 10000 false; " + _FILLER.format(7, 8)
    ),
    "CropParameter": "axis int32 1 2; offset uint32* 2",
    "DataParameter": (
        "source string 1; batch_size uint32 4; rand_skip uint32 7 0; backend DB 8 LEVELDB; "
        "scale float 2 1; mean_file string 3; crop_size uint32 5 0; mirror bool 6 false; "
        "force_encoded_color bool 9 false; prefetch uint32 10 4; random_order bool 10000 true; "
        "init_seed uint32 10001 1234"
    ),
    "DenseBlockParameter": (
        "numTransition int32 1 40; initChannel int32 2 16; growthRate int32 3 12; pad_h int32 4 1; "
        "pad_w int32 5 1; conv_verticalStride int32 6 1; conv_horizentalStride int32 7 1; "
        "filter_H int32 8 3; filter_W int32 9 3; Filter_Filler FillerParameter 10; "
        "BN_Scaler_Filler FillerParameter 11; BN_Bias_Filler FillerParameter 12; "
        "gpuIdx int32 15 0; use_dropout bool 16 false; dropout_amount float 17 0; "
        "use_BC bool 18 false; BC_ultra_space_efficient bool 19 false; workspace_MB int32 20 8; "
        "moving_average_fraction float 21 0.1"
    ),
    "DropoutParameter": "dropout_ratio float 1 0.5",
    "DummyDataParameter": (
        "data_filler FillerParameter* 1; shape BlobShape* 6; num uint32* 2; channels uint32* 3; "
        "height uint32* 4; width uint32* 5"
    ),
    "EltwiseParameter": "operation EltwiseOp 1 SUM; coeff float* 2; stable_prod_grad bool 3 true",
    "ELUParameter": "alpha float 1 1",
    "EmbedParameter": (
        "num_output uint32 1; input_dim uint32 2; bias_term bool 3 true; " + _FILLER.format(4, 5)
    ),
    "EngineParameter": "engine Engine 1 DEFAULT",
    "ExpParameter": "base float 1 -1.0; scale float 2 1.0; shift float 3 0.0",
    "FlattenParameter": "axis int32 1 1; end_axis int32 2 -1",
    "HDF5DataParameter": "source string 1; batch_size uint32 2; shuffle bool 3 false",
    "HDF5OutputParameter": "file_name string 1",
    "HingeLossParameter": "norm Norm 1 L1",
    "ImageDataParameter": (
        "source string 1; batch_size uint32 4 1; rand_skip uint32 7 0; shuffle bool 8 false; "
        "new_height uint32 9 0; new_width uint32 10 0; is_color bool 11 true; scale float 2 1; "
        "mean_file string 3; crop_size uint32 5 0; mirror bool 6 false; root_folder string 12"
    ),
    "InfogainLossParameter": "source string 1; axis int32 2 1",
    "InnerProductParameter": (
        "num_output uint32 1; bias_term bool 2 true; axis int32 5 1; transpose bool 6 false; "
        + _FILLER.format(3, 4)
    ),
    "InputParameter": "shape BlobShape* 1",
    # DeepLab's
    "InterpParameter": (
        "height int32 1 0; width int32 2 0; zoom_factor int32 3 1; shrink_factor int32 4 1; "
        "pad_beg int32 5 0; pad_end int32 6 0"
    ),
    "LogParameter": "base float 1 -1.0; scale float 2 1.0; shift float 3 0.0",
    "LRNParameter": (
        "local_size uint32 1 5; alpha float 2 1.; beta float 3 0.75; "
        "norm_region NormRegion 4 ACROSS_CHANNELS; k float 5 1.; engine Engine 6 DEFAULT"
    ),
    "MemoryDataParameter": (
        "batch_size uint32 1; channels uint32 2; height uint32 3; width uint32 4"
    ),
    "MVNParameter": (
        "normalize_variance bool 1 true; across_channels bool 2 false; eps float 3 1e-9"
    ),
    # SSD's
    "NormalizeParameter": (
        "across_spatial bool 1 true; scale_filler FillerParameter 2; channel_shared bool 3 true; "
        "eps float 4 1e-10"
    ),
    "ParameterParameter": "shape BlobShape 1",
    "PermuteParameter": "order uint32* 1",
    "PoolingParameter": (
        "pool PoolMethod 1 MAX; pad uint32 4 0; pad_h uint32 9 0; pad_w uint32 10 0; "
        "kernel_size uint32 2; kernel_h uint32 5; kernel_w uint32 6; stride uint32 3 1; "
        "stride_h uint32 7; stride_w uint32 8; engine Engine 11 DEFAULT; "
        "global_pooling bool 12 false; round_mode RoundMode 13 CEIL; ceil_mode bool 10000 true"
    ),
    "PowerParameter": "power float 1 1.0; scale float 2 1.0; shift float 3 0.0",
    "PReLUParameter": "filler FillerParameter 1; channel_shared bool 2 false",
    "PythonParameter": (
        "module string 1; layer string 2; param_str string 3; share_in_parallel bool 4 false"
    ),
    "RecurrentParameter": (
        "num_output uint32 1 0; debug_info bool 4 false; expose_hidden bool 5 false; "
        + _FILLER.format(2, 3)
    ),
    "ReductionParameter": "operation ReductionOp 1 SUM; axis int32 2 0; coeff float 3 1.0",
    "ReLUParameter": "negative_slope float 1 0; engine Engine 2 DEFAULT; use_log bool 10000 false",
    "ReshapeParameter": "shape BlobShape 1; axis int32 2 0; num_axes int32 3 -1",
    "ScaleParameter": (
        "axis int32 1 1; num_axes int32 2 1; filler FillerParameter 3; bias_term bool 4 false; "
        "bias_filler FillerParameter 5; use_log bool 10000 false"
    ),
    "ShuffleChannelParameter": "group uint32 1 1",
    "SliceParameter": "axis int32 3 1; slice_point uint32* 2; slice_dim uint32 1 1",
    "SoftmaxParameter": "engine Engine 1 DEFAULT; axis int32 2 1",
    "SPPParameter": "pyramid_height uint32 1; pool PoolMethod 2 MAX; engine Engine 6 DEFAULT",
    "SwishParameter": "beta float 1 1",
    "ThresholdParameter": "threshold float 1 0",
    "TileParameter": "axis int32 1 1; tiles int32 2",
    # SegNet's and YOLO's
    "UpsampleParameter": (
        "scale int32 1 2; scale_h int32 2; scale_w int32 3; pad_out_h bool 4 false; "
        "pad_out_w bool 5 false; upsample_h uint32 6; upsample_w uint32 7"
    ),
    "WindowDataParameter": (
        "source string 1; scale float 2 1; mean_file string 3; batch_size uint32 4; "
        "crop_size uint32 5 0; mirror bool 6 false; fg_threshold float 7 0.5; "
        "bg_threshold float 8 0.5; fg_fraction float 9 0.25; context_pad uint32 10 0; "
        "crop_mode string 11 warp; cache_images bool 12 false; root_folder string 13"
    ),
}
