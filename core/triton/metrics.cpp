#include "metrics.h"

#include <array>
#include <cstdlib>
#include <iterator>
#include <string>

#include "contract.h"

namespace toxicity {
namespace {

struct Bounds {
    const double* values = nullptr;
    std::size_t count = 0;
};
template <std::size_t n>
constexpr Bounds bounds(const double (&values)[n]) {
    return {values, n};
}
constexpr std::array<double, SCORE_BINS> make_score_bounds() {
    std::array<double, SCORE_BINS> found{};
    for (std::size_t i = 0; i < found.size(); i++)
        found[i] = static_cast<double>(i + 1) / static_cast<double>(SCORE_BINS);
    return found;
}
constexpr std::array<double, SCORE_BINS> kScoreBounds = make_score_bounds();

struct Described {
    const char* name;
    const char* help;
    MetricKind kind = MetricKind::counter;
    const char *label = nullptr, *value = nullptr;  // beside the version
    Bounds upto{};                                  // of a histogram's buckets
};
constexpr char kRefused[] = "toxicity_requests_refused_total", kRefusedHelp[] = "Requests refused, by reason",
               kDecisions[] = "toxicity_decisions_total",
               kDecisionsHelp[] = "Comments by the decision at the served threshold";
constexpr MetricKind kHistogram = MetricKind::histogram;
constexpr Described kDescribed[] = {
    {"toxicity_requests_total", "Requests scored"},
    {kRefused, kRefusedHelp, MetricKind::counter, "reason", "overloaded"},
    {kRefused, kRefusedHelp, MetricKind::counter, "reason", "invalid"},
    {kRefused, kRefusedHelp, MetricKind::counter, "reason", "failed"},
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
    {"toxicity_words_total", "Words of the comments, as far as they are read"},
    {"toxicity_unknown_words_total", "Words that the vocabulary does not have"},
    {"toxicity_respelled_words_total", "Disguised words that were read as known ones"},
    {kDecisions, kDecisionsHelp, MetricKind::counter, "decision", "flagged"},
    {kDecisions, kDecisionsHelp, MetricKind::counter, "decision", "passed"},
    {"toxicity_capacity_comments_per_second",
     "Comments that the instances could score a second, by the last minute's", MetricKind::gauge},
    {"toxicity_request_duration_seconds", "From a request's arrival to its answer", kHistogram, nullptr,
     nullptr, bounds(DURATION_BOUNDS)},
    {"toxicity_queue_duration_seconds", "From a request's arrival to its batch", kHistogram, nullptr, nullptr,
     bounds(DURATION_BOUNDS)},
    {"toxicity_compute_duration_seconds", "Scoring of a request's batch", kHistogram, nullptr, nullptr,
     bounds(DURATION_BOUNDS)},
    {"toxicity_batch_comments", "Comments scored together", kHistogram, nullptr, nullptr,
     bounds(BATCH_BOUNDS)},
    {"toxicity_score", "Probabilities of being toxic", kHistogram, nullptr, nullptr,
     {kScoreBounds.data(), kScoreBounds.size()}},
    {"toxicity_comment_tokens", "Tokens of a comment as far as it is read", kHistogram, nullptr, nullptr,
     bounds(TOKEN_BOUNDS)},
};
static_assert(std::size(kDescribed) == static_cast<std::size_t>(Metric::count_of_them));

TRITONSERVER_Parameter* label(const char* name, const char* value) {
    return triton.ParameterNew(name, kParameterString, value);
}

}  // namespace

Metrics::Metrics(std::uint64_t version, bool histograms) {
    const std::string number = std::to_string(version);
    try {
        for (std::size_t i = 0; i < kMetrics; i++)
            if (kDescribed[i].kind != kHistogram || (histograms && triton.has_histograms()))
                open(i, number.c_str());
    } catch (...) {
        close();
        throw;
    }
    const char* starts = std::getenv(STARTS_VARIABLE);
    set(Metric::starts, starts ? std::atof(starts) : 1);
}

void Metrics::open(std::size_t at, const char* version) {
    const Described& d = kDescribed[at];
    triton.check(triton.SERVER_MetricFamilyNew(&families_[at], static_cast<int>(d.kind), d.name, d.help));
    TRITONSERVER_Parameter* own[] = {label("version", version), d.label ? label(d.label, d.value) : nullptr};
    const TRITONSERVER_Parameter* labels[] = {own[0], own[1]};
    const std::uint64_t count = d.label ? 2 : 1;
    TRITONSERVER_Error* error = nullptr;
    if (d.kind != kHistogram) {
        error = triton.SERVER_MetricNew(&metrics_[at], families_[at], labels, count);
    } else {
        TRITONSERVER_MetricArgs* args = nullptr;
        error = triton.SERVER_MetricArgsNew(&args);
        if (!error) error = triton.SERVER_MetricArgsSetHistogram(args, d.upto.values, d.upto.count);
        if (!error)
            error = triton.SERVER_MetricNewWithArgs(&metrics_[at], families_[at], labels, count, args);
        if (args) triton.ok(triton.SERVER_MetricArgsDelete(args));
    }
    for (TRITONSERVER_Parameter* one : own)
        if (one) triton.ParameterDelete(one);
    triton.check(error);
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

void Metrics::observe(Metric metric, double value) const {
    triton.ok(triton.SERVER_MetricObserve(metrics_[static_cast<std::size_t>(metric)], value));
}

void Metrics::set(Metric metric, double value) const {
    triton.ok(triton.SERVER_MetricSet(metrics_[static_cast<std::size_t>(metric)], value));
}

}  // namespace toxicity
