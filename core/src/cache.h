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

    // Whether the key is there, which makes it the most recently used.
    bool get(std::string_view ids, float& logit);
    // One larger than the whole cache is dropped.
    void put(std::string_view ids, float logit);
    // Estimate of what the entries take.
    std::size_t used_bytes() const;

  private:
    struct Entry {
        std::string ids;
        float logit;
    };
    static std::size_t bytes_of(std::string_view ids);

    mutable std::mutex lock_;
    std::size_t capacity_, used_ = 0;
    std::list<Entry> entries_;  // the most recently used first
    std::unordered_map<std::string_view, std::list<Entry>::iterator> entry_of_;
};

}  // namespace toxicity
