"""Caffe's net definitions (``train_test.prototxt``), read as ONNX training graphs."""
