// One published version as the server loads it: its folder, its manifest, its configuration.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "api.h"
#include "capacity.h"
#include "contract.h"
#include "metrics.h"
#include "scorer.h"

namespace toxicity {

// Shared by all instances of a version.
class Version {
  public:
    // Every file has the size and sha256 of the manifest, or this throws BadInput, as for a
    // configuration or a manifest that no export writes.
    explicit Version(TRITONBACKEND_Model* model);

    // A scorer of its own for an instance on `gpu`, or on the CPU with -1; warmed up.
    std::unique_ptr<Scorer> scorer(int gpu) const;
    // "cpu" or "cuda", as the manifest says.
    const std::string& device() const { return device_; }
    const std::string& number() const { return number_; }
    // Names of the graph's attributes in their order, commas between them; empty without any.
    const std::string& attributes() const { return attributes_; }
    const LogitCache* cache() const { return cache_.get(); }
    const Metrics* metrics() const { return metrics_ ? &*metrics_ : nullptr; }
    // Probability from which a comment counts as flagged.
    double threshold() const { return threshold_; }
    // Comments that its instances could score a second; see Capacity::after.
    double capacity_after(std::int64_t comments, double busy_s, double now_s) const;
    void count_instance(int more) const { instances_ += more; }

  private:
    void read_config(TRITONBACKEND_Model* model);
    void read_manifest();
    std::string read_verified(const Json& files, const char* name, bool keep = true) const;

    std::string folder_, number_, device_, graph_, attributes_;
    std::size_t attribute_count_ = 0;
    int max_batch_ = 0;
    double threshold_ = DECISION_THRESHOLD;
    bool histograms_ = true;
    mutable Capacity capacity_;
    mutable std::atomic<int> instances_{0};
    LongText long_text_;
    std::shared_ptr<const Tokenizer> tokenizer_;
    std::shared_ptr<LogitCache> cache_;
    std::optional<Metrics> metrics_;
};

}  // namespace toxicity
