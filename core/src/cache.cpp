#include "cache.h"

#include <cstring>
#include <utility>

namespace toxicity {

// Of an entry beside its ids: two nodes, their allocations' heads and a share of the buckets.
static constexpr std::size_t kEntryBytes = 160;  // one logit included

std::size_t LogitCache::bytes_of(std::size_t ids_size, std::size_t width) {
    return ids_size + kEntryBytes + (width - 1) * sizeof(float);
}

std::size_t LogitCache::bytes_of(const Entry& entry) {
    return bytes_of(entry.ids_size, (entry.bytes.size() - entry.ids_size) / sizeof(float));
}

bool LogitCache::get(std::string_view ids, float* logits, std::size_t width) {
    const std::lock_guard<std::mutex> held(lock_);
    const auto found = entry_of_.find(ids);
    if (found == entry_of_.end()) return false;
    entries_.splice(entries_.begin(), entries_, found->second);
    std::memcpy(logits, found->second->bytes.data() + ids.size(), width * sizeof(float));
    return true;
}

void LogitCache::put(std::string_view ids, const float* logits, std::size_t width) {
    if (bytes_of(ids.size(), width) > capacity_) return;
    const std::lock_guard<std::mutex> held(lock_);
    if (entry_of_.count(ids)) return;
    std::string bytes;
    bytes.reserve(ids.size() + width * sizeof(float));
    bytes.append(ids).append(reinterpret_cast<const char*>(logits), width * sizeof(float));
    entries_.push_front({std::move(bytes), ids.size()});
    try {
        entry_of_.emplace(entries_.front().ids(), entries_.begin());
    } catch (...) {
        entries_.pop_front();
        throw;
    }
    used_ += bytes_of(entries_.front());
    while (used_ > capacity_) {
        used_ -= bytes_of(entries_.back());
        entry_of_.erase(entries_.back().ids());
        entries_.pop_back();
    }
}

std::size_t LogitCache::used_bytes() const {
    const std::lock_guard<std::mutex> held(lock_);
    return used_;
}

}  // namespace toxicity
