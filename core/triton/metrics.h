// Counters and histograms on Triton's metrics port, one set a version.
#pragma once

#include <array>
#include <cstdint>

#include "api.h"

namespace toxicity {

enum class Metric : std::size_t {
    requests, overloaded, invalid, failed, cancelled, comments, cut, windowed, tokens, batches,
    compute_us, tokenizer_cpu_us, encoder_cpu_us, hits, misses, cached_bytes, starts,
    words, unknown_words, respelled_words, flagged, passed, capacity,
    // Histograms:
    request_s, queue_s, compute_s, batch_comments, score, comment_tokens, count_of_them
};

class Metrics {
  public:
    // Histograms where they are wanted and the server has such a thing. Throws std::runtime_error
    // with Triton's words, as where metrics are switched off.
    Metrics(std::uint64_t version, bool histograms);
    ~Metrics();
    Metrics(const Metrics&) = delete;
    Metrics& operator=(const Metrics&) = delete;

    void add(Metric metric, double amount) const;
    void set(Metric metric, double value) const;
    // One more value of a histogram.
    void observe(Metric metric, double value) const;
    bool has_histograms() const { return metrics_[static_cast<std::size_t>(Metric::request_s)]; }

  private:
    static constexpr auto kMetrics = static_cast<std::size_t>(Metric::count_of_them);
    void open(std::size_t at, const char* version);
    void close();
    std::array<TRITONSERVER_MetricFamily*, kMetrics> families_{};  // each outlives its metric
    std::array<TRITONSERVER_Metric*, kMetrics> metrics_{};
};

}  // namespace toxicity
