// check DESCRIPTION IMAGE.ppm OUT ...: writes the network's input of each image as raw bytes, after the labels of the description
// and a check of its engine; a problem becomes a line.
#include <iostream>

#include "description.hpp"

int main(int count, char** arguments) {
    for (int i = 1; i + 2 < count; i += 3) try {
            const std::string path = arguments[i];
            const auto about = gft::read_description(path);
            gft::read_engine(path.substr(0, path.rfind('/') + 1) + about.engine, about.engine_sha256);
            const auto image = gft::read_ppm(arguments[i + 1]);
            std::ofstream out(arguments[i + 2], std::ios::binary);
            if (about.input == gft::Input::pixels) {
                const auto input = gft::geometry(image, about.spec).pixels;
                out.write(reinterpret_cast<const char*>(input.data()), std::streamsize(input.size()));
            } else {
                const auto input = gft::normalized(image, about.spec);
                out.write(reinterpret_cast<const char*>(input.data()), std::streamsize(4 * input.size()));
            }
            std::cout << about.labels.size() << ' ' << about.labels.back() << '\n';
        } catch (const std::exception& error) {
            std::cout << "refused: " << error.what() << '\n';
        }
}
