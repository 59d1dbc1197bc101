// Counters on Triton's metrics port, one set a version.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "api.h"

namespace toxicity {

enum class Metric : std::size_t {
    requests, refused, cancelled, comments, cut, windowed, tokens, batches, compute_us,
    tokenizer_cpu_us, encoder_cpu_us, hits, misses, cached_bytes, starts, count_of_them
};

class Metrics {
  public:
    // Throws std::runtime_error with Triton's words, as where metrics are switched off.
    explicit Metrics(std::uint64_t version);
    ~Metrics();
    Metrics(const Metrics&) = delete;
    Metrics& operator=(const Metrics&) = delete;

    void add(Metric metric, double amount) const;
    void set(Metric metric, double value) const;

  private:
    static constexpr auto kMetrics = static_cast<std::size_t>(Metric::count_of_them);
    void close();
    std::array<TRITONSERVER_MetricFamily*, kMetrics> families_{};  // each outlives its metric
    std::array<TRITONSERVER_Metric*, kMetrics> metrics_{};
};

}  // namespace toxicity
