#include "scorer.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <unordered_map>

#include "contract.h"
#include "errors.h"

namespace toxicity {
namespace {

double thread_cpu_s() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

void LongText::check(int max_len) const {
    const bool one = rule == Rule::cut && windows == 1 && stride >= 1;
    if (!one && (stride < 1 || stride >= max_len || windows < 1 || windows > MAX_WINDOWS))
        throw BadInput("long_text has stride " + std::to_string(stride) + " and " +
                       std::to_string(windows) + " windows, expected a stride below max_len and 1 to " +
                       std::to_string(MAX_WINDOWS) + " windows; export again");
}

Scorer::Scorer(std::shared_ptr<const Tokenizer> tokenizer, Session session, LongText long_text,
               int max_batch, std::shared_ptr<LogitCache> cache)
    : tokenizer_(std::move(tokenizer)),
      session_(std::move(session)),
      long_text_(long_text),
      max_len_(tokenizer_->max_len()),
      most_ids_(long_text.most_ids(max_len_)),
      max_batch_(static_cast<std::size_t>(max_batch)),
      cache_(std::move(cache)) {
    long_text_.check(max_len_);
    if (max_batch < 1 || max_batch > MAX_REQUEST_COMMENTS)
        throw BadInput("max_batch is " + std::to_string(max_batch) + ", expected 1 to " +
                       std::to_string(MAX_REQUEST_COMMENTS) + "; run `make tune` or export again");
    check_ids();
}

// The greatest id and the greatest length must have their places in the graph.
void Scorer::check_ids() {
    const std::vector<std::int32_t> ids(static_cast<std::size_t>(max_len_),
                                        tokenizer_->vocabulary_size() - 1);
    std::vector<float> logits(width());
    try {
        session_.run({Row{ids.data(), 0, max_len_}}, logits.data());
    } catch (const std::runtime_error& error) {
        throw BadInput("the graph does not take the tokenizer's " +
                       std::to_string(tokenizer_->vocabulary_size()) + " ids and " +
                       std::to_string(max_len_) + " tokens (" + error.what() + "); export again");
    }
    if (!std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); }))
        throw BadInput("the graph gives a logit that is no number, expected a finite one; export again");
}

int Scorer::windows(std::string_view text) {
    // A token has a byte or more.
    if (long_text_.windows == 1 || text.size() < static_cast<std::size_t>(max_len_)) return 1;
    tokenizer_->encode(text, most_ids_, ids_);
    return long_text_.count(static_cast<int>(ids_.size()), max_len_);
}

std::string_view Scorer::key(const Comment& comment) const {
    return {reinterpret_cast<const char*>(all_ids_.data() + comment.start),
            sizeof(std::int32_t) * static_cast<std::size_t>(comment.length)};
}

Counts Scorer::score(const std::vector<std::string_view>& texts, float* logits,
                     std::int32_t* lengths) {
    Counts counts;
    const double began = thread_cpu_s();
    std::vector<Comment> comments;
    comments.reserve(texts.size());
    all_ids_.clear();
    for (const std::string_view text : texts) {
        counts.cut += tokenizer_->encode(text, most_ids_, ids_, &counts.words);
        comments.push_back({all_ids_.size(), static_cast<int>(ids_.size())});
        all_ids_.insert(all_ids_.end(), ids_.begin(), ids_.end());
        counts.windowed += comments.back().length > max_len_;
        if (lengths) lengths[comments.size() - 1] = comments.back().length;
    }
    const double tokenized = thread_cpu_s();
    counts.tokenizer_cpu_s = tokenized - began;
    const auto tokens_of = [&](const Comment& comment) {
        return std::min(comment.length, max_len_) * long_text_.count(comment.length, max_len_);
    };
    if (!cache_) {
        for (const Comment& comment : comments) counts.tokens += tokens_of(comment);
        compute(comments, logits);
    } else {
        std::vector<Comment> missing;
        std::unordered_map<std::string_view, std::size_t> missing_at;
        std::vector<std::size_t> from(comments.size());  // place in `missing`, or known
        constexpr auto known = static_cast<std::size_t>(-1);
        for (std::size_t i = 0; i < comments.size(); i++) {
            from[i] = known;
            if (cache_->get(key(comments[i]), logits + i * width(), width())) continue;
            const auto [place, is_new] = missing_at.emplace(key(comments[i]), missing.size());
            if (is_new) {
                missing.push_back(comments[i]);
                counts.tokens += tokens_of(comments[i]);
            }
            from[i] = place->second;
        }
        std::vector<float> computed(missing.size() * width());
        compute(missing, computed.data());
        for (std::size_t i = 0; i < missing.size(); i++)
            cache_->put(key(missing[i]), computed.data() + i * width(), width());
        for (std::size_t i = 0; i < comments.size(); i++)
            if (from[i] != known)
                std::copy_n(computed.data() + from[i] * width(), width(), logits + i * width());
        counts.hits = static_cast<std::int64_t>(comments.size() - missing.size());
    }
    counts.encoder_cpu_s = thread_cpu_s() - tokenized;
    return counts;
}

// In the order in which they came, at most `max_batch_` windows and MAX_BATCH_PAIRS at a time.
void Scorer::compute(const std::vector<Comment>& comments, float* logits) {
    std::vector<Row> rows;
    for (const Comment& comment : comments) {
        const std::int32_t* ids = all_ids_.data() + comment.start;
        const int last = std::max(0, comment.length - max_len_);
        for (int at = 0; at < last; at += long_text_.stride) rows.push_back({ids, at, max_len_});
        rows.push_back({ids, last, std::min(comment.length, max_len_)});
    }
    std::vector<float> by_row(rows.size() * width());
    std::size_t done = 0;
    std::int64_t pairs = 0;
    batch_.clear();
    const auto run = [&] {
        session_.run(batch_, by_row.data() + done);
        done += batch_.size() * width();
        batch_.clear();
        pairs = 0;
    };
    for (const Row& row : rows) {
        const std::int64_t own = static_cast<std::int64_t>(row.length) * row.length;
        if (batch_.size() == max_batch_ || (!batch_.empty() && pairs + own > MAX_BATCH_PAIRS)) run();
        batch_.push_back(row);
        pairs += own;
    }
    if (!batch_.empty()) run();
    const float* of = by_row.data();
    for (std::size_t i = 0; i < comments.size(); i++) {
        const int count = long_text_.count(comments[i].length, max_len_);
        for (std::size_t head = 0; head < width(); head++)
            logits[i * width() + head] = combined(of + head, count);
        of += static_cast<std::size_t>(count) * width();
    }
}

// Of one head's logits, `width` apart, of a comment's windows.
float Scorer::combined(const float* of, int count) const {
    double sum = 0;  // of so few floats it has no order
    float most = *of;
    for (int w = 0; w < count; w++, of += width()) {
        sum += *of;
        most = std::max(most, *of);
    }
    return long_text_.rule == LongText::Rule::mean ? static_cast<float>(sum / count) : most;
}

void Scorer::warm_up() {
    const std::shared_ptr<LogitCache> cache = std::move(cache_);  // which would run one of eight
    for (const int words : {0, 1, 4, 16, max_len_}) {
        std::string text;
        for (int i = 0; i < words; i++) text += "don't ";
        std::vector<float> logits(8 * width());
        for (const std::size_t copies : {1u, 8u})
            score(std::vector<std::string_view>(copies, text), logits.data());
    }
    cache_ = cache;
}

float probability(float logit) {
    const double decay = std::exp(-std::fabs(static_cast<double>(logit)));
    return static_cast<float>((logit >= 0 ? 1.0 : decay) / (1.0 + decay));
}

}  // namespace toxicity
