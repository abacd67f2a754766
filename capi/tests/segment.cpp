// The same by organum.hpp: segment MODEL VOXELS LABELS.
#include <fstream>
#include <iostream>
#include <stdexcept>

#include "organum.hpp"

static void need(bool holds, const char *what) {
    if (!holds) throw std::logic_error(what);
}

int main(int argc, char **argv) try {
    need(argc == 4, "segment MODEL VOXELS LABELS");
    try {
        organum::Model none("no such model");
        need(false, "a model that is not there was opened");
    } catch (const organum::Error &e) {
        need(e.status == ORGANUM_MODEL && e.kind == "load.not_found", e.what());
    }
    organum::Model model(argv[1]);
    organum::Model moved = std::move(model);
    need(moved.channels() == 1, "one channel");
    need(moved.plan({48, 56, 40}).peak_bytes > 0, "a plan has bytes");
    std::uint64_t smallest = 0;
    try {
        moved.plan({48, 56, 40}, 1000);
    } catch (const organum::Error &e) {
        smallest = e.smallest_budget;
    }
    need(moved.plan({48, 56, 40}, smallest).peak_bytes <= smallest, "the smallest budget works");

    std::vector<float> voxels(45 * 50 * 36);
    std::ifstream in(argv[2], std::ios::binary);
    const long bytes = long(voxels.size() * sizeof(float));
    need(bool(in.read(reinterpret_cast<char *>(voxels.data()), bytes)), "voxels are read");
    organum::Volume volume{
        1, {45, 50, 36}, {{1, 0, 0, -16}, {0, 1, 0, -20}, {0, 0, 1, -18}}, voxels.data()};
    organum::Options options;
    options.device = "cpu";
    std::uint64_t calls = 0, left = 1;
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
        left = total - done;
        return ++calls > 0;
    };
    organum::Labels labels = moved.segment(volume, options);
    need(calls > 1 && left == 0, "the progress ends at the total");
    need(labels.shape() == std::array<std::uint32_t, 4>{1, 45, 50, 36}, "labels lie on the grid");
    need(labels.classes().size() == 2 && labels.classes()[0].name != nullptr, "two classes");
    for (const std::string &text : labels.warnings()) std::cout << "warning: " << text << '\n';
    std::ofstream out(argv[3], std::ios::binary);
    out.write(reinterpret_cast<const char *>(labels.voxels()), bytes / 2);
    need(bool(out.flush()), "labels are written");

    // what the callback throws comes back to the caller, and the model can be used again
    options.progress = [](auto, auto) -> bool { throw std::range_error("enough"); };
    try {
        moved.segment(volume, options);
        need(false, "the run went on");
    } catch (const std::range_error &e) {
        need(std::string(e.what()) == "enough", "the exception is the callback's");
    }
    options.progress = nullptr;
    need(moved.segment(volume, options).voxels()[0] == labels.voxels()[0], "it runs again");
    std::cout << "done\n";
    return 0;
} catch (const std::exception &e) {
    std::cerr << e.what() << '\n';
    return 1;
}
