// Reads engines/KEY.txt, which describe.py writes, and checks the engine file before it is loaded.
#pragma once

#include <array>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "preprocess.hpp"

namespace gft {

struct Description {
    Spec spec;
    Input input = Input::normalized;
    std::string input_name, output_name, engine, engine_sha256, tensorrt;
    bool probabilities = false;  // the graph has a softmax
    std::vector<std::string> labels;
};

inline Description read_description(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    if (!std::getline(file, line) || line != "gft_edge classifier 1")
        throw std::runtime_error(path + ": is not a description; write it with describe.py");
    std::map<std::string, std::string> values;
    while (std::getline(file, line) && line != "labels") {
        const auto space = line.find(' ');
        if (space == std::string::npos) throw std::runtime_error(path + ": no value in line '" + line + "'");
        values[line.substr(0, space)] = line.substr(space + 1);
    }
    auto value = [&](const std::string& key) {
        const auto found = values.find(key);
        if (found == values.end()) throw std::runtime_error(path + ": has no '" + key + "'; write it again with describe.py");
        return found->second;
    };
    auto one_of = [&](const std::string& key, const std::string& first, const std::string& second) {
        const std::string found = value(key);
        if (found != first && found != second) throw std::runtime_error(path + ": unknown " + key + " '" + found + "'");
        return found == second;
    };
    Description result;
    Spec& spec = result.spec;
    spec.height = std::stoi(value("height"));
    spec.width = std::stoi(value("width"));
    spec.crop = one_of("resize", "stretch", "crop");
    spec.crop_ratio = std::stod(value("crop_ratio"));
    spec.bicubic = one_of("interpolation", "bilinear", "bicubic");
    spec.bgr = one_of("color_order", "rgb", "bgr");
    std::istringstream scale(value("scale")), shift(value("shift"));
    for (int c = 0; c < 3; ++c) scale >> spec.scale[c], shift >> spec.shift[c];
    if (!scale || !shift || spec.height < 1 || spec.width < 1 || !(spec.crop_ratio > 0 && spec.crop_ratio <= 1))
        throw std::runtime_error(path + ": preprocessing is out of range");
    result.input = one_of("input", "float", "uint8") ? Input::pixels : Input::normalized;
    result.probabilities = one_of("output_kind", "logits", "probabilities");
    result.input_name = value("input_name");
    result.output_name = value("output_name");
    result.engine = value("engine");
    result.engine_sha256 = value("engine_sha256");
    result.tensorrt = value("tensorrt");
    while (std::getline(file, line)) result.labels.push_back(line);
    if (result.labels.empty()) throw std::runtime_error(path + ": has no labels");
    return result;
}

// A binary PPM (P6, 8 bits); any image becomes one with: ffmpeg -i photo.jpg photo.ppm
inline Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    long numbers[3];
    file >> magic;
    for (long& number : numbers) {
        while (file >> std::ws && file.peek() == '#') file.ignore(1 << 20, '\n');
        file >> number;
    }
    const bool sane = file && magic == "P6" && numbers[2] == 255 && numbers[0] > 0 && numbers[1] > 0;
    if (!sane || numbers[0] > 65535 || numbers[1] > 65535) throw std::runtime_error(path + ": is no binary PPM of 8 bits");
    file.get();  // one blank ends the header
    Image image{int(numbers[1]), int(numbers[0]), std::vector<std::uint8_t>(std::size_t(numbers[0]) * numbers[1] * 3)};
    file.read(reinterpret_cast<char*>(image.pixels.data()), std::streamsize(image.pixels.size()));
    if (std::size_t(file.gcount()) != image.pixels.size()) throw std::runtime_error(path + ": is cut short");
    return image;
}

// SHA-256 (FIPS 180-4) of bytes, in hexadecimal.
inline std::string sha256(const std::vector<char>& data) {
    static const std::array<std::uint32_t, 64> k = [] {
        std::array<std::uint32_t, 64> constants{};  // first 32 bits of the fractions of the cube roots of the first primes
        int found = 0;
        for (int n = 2; found < 64; ++n) {
            bool prime = true;
            for (int d = 2; d * d <= n; ++d) prime = prime && n % d;
            if (prime) {
                const long double root = std::cbrt((long double)n);
                constants[found++] = std::uint32_t((root - std::floor(root)) * 4294967296.0L);
            }
        }
        return constants;
    }();
    std::array<std::uint32_t, 8> h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    auto turn = [](std::uint32_t x, int n) { return (x >> n) | (x << (32 - n)); };
    auto block = [&](const std::uint8_t* p) {
        std::uint32_t w[64];
        for (int i = 0; i < 16; ++i)
            w[i] = std::uint32_t(p[4 * i]) << 24 | std::uint32_t(p[4 * i + 1]) << 16 | std::uint32_t(p[4 * i + 2]) << 8 | p[4 * i + 3];
        for (int i = 16; i < 64; ++i) {
            const auto a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + w[i - 7] + (turn(a, 7) ^ turn(a, 18) ^ (a >> 3)) + (turn(b, 17) ^ turn(b, 19) ^ (b >> 10));
        }
        auto s = h;
        for (int i = 0; i < 64; ++i) {
            const auto one = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
            const auto two = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s = {one + two, s[0], s[1], s[2], s[3] + one, s[4], s[5], s[6]};
        }
        for (int i = 0; i < 8; ++i) h[i] += s[i];
    };
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(data.data());
    const std::size_t whole = data.size() / 64 * 64;
    for (std::size_t at = 0; at < whole; at += 64) block(bytes + at);
    std::vector<std::uint8_t> tail(bytes + whole, bytes + data.size());
    tail.push_back(0x80);
    while (tail.size() % 64 != 56) tail.push_back(0);
    for (int i = 7; i >= 0; --i) tail.push_back(std::uint8_t(std::uint64_t(data.size()) * 8 >> (8 * i)));
    for (std::size_t at = 0; at < tail.size(); at += 64) block(tail.data() + at);
    std::string text;
    for (auto value : h) {
        char part[9];
        std::snprintf(part, sizeof part, "%08x", value);
        text += part;
    }
    return text;
}

// Returns the bytes of the engine after a check of their hash: an engine is native code.
inline std::vector<char> read_engine(const std::string& path, const std::string& expected_sha256) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be read");
    std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (sha256(bytes) != expected_sha256)
        throw std::runtime_error(path + ": its hash is not the one of the description; not loaded. Build and describe it again");
    return bytes;
}

}  // namespace gft
