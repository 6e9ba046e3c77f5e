// Classifies images with an engine of a gft_edge artefact or bundle. The API used is the same in TensorRT 10 and 11.
//
//     classify ARTIFACT/engines/KEY.txt photo.ppm ...
//
// The description KEY.txt is written by describe.py; README.md has all commands.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <iostream>
#include <memory>
#include <numeric>

#include "description.hpp"

#if NV_TENSORRT_MAJOR < 10
#error "TensorRT 10 or newer is needed; JetPack 6.1 has 10.3"
#endif

namespace {

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* text) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << text << '\n';
    }
};

void require(bool condition, const std::string& text) {
    if (!condition) throw std::runtime_error(text);
}

void cuda(cudaError_t status) { require(status == cudaSuccess, std::string("CUDA: ") + cudaGetErrorString(status)); }

struct DeviceMemory {
    void* at = nullptr;
    explicit DeviceMemory(std::size_t bytes) { cuda(cudaMalloc(&at, bytes)); }
    ~DeviceMemory() { cudaFree(at); }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
};

std::size_t bytes_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kUINT8: return 1;
        default: throw std::runtime_error("the engine has a tensor of another type than float32, int32 or uint8");
    }
}

std::size_t volume(const nvinfer1::Dims& shape) {
    std::size_t count = 1;
    for (int i = 0; i < shape.nbDims; ++i) {
        require(shape.d[i] > 0, "the engine has a tensor whose shape depends on the data");
        count *= std::size_t(shape.d[i]);
    }
    return count;
}

class Classifier {
public:
    explicit Classifier(const std::string& path) : about_(gft::read_description(path)) {
        const auto slash = path.rfind('/');
        const auto folder = slash == std::string::npos ? std::string() : path.substr(0, slash + 1);
        const auto bytes = gft::read_engine(folder + about_.engine, about_.engine_sha256);
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        require(runtime_ != nullptr, "TensorRT cannot start");
        engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
        require(engine_ != nullptr, "TensorRT " + std::to_string(NV_TENSORRT_MAJOR) + " refuses the engine, which " + about_.tensorrt +
                                        " built: build it again on this machine");
        context_.reset(engine_->createExecutionContext());
        require(context_ != nullptr, "no memory for the engine");
        cuda(cudaStreamCreate(&stream_));
        const auto& spec = about_.spec;
        const bool pixels = about_.input == gft::Input::pixels;
        nvinfer1::Dims shape{};
        shape.nbDims = 4;
        shape.d[0] = 1;
        shape.d[1] = pixels ? spec.height : 3;
        shape.d[2] = pixels ? spec.width : spec.height;
        shape.d[3] = pixels ? 3 : spec.width;
        require(context_->setInputShape(about_.input_name.c_str(), shape), "the engine does not take one image of this size");
        for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            const auto size = volume(context_->getTensorShape(name)) * bytes_of(engine_->getTensorDataType(name));
            memory_[name] = std::make_unique<DeviceMemory>(size);
            require(context_->setTensorAddress(name, memory_[name]->at), std::string("tensor ") + name + " is refused");
            if (name == about_.output_name)
                require(size == 4 * about_.labels.size(), "the engine and the labels have different numbers of classes");
        }
        require(memory_.count(about_.input_name) && memory_.count(about_.output_name), "the engine has other tensors than described");
    }

    ~Classifier() { cudaStreamDestroy(stream_); }

    // Returns the probability of each class.
    std::vector<float> operator()(const gft::Image& image) {
        const auto& spec = about_.spec;
        if (about_.input == gft::Input::pixels) {
            const auto input = gft::geometry(image, spec);
            return run(input.pixels.data(), input.pixels.size());
        }
        const auto input = gft::normalized(image, spec);
        return run(input.data(), 4 * input.size());
    }

    const std::vector<std::string>& labels() const { return about_.labels; }

private:
    std::vector<float> run(const void* input, std::size_t bytes) {
        std::vector<float> values(about_.labels.size());
        cuda(cudaMemcpyAsync(memory_[about_.input_name]->at, input, bytes, cudaMemcpyHostToDevice, stream_));
        require(context_->enqueueV3(stream_), "the engine cannot be run");
        cuda(cudaMemcpyAsync(values.data(), memory_[about_.output_name]->at, 4 * values.size(), cudaMemcpyDeviceToHost, stream_));
        cuda(cudaStreamSynchronize(stream_));
        for (float value : values) require(std::isfinite(value), "the engine computed NaN or infinity; no label is given");
        return about_.probabilities ? values : softmax(values);
    }

    static std::vector<float> softmax(std::vector<float> values) {
        const float highest = *std::max_element(values.begin(), values.end());
        for (float& value : values) value = std::exp(value - highest);
        const float sum = std::accumulate(values.begin(), values.end(), 0.0f);
        for (float& value : values) value /= sum;
        return values;
    }

    gft::Description about_;
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;  // destroyed last: the members below need it
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::map<std::string, std::unique_ptr<DeviceMemory>> memory_;
    cudaStream_t stream_ = nullptr;
};

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) {
        std::cerr << "usage: classify ARTIFACT/engines/KEY.txt IMAGE.ppm ...\n";
        return 2;
    }
    try {
        Classifier classifier(arguments[1]);
        for (int i = 2; i < count; ++i) {
            const auto probabilities = classifier(gft::read_ppm(arguments[i]));
            std::vector<int> order(probabilities.size());
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return probabilities[a] > probabilities[b]; });
            std::cout << arguments[i] << '\n';
            for (std::size_t rank = 0; rank < std::min<std::size_t>(5, order.size()); ++rank)
                std::cout << "  " << probabilities[order[rank]] << "  " << classifier.labels()[order[rank]] << '\n';
        }
    } catch (const std::exception& error) {
        std::cerr << "classify: " << error.what() << '\n';
        return 2;
    }
    return 0;
}
