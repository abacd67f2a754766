// organum for C++17: what organum.h gives, owned and with exceptions.
//
//     organum::Model model("spleen_bundle");
//     organum::Options options;
//     options.memory = 2ull << 30;
//     options.progress = [](uint64_t done, uint64_t total) { return true; };  // false stops
//     organum::Labels labels = model.segment({{1}, {d, h, w}, affine, voxels.data()}, options);
#ifndef ORGANUM_HPP
#define ORGANUM_HPP

#include <array>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "organum.h"

namespace organum {

/// A failure: its text, status, kind (such as `plan.budget`), and the smallest budget, or 0.
struct Error : std::runtime_error {
    organum_status status;
    std::string kind;
    std::uint64_t smallest_budget;

    Error(organum_status s, const organum_error &e)
        : std::runtime_error(organum_error_message(&e)), status(s), kind(organum_error_kind(&e)),
          smallest_budget(organum_error_smallest_budget(&e)) {}
};

/// A volume of the caller's: voxels [C][D][H][W], which need not outlive the call.
using Volume = organum_volume;
/// Device bytes and work of a run.
using Plan = organum_plan;

/// How a volume is segmented.
struct Options {
    std::string device;             ///< empty for a hardware GPU if there is one, else the host
    std::uint64_t memory = 0;       ///< the most bytes on the device; 0 for no bound
    std::uint64_t host_memory = 0;  ///< the most bytes of host memory; 0 for no bound
    bool half_precision = false;
    bool no_mirror = false;
    /// Called with operations done and of the whole run; false, or what it throws, stops the run.
    std::function<bool(std::uint64_t, std::uint64_t)> progress;
};

namespace detail {
inline void check(organum_status status, organum_error *error) {
    if (status == ORGANUM_OK) return;
    std::unique_ptr<organum_error, void (*)(organum_error *)> owned(error, organum_error_free);
    throw Error(status, *owned);
}

struct Watch {
    const Options &options;
    std::exception_ptr thrown;

    static bool call(std::uint64_t done, std::uint64_t total, void *user) noexcept {
        auto &self = *static_cast<Watch *>(user);
        try {
            return self.options.progress(done, total);
        } catch (...) {
            self.thrown = std::current_exception();
            return false;
        }
    }
};
}  // namespace detail

/// The labels of a volume, on its grid.
class Labels {
  public:
    explicit Labels(organum_labels *made) : held(made, organum_labels_free) {}

    /// C, D, H, W; C is 1 unless labels may overlap.
    std::array<std::uint32_t, 4> shape() const {
        std::array<std::uint32_t, 4> s{};
        organum_labels_shape(held.get(), s.data());
        return s;
    }
    const std::uint16_t *voxels() const { return organum_labels_voxels(held.get()); }
    /// Number, name, voxels and millilitres of every class but the background.
    std::vector<organum_label> classes() const {
        std::vector<organum_label> all(organum_labels_classes(held.get()));
        for (std::size_t i = 0; i < all.size(); ++i) organum_labels_class(held.get(), i, &all[i]);
        return all;
    }
    std::vector<std::string> warnings() const {
        std::vector<std::string> all(organum_labels_warnings(held.get()));
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = organum_labels_warning(held.get(), i);
        return all;
    }

  private:
    std::unique_ptr<organum_labels, void (*)(organum_labels *)> held;
};

/// A model; one thread may use it at a time.
class Model {
  public:
    explicit Model(const std::string &path) : held(nullptr, organum_model_free) {
        organum_model *made = nullptr;
        organum_error *error = nullptr;
        const organum_status status = organum_open(path.c_str(), &made, &error);
        detail::check(status, error);
        held.reset(made);
    }

    std::uint32_t channels() const { return organum_model_channels(held.get()); }

    /// What a run over (D, H, W) voxels needs within `memory` bytes of the device; 0 for no bound.
    Plan plan(const std::array<std::uint32_t, 3> &extent, std::uint64_t memory = 0) const {
        Plan made{};
        organum_error *error = nullptr;
        const organum_status status =
            organum_plan_run(held.get(), extent.data(), memory, &made, &error);
        detail::check(status, error);
        return made;
    }

    Labels segment(const Volume &volume, const Options &options = {}) {
        return run(options, [&](auto *plain, auto **labels, auto **error) {
            return organum_segment(held.get(), &volume, plain, labels, error);
        });
    }

    /// The labels of the scan in a file, which are written to `output`, too.
    Labels segment_file(const std::string &scan, const std::string &output,
                        const Options &options = {}) {
        const char *from = scan.c_str(), *to = output.c_str();
        return run(options, [&](auto *plain, auto **labels, auto **error) {
            return organum_segment_file(held.get(), from, to, plain, labels, error);
        });
    }

  private:
    template <class Call> static Labels run(const Options &options, Call call) {
        detail::Watch watch{options, nullptr};
        organum_options plain{};
        plain.device = options.device.empty() ? nullptr : options.device.c_str();
        plain.memory = options.memory;
        plain.host_memory = options.host_memory;
        plain.half_precision = options.half_precision;
        plain.no_mirror = options.no_mirror;
        if (options.progress) plain.progress = detail::Watch::call, plain.user = &watch;
        organum_labels *made = nullptr;
        organum_error *error = nullptr;
        organum_status status = call(&plain, &made, &error);
        Labels labels(made);
        if (watch.thrown) {
            organum_error_free(error);
            std::rethrow_exception(watch.thrown);
        }
        detail::check(status, error);
        return labels;
    }

    std::unique_ptr<organum_model, void (*)(organum_model *)> held;
};

}  // namespace organum

#endif
