#include "cache.h"

namespace toxicity {

// Of an entry beside its ids: two nodes, their allocations' heads and a share of the buckets.
static constexpr std::size_t kEntryBytes = 160;

std::size_t LogitCache::bytes_of(std::string_view ids) { return ids.size() + kEntryBytes; }

bool LogitCache::get(std::string_view ids, float& logit) {
    const std::lock_guard<std::mutex> held(lock_);
    const auto found = entry_of_.find(ids);
    if (found == entry_of_.end()) return false;
    entries_.splice(entries_.begin(), entries_, found->second);
    logit = found->second->logit;
    return true;
}

void LogitCache::put(std::string_view ids, float logit) {
    if (bytes_of(ids) > capacity_) return;
    const std::lock_guard<std::mutex> held(lock_);
    if (entry_of_.count(ids)) return;
    entries_.push_front({std::string(ids), logit});
    try {
        entry_of_.emplace(entries_.front().ids, entries_.begin());
    } catch (...) {
        entries_.pop_front();
        throw;
    }
    used_ += bytes_of(ids);
    while (used_ > capacity_) {
        used_ -= bytes_of(entries_.back().ids);
        entry_of_.erase(entries_.back().ids);
        entries_.pop_back();
    }
}

std::size_t LogitCache::used_bytes() const {
    const std::lock_guard<std::mutex> held(lock_);
    return used_;
}

}  // namespace toxicity
