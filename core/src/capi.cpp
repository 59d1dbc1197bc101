// What Python calls, by ctypes (core/binding.py). Every function gives 0 for success, 2 for BadInput
// and 1 for anything else; `toxicity_error` has the words, of the calling thread.
#include <time.h>

#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "admission.h"
#include "capacity.h"
#include "contract.h"
#include "errors.h"
#include "scorer.h"
#include "sha256.h"
#include "utf8.h"

using namespace toxicity;

#define TOXICITY_API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kDone = 0, kOther = 1, kBadInput = 2;

std::string& words() {
    thread_local std::string text;
    return text;
}

template <class Body>
int guarded(Body body) {
    try {
        body();
        return kDone;
    } catch (const BadInput& error) {
        words() = error.what();
        return kBadInput;
    } catch (const std::bad_alloc&) {
        words() = "out of memory";
    } catch (const std::exception& error) {
        words() = error.what();
    }
    return kOther;
}

std::string_view checked(const char* text, std::int64_t length) {
    const std::string_view utf8(text, static_cast<std::size_t>(length));
    if (invalid_utf8_at(utf8, true) != kValid) throw BadInput("the text is not valid UTF-8");
    return utf8;
}

double thread_cpu_s() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

using SharedTokenizer = std::shared_ptr<const Tokenizer>;

}  // namespace

TOXICITY_API const char* toxicity_error() { return words().c_str(); }

TOXICITY_API int toxicity_tokenizer_open(const char* json, std::int64_t length, void** out) {
    return guarded([&] {
        const std::string_view text(json, static_cast<std::size_t>(length));
        *out = new SharedTokenizer(std::make_shared<Tokenizer>(text));
    });
}

TOXICITY_API void toxicity_tokenizer_close(void* tokenizer) {
    delete static_cast<SharedTokenizer*>(tokenizer);
}

// `ids` has room for `most`; `count` is how many there are, `cut` whether the text had more.
TOXICITY_API int toxicity_encode(void* tokenizer, const char* text, std::int64_t length, int most,
                                 std::int32_t* ids, int* count, int* cut) {
    return guarded([&] {
        thread_local std::vector<std::int32_t> found;
        *cut = (*static_cast<SharedTokenizer*>(tokenizer))->encode(checked(text, length), most, found);
        *count = static_cast<int>(found.size());
        std::memcpy(ids, found.data(), found.size() * sizeof found[0]);
    });
}

// Text i as in toxicity_score: the ids of all, added up, and the CPU seconds of this thread that reading
// them took, the check of the UTF-8 included. For measuring: no call of Python's is in it.
TOXICITY_API int toxicity_encode_all(void* tokenizer, const char* texts, const std::int64_t* ends,
                                     std::int64_t n, int most, std::int64_t* total_ids,
                                     double* cpu_s) {
    return guarded([&] {
        const Tokenizer& rule = **static_cast<SharedTokenizer*>(tokenizer);
        std::vector<std::int32_t> ids;
        *total_ids = 0;
        const double began = thread_cpu_s();
        std::int64_t start = 0;
        for (std::int64_t i = 0; i < n; start = ends[i++]) {
            rule.encode(checked(texts + start, ends[i] - start), most, ids);
            *total_ids += static_cast<std::int64_t>(ids.size());
        }
        *cpu_s = thread_cpu_s() - began;
    });
}

// `tokens` has room for 2 * length + 1 bytes; each token has a space behind it.
TOXICITY_API int toxicity_split(void* tokenizer, const char* text, std::int64_t length, char* tokens,
                                std::int64_t* written) {
    return guarded([&] {
        std::string found;
        (*static_cast<SharedTokenizer*>(tokenizer))->split(checked(text, length), found);
        *written = static_cast<std::int64_t>(found.size());
        std::memcpy(tokens, found.data(), found.size());
    });
}

TOXICITY_API int toxicity_scorer_open(void* tokenizer, const char* ort_library, const char* graph,
                                      std::int64_t graph_bytes, int gpu, int rule, int stride,
                                      int windows, int max_batch, std::int64_t cache_bytes,
                                      void** out) {
    return guarded([&] {
        const std::string_view bytes(graph, static_cast<std::size_t>(graph_bytes));
        std::shared_ptr<LogitCache> cache;
        if (cache_bytes) cache = std::make_shared<LogitCache>(static_cast<std::size_t>(cache_bytes));
        const LongText long_text{static_cast<LongText::Rule>(rule), stride, windows};
        *out = new Scorer(*static_cast<SharedTokenizer*>(tokenizer),
                          Session(ort_library, bytes, gpu), long_text, max_batch, cache);
    });
}

TOXICITY_API void toxicity_scorer_close(void* scorer) { delete static_cast<Scorer*>(scorer); }

TOXICITY_API int toxicity_warm_up(void* scorer) {
    return guarded([&] { static_cast<Scorer*>(scorer)->warm_up(); });
}

TOXICITY_API std::int64_t toxicity_cached_bytes(void* scorer) {
    return static_cast<std::int64_t>(static_cast<Scorer*>(scorer)->cached_bytes());
}

// Logits that `toxicity_score` writes for a comment: toxicity's, then the attributes'.
TOXICITY_API std::int64_t toxicity_width(void* scorer) {
    return static_cast<std::int64_t>(static_cast<Scorer*>(scorer)->width());
}

TOXICITY_API int toxicity_windows(void* scorer, const char* text, std::int64_t length, int* rows) {
    return guarded(
        [&] { *rows = static_cast<Scorer*>(scorer)->windows(checked(text, length)); });
}

// Text i is from `ends[i - 1]`, or 0, to `ends[i]`, and has `toxicity_width` logits. `lengths`, `counts` and `cpu_s` as in
// scorer.h.
TOXICITY_API int toxicity_score(void* scorer, const char* texts, const std::int64_t* ends,
                                std::int64_t n, float* logits, std::int32_t* lengths,
                                std::int64_t counts[7], double cpu_s[2]) {
    return guarded([&] {
        std::vector<std::string_view> views;
        std::int64_t start = 0;
        for (std::int64_t i = 0; i < n; start = ends[i++])
            views.push_back(checked(texts + start, ends[i] - start));
        const Counts found = static_cast<Scorer*>(scorer)->score(views, logits, lengths);
        counts[0] = found.tokens;
        counts[1] = found.cut;
        counts[2] = found.windowed;
        counts[3] = found.hits;
        counts[4] = found.words.all;
        counts[5] = found.words.unknown;
        counts[6] = found.words.respelled;
        cpu_s[0] = found.tokenizer_cpu_s;
        cpu_s[1] = found.encoder_cpu_s;
    });
}

TOXICITY_API void toxicity_probability(const float* logits, std::int64_t n, float* probabilities) {
    for (std::int64_t i = 0; i < n; i++) probabilities[i] = probability(logits[i]);
}

TOXICITY_API void* toxicity_admission_open() { return new (std::nothrow) Admission(); }
TOXICITY_API void toxicity_admission_close(void* admission) { delete static_cast<Admission*>(admission); }
TOXICITY_API int toxicity_admit(void* admission, const int* rows, std::int64_t n, double now_s,
                                std::int64_t comments, std::int64_t largest, std::int64_t* admitted,
                                int* overloaded) {
    return guarded([&] {
        auto& decides = *static_cast<Admission*>(admission);
        *admitted = static_cast<std::int64_t>(
            decides.admit(std::vector<int>(rows, rows + n), now_s, comments, largest));
        *overloaded = decides.overloaded();
    });
}
TOXICITY_API void toxicity_observe(void* admission, int rows, double seconds) {
    static_cast<Admission*>(admission)->observe(rows, seconds);
}
TOXICITY_API void toxicity_ended(void* admission, double now_s) {
    static_cast<Admission*>(admission)->ended(now_s);
}

TOXICITY_API void* toxicity_capacity_open() { return new (std::nothrow) Capacity(); }
TOXICITY_API void toxicity_capacity_close(void* capacity) { delete static_cast<Capacity*>(capacity); }
TOXICITY_API double toxicity_capacity_after(void* capacity, std::int64_t comments, double busy_s,
                                            double now_s) {
    return static_cast<Capacity*>(capacity)->after(comments, busy_s, now_s);
}

// The checksum that the backend compares with the manifest: 64 hexadecimal digits and a zero.
TOXICITY_API int toxicity_sha256(const char* bytes, std::int64_t length, char out[65]) {
    return guarded([&] {
        const std::string hex = sha256(std::string_view(bytes, static_cast<std::size_t>(length)));
        std::memcpy(out, hex.c_str(), 65);
    });
}
