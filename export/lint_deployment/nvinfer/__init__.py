"""Rules for the configuration of DeepStream's Gst-nvinfer."""
