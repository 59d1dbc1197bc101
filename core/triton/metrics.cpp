#include "metrics.h"

#include <cstdlib>
#include <string>

#include "contract.h"

namespace toxicity {
namespace {

struct Described {
    const char* name;
    const char* help;
    MetricKind kind = MetricKind::counter;
};
constexpr Described kDescribed[] = {
    {"toxicity_requests_total", "Requests scored"},
    {"toxicity_requests_refused_total", "Requests refused for want of room"},
    {"toxicity_requests_cancelled_total", "Requests dropped, their clients gone"},
    {"toxicity_comments_total", "Comments scored"},
    {"toxicity_comments_cut_total", "Comments cut at the end of what is read"},
    {"toxicity_comments_windowed_total", "Comments read in several windows"},
    {"toxicity_tokens_total", "Tokens run through the encoder"},
    {"toxicity_batches_total", "Batches of comments scored together"},
    {"toxicity_compute_us_total", "Microseconds of scoring, summed by batch"},
    {"toxicity_tokenizer_cpu_us_total", "CPU time of texts to ids"},
    {"toxicity_encoder_cpu_us_total", "CPU time of ids to logits"},
    {"toxicity_cache_hits_total", "Comments that the encoder had no need to run"},
    {"toxicity_cache_misses_total", "Comments that the cache did not know"},
    {"toxicity_cache_bytes", "Memory of the cached logits", MetricKind::gauge},
    {"toxicity_server_starts", "Starts of this server, by its supervisor's count", MetricKind::gauge},
};
static_assert(std::size(kDescribed) == static_cast<std::size_t>(Metric::count_of_them));

}  // namespace

Metrics::Metrics(std::uint64_t version) {
    const std::string number = std::to_string(version);
    try {
        for (std::size_t i = 0; i < kMetrics; i++) {
            const Described& d = kDescribed[i];
            triton.check(triton.SERVER_MetricFamilyNew(&families_[i], static_cast<int>(d.kind), d.name,
                                                       d.help));
            TRITONSERVER_Parameter* label =
                triton.ParameterNew("version", kParameterString, number.c_str());
            const TRITONSERVER_Parameter* labels[] = {label};
            TRITONSERVER_Error* error = triton.SERVER_MetricNew(&metrics_[i], families_[i], labels, 1);
            triton.ParameterDelete(label);
            triton.check(error);
        }
    } catch (...) {
        close();
        throw;
    }
    const char* starts = std::getenv(STARTS_VARIABLE);
    set(Metric::starts, starts ? std::atof(starts) : 1);
}

Metrics::~Metrics() { close(); }

void Metrics::close() {
    for (TRITONSERVER_Metric*& metric : metrics_) {
        if (metric) triton.ok(triton.SERVER_MetricDelete(metric));
        metric = nullptr;
    }
    for (TRITONSERVER_MetricFamily*& family : families_) {
        if (family) triton.ok(triton.SERVER_MetricFamilyDelete(family));
        family = nullptr;
    }
}

void Metrics::add(Metric metric, double amount) const {
    if (amount > 0) triton.ok(triton.SERVER_MetricIncrement(metrics_[static_cast<std::size_t>(metric)], amount));
}

void Metrics::set(Metric metric, double value) const {
    triton.ok(triton.SERVER_MetricSet(metrics_[static_cast<std::size_t>(metric)], value));
}

}  // namespace toxicity
