// Logits of the comments scored last, least recently used out first, bounded in bytes.
#pragma once

#include <cstddef>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

namespace toxicity {

// A key is the bytes of the ids themselves, so only comments that are the same to the encoder share
// an entry. A cache belongs to one version of a model; its instances share it.
class LogitCache {
  public:
    explicit LogitCache(std::size_t capacity_bytes) : capacity_(capacity_bytes) {}

    // Whether the key is there, which makes it the most recently used; `width` logits then are
    // written. One cache is for comments of one width.
    bool get(std::string_view ids, float* logits, std::size_t width);
    // One larger than the whole cache is dropped.
    void put(std::string_view ids, const float* logits, std::size_t width);
    // Estimate of what the entries take.
    std::size_t used_bytes() const;

  private:
    struct Entry {
        std::string bytes;  // the ids, and the logits behind them
        std::size_t ids_size;
        std::string_view ids() const { return std::string_view(bytes).substr(0, ids_size); }
    };
    static std::size_t bytes_of(std::size_t ids_size, std::size_t width);
    static std::size_t bytes_of(const Entry& entry);

    mutable std::mutex lock_;
    std::size_t capacity_, used_ = 0;
    std::list<Entry> entries_;  // the most recently used first
    std::unordered_map<std::string_view, std::list<Entry>::iterator> entry_of_;
};

}  // namespace toxicity
