// Preprocessing of gft_edge, bit for bit: Pillow's 8-bit resampling (separable, antialiased, 22-bit fixed point) and float32
// normalisation. The definition is gft_edge/preprocess.py and gft_edge/resample.py; a test compares this header with them.
//
// Compile with -ffp-contract=off (GCC on aarch64 otherwise fuses multiplications and additions, which changes weights).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace gft {

enum class Input { normalized, pixels };  // (3, H, W) float32, or (H, W, 3) uint8 for a graph that normalises

struct Spec {
    int height = 0, width = 0;
    bool crop = false;  // resize the shorter side to height / crop_ratio and cut the centre; else stretch
    double crop_ratio = 1.0;
    bool bicubic = true;  // else bilinear
    bool bgr = false;
    float scale[3] = {1, 1, 1}, shift[3] = {0, 0, 0};  // of the network's channels: pixel * scale + shift
};

struct Image {
    int height = 0, width = 0;
    std::vector<std::uint8_t> pixels;  // RGB, rows of (R, G, B)
};

inline double kernel(double x, bool bicubic) {
    x = std::fabs(x);
    if (!bicubic) return std::max(1.0 - x, 0.0);
    const double a = -0.5;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

// The inputs and weights of outputs first ... first + count - 1 of an axis.
struct Axis {
    std::vector<int> begin;
    std::vector<std::vector<std::int64_t>> weights;
    int low = 0, high = 0;  // range of inputs that are read

    Axis(int size_in, int size_out, int first, int count, bool bicubic) {
        if (size_in == size_out) {  // no resampling
            for (int i = 0; i < count; ++i) {
                begin.push_back(first + i);
                weights.push_back({std::int64_t(1) << 22});
            }
            low = first;
            high = first + count;
            return;
        }
        const double scale = double(size_in) / size_out, filter_scale = std::max(scale, 1.0);
        const double support = (bicubic ? 2.0 : 1.0) * filter_scale, inverse = 1.0 / filter_scale;
        low = size_in;
        for (int i = first; i < first + count; ++i) {
            const double center = (i + 0.5) * scale;
            const auto from = std::max<std::int64_t>(std::int64_t(center - support + 0.5), 0);
            const auto to = std::min<std::int64_t>(std::int64_t(center + support + 0.5), size_in);
            std::vector<double> values;
            double total = 0;
            for (auto tap = from; tap < to; ++tap) {
                values.push_back(kernel((double(tap) - center + 0.5) * inverse, bicubic));
                total += values.back();
            }
            std::vector<std::int64_t> fixed;
            for (double value : values) {
                const double weight = value / total * double(1 << 22);
                fixed.push_back(std::int64_t(weight >= 0 ? weight + 0.5 : weight - 0.5));
            }
            begin.push_back(int(from));
            weights.push_back(fixed);
            low = std::min(low, int(from));
            high = std::max(high, int(to));
        }
    }
};

inline std::uint8_t rounded(std::int64_t sum) {
    return std::uint8_t(std::min<std::int64_t>(std::max<std::int64_t>((sum + (1 << 21)) >> 22, 0), 255));
}

// Resizes and crops to (spec.height, spec.width): first the columns, then the rows, each rounded to 8 bits.
inline Image geometry(const Image& image, const Spec& spec) {
    if (image.height < 1 || image.width < 1 || image.pixels.size() != std::size_t(image.height) * image.width * 3)
        throw std::runtime_error("image: expected height x width x 3 bytes");
    int rows = spec.height, cols = spec.width;
    if (spec.crop) {
        const double factor =
            std::max(spec.height / spec.crop_ratio / image.height, spec.width / spec.crop_ratio / image.width);
        rows = std::max(int(std::nearbyint(image.height * factor)), spec.height);  // half to even, as Python rounds
        cols = std::max(int(std::nearbyint(image.width * factor)), spec.width);
    }
    const Axis across(image.width, cols, (cols - spec.width) / 2, spec.width, spec.bicubic);
    const Axis down(image.height, rows, (rows - spec.height) / 2, spec.height, spec.bicubic);
    std::vector<std::uint8_t> narrow(std::size_t(down.high - down.low) * spec.width * 3);
    for (int y = down.low; y < down.high; ++y)
        for (int x = 0; x < spec.width; ++x)
            for (int c = 0; c < 3; ++c) {
                const std::uint8_t* source = &image.pixels[(std::size_t(y) * image.width + across.begin[x]) * 3 + c];
                std::int64_t sum = 0;
                for (std::size_t tap = 0; tap < across.weights[x].size(); ++tap) sum += across.weights[x][tap] * source[3 * tap];
                narrow[(std::size_t(y - down.low) * spec.width + x) * 3 + c] = rounded(sum);
            }
    Image result{spec.height, spec.width, std::vector<std::uint8_t>(std::size_t(spec.height) * spec.width * 3)};
    const std::size_t stride = std::size_t(spec.width) * 3;
    for (int y = 0; y < spec.height; ++y)
        for (std::size_t x = 0; x < stride; ++x) {
            const std::uint8_t* source = &narrow[std::size_t(down.begin[y] - down.low) * stride + x];
            std::int64_t sum = 0;
            for (std::size_t tap = 0; tap < down.weights[y].size(); ++tap) sum += down.weights[y][tap] * source[stride * tap];
            result.pixels[y * stride + x] = rounded(sum);
        }
    return result;
}

// Returns the network's input, (3, height, width) float32.
inline std::vector<float> normalized(const Image& image, const Spec& spec) {
    const Image resized = geometry(image, spec);
    const std::size_t area = std::size_t(spec.height) * spec.width;
    std::vector<float> result(3 * area);
    for (int c = 0; c < 3; ++c) {
        float levels[256];
        for (int level = 0; level < 256; ++level) {
            volatile float product = float(level) * spec.scale[c];  // rounded before the addition on every processor
            levels[level] = product + spec.shift[c];
        }
        const int source = spec.bgr ? 2 - c : c;
        for (std::size_t i = 0; i < area; ++i) result[c * area + i] = levels[resized.pixels[3 * i + source]];
    }
    return result;
}

}  // namespace gft
