// Texts -> ids -> logits with a published graph: the one road from text to score.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "cache.h"
#include "onnx.h"
#include "tokenizer.h"

namespace toxicity {

// How a comment of more than `max_len` ids is scored: read in windows of `max_len` ids, [CLS], then
// ids that lie `stride` further on from one window to the next. The last window ends where the
// comment ends, so that it is a full one too. The comment's logit is the largest of theirs, or
// their mean. At most `windows` are read, and what lies behind them is cut; one window is "cut".
struct LongText {
    enum class Rule { cut, max, mean };
    Rule rule = Rule::cut;
    int stride = 1, windows = 1;

    // Ids that the windows hold.
    int most_ids(int max_len) const { return max_len + (windows - 1) * stride; }
    // Windows of a comment of so many ids, at least one.
    int count(int length, int max_len) const {
        const int last = length > max_len ? length - max_len : 0;
        return (last + stride - 1) / stride + 1;
    }
    // Throws BadInput for a stride or a number that no export writes.
    void check(int max_len) const;
};

struct Counts {
    std::int64_t tokens = 0;    // that ran through the encoder, [CLS] included
    std::int64_t cut = 0;       // comments cut at `max_len`, or behind their last window
    std::int64_t windowed = 0;  // comments read in more than one window
    Words words;                // of all comments, as far as they are read
    std::int64_t hits = 0;      // comments whose logit was known, or is another's of this call
    double tokenizer_cpu_s = 0, encoder_cpu_s = 0;  // of this thread, known logits included
};

// One session with its tokenizer. Not for several threads at once; a cache may be shared.
//
// Comments run together in the order in which they came: the serving graph computes no padding, and
// no comment's score depends on the others.
class Scorer {
  public:
    // Throws BadInput for a graph that does not take the tokenizer's ids and lengths.
    Scorer(std::shared_ptr<const Tokenizer> tokenizer, Session session, LongText long_text,
           int max_batch, std::shared_ptr<LogitCache> cache);

    // Rows of the encoder's batches that a comment will be.
    int windows(std::string_view text);
    // Logits of a comment: toxicity's first, then the attributes', if the graph gives any.
    std::size_t width() const { return session_.width(); }
    // `width` logits each of any number of valid texts, none included; an empty one is valid.
    // `lengths`, where it is given, becomes the ids of each.
    Counts score(const std::vector<std::string_view>& texts, float* logits,
                 std::int32_t* lengths = nullptr);
    std::size_t cached_bytes() const { return cache_ ? cache_->used_bytes() : 0; }
    // Real text of several lengths and batch sizes, so that no first user waits.
    void warm_up();

  private:
    struct Comment {
        std::size_t start;
        int length;
    };
    void compute(const std::vector<Comment>& comments, float* logits);
    float combined(const float* of, int count) const;
    void check_ids();
    std::string_view key(const Comment& comment) const;

    std::shared_ptr<const Tokenizer> tokenizer_;
    Session session_;
    LongText long_text_;
    int max_len_, most_ids_;
    std::size_t max_batch_;
    std::shared_ptr<LogitCache> cache_;
    std::vector<std::int32_t> ids_, all_ids_;  // of one comment, of all of a call
    std::vector<Row> batch_;
};

// The logistic function, computed in double; never overflows, and 0.5 at exactly 0.
float probability(float logit);

}  // namespace toxicity
